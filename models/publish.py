"""Sends a finished run to a hub: adapter, card with the run's own numbers, summary and recipe, in one commit.

    HF_TOKEN=... python -m models.publish runs/tiny/ppo-s1 yourname/friend-ppo       (or make publish RUN=... REPO=...)
    python -m models.publish RUN REPO --merged     base and adapter as one model (models/merge.py)
    python -m models.publish RUN REPO --dry_run    says what would be sent, connects to nothing, needs no token
    python -m models.publish RUN REPO --private    a new repository is private; one that is there stays as it is

HF_ENDPOINT is another hub than huggingface.co. The token needs the right to write; it is printed nowhere.
Settings of the run (config.json, lineage.json, code.diff) stay here: they hold paths of this machine.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from models import merge
from models.load import PRETRAINED, base_of
from models.ship import flat, licence_of, stage_of

#: Tokenizer and weights; what a trainer left beside them (training_args.bin is a pickle) is nobody's.
SENT = (".safetensors", ".json", ".jinja", ".txt", ".model")

CARD = """---
{metadata}
---

# {name}

{about}

From run `{run}` of icebreaker, commit {commit}; its recipe is `recipe.yaml`, its numbers as they were written are
`summary.json`.

{use}

**Limits**: it invents facts, forgets, and agrees too easily. It is made to study how conversations open, not to be relied
on. {licence}

## Numbers

| | |
|---|---|
{numbers}
"""

ABOUT = {"sft": "The friend after supervised fine-tuning", "ppo": "The friend after learning openers from a reward"}
THEIRS = "The licences of {base} and of the data that it and the adapter were trained on apply."
USE_MERGED = """    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained("{repo}"), AutoTokenizer.from_pretrained("{repo}")

{serving}"""
USE_ADAPTER = """A LoRA adapter on {base}:

    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    model, tokenizer = AutoPeftModelForCausalLM.from_pretrained("{repo}"), AutoTokenizer.from_pretrained("{repo}")"""
USE_OURS = """A LoRA adapter on {base}, which is on no hub but in icebreaker's models/pretrained. Put these files into a
folder of a checkout: every stage and `make serve RUN=folder` take it, `python -m models.merge folder` makes one model."""


def main(run: str, repo: str, merged: bool = False, dry_run: bool = False, private: bool = False) -> str:
    """Sends `run` (a run's directory) to the repository `repo` ("user/name"); the commit's address, or of a dry run "".

    Raises ValueError for a run that is not finished, a reward or a base, a repository's name that no hub takes, a base
    that only this machine has, and a token that is missing. A commit is taken whole or not at all.
    """
    directory = check(Path(run), repo, merged)
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token and not dry_run:
        raise ValueError("HF_TOKEN is not set: make a token that may write at the hub's settings, and put it there")
    with tempfile.TemporaryDirectory() as scratch:
        model = merge.main(run, f"{scratch}/merged") if merged else directory / "model"
        files = files_of(directory, model, repo)
        print(f"{directory} -> {endpoint}/{repo}")
        for name, content in files.items():
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            print(f"  {name}  {size:,} bytes")
        if dry_run:
            print(f"nothing sent (--dry_run); the card:\n\n{files['README.md'].decode()}")
            return ""
        return send(HfApi(endpoint, token=token), repo, files, directory.name, private)


def check(directory: Path, repo: str, merged: bool) -> Path:
    """The run's directory, if it may be sent."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"REPO is {repo!r}: {error}") from error
    if repo.count("/") != 1:
        raise ValueError(f"REPO is {repo!r}: write user/name")
    if not (directory / "summary.json").exists():
        raise ValueError(f"{directory} has no summary.json: give the directory of a finished run")
    if stage_of(directory) not in ABOUT:
        raise ValueError(f"{directory} is a {stage_of(directory)} run: an SFT, PPO, GRPO or DPO run is published")
    base = base_of(str(directory))
    if not merged and not is_ours(base) and Path(base).exists():
        raise ValueError(f"the base is {base}, which nobody else has: add --merged (make publish MERGED=1)")
    return directory


def files_of(directory: Path, model: Path, repo: str) -> dict[str, Path | bytes]:
    """What is sent, by name. The card comes first: a hub that refuses it does so before the weights travel."""
    files: dict[str, Path | bytes] = {"README.md": card(directory, model, repo).encode()}
    for path in sorted(model.iterdir()):
        if path.suffix in SENT:
            files[path.name] = path
    for name in ("summary.json", "recipe.yaml"):
        if (directory / name).exists():
            files[name] = directory / name
    return files


def card(directory: Path, model: Path, repo: str) -> str:
    """The model card, its numbers the run's summary.json's."""
    summary, lineage = (json.loads((directory / f"{name}.json").read_text()) for name in ("summary", "lineage"))
    base = base_of(str(directory))
    name = Path(base).name if Path(base).exists() else base  # of a local base its name alone: no path of this machine
    merged = not (model / "adapter_config.json").exists()
    metadata = [
        "language: en",
        "pipeline_tag: text-generation",
        f"library_name: {'transformers' if merged else 'peft'}",
    ]
    if is_ours(base):
        metadata.append(f"license: {licence_of(directory)[0]}")
    elif not Path(base).exists():
        metadata.append(f"base_model: {base}")
    if merged:
        use = USE_MERGED.format(repo=repo, serving=merge.serving(model, repo))
    else:
        use = (USE_OURS if is_ours(base) else USE_ADAPTER).format(base=name, repo=repo)
    return CARD.format(
        metadata="\n".join(metadata),
        name=repo.split("/")[1],
        about=f"{ABOUT[stage_of(directory)]}{f', merged into {name}' if merged else ''}.",
        run=f"{directory.resolve().parent.name}/{directory.resolve().name}",
        commit=lineage["commit"][:7],
        use=use,
        licence=f"Licence: {licence_of(directory)[1]}" if is_ours(base) else THEIRS.format(base=name),
        numbers="\n".join(f"| {key} | {value} |" for key, value in flat(summary)),
    )


def is_ours(base: str) -> bool:
    """Whether a base ships with the project."""
    return "/" not in base and (PRETRAINED / base).is_dir()


def send(api: HfApi, repo: str, files: dict[str, Path | bytes], run: str, private: bool) -> str:
    """One commit into the repository, which is made where it is missing. RuntimeError says what the hub answered."""
    try:
        api.whoami()  # first: a token that is no good is told so, not that the repository is missing
        api.create_repo(repo, exist_ok=True, private=private or None)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        commit = api.create_commit(repo, operations, commit_message=f"icebreaker: {run}")
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = {401: ": HF_TOKEN is not valid there", 403: ": HF_TOKEN may not write to that name"}.get(status, "")
        raise RuntimeError(f"the hub refused {repo} ({status}){advice}. {error.server_message or ''}") from error
    return commit.commit_url


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m models.publish", description="a run -> a hub")
    parser.add_argument("run", help="an SFT, PPO, GRPO or DPO run's directory")
    parser.add_argument("repo", help="user/name on the hub")
    parser.add_argument("--merged", action="store_true", help="send base and adapter as one model")
    parser.add_argument("--dry_run", action="store_true", help="say what would be sent")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    try:
        print(main(**vars(parser.parse_args())))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"publish: {error}")
