"""models/publish.py: what goes to a hub, and what must not.

The hub is tests/fake_hub.py with huggingface_hub's own client. Not covered: the real hub, and Xet, by which
it takes weights.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from models import publish
from tests.fake_hub import FakeHub
from tests.test_merge import adapter_on
from tests.tiny_models import save_smollm2

ROOT = Path(__file__).parent.parent
REPO = "ada/friend"
SUMMARY = {"id": "d6589277", "ppo": {"score": -0.4968, "words": 12.5}, "optimizer_steps": 231}


@pytest.fixture
def hub(monkeypatch):
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield hub


def finished(run: str, stage: str = "ppo") -> str:
    """A directory with an adapter, made a run that is done: with what must stay at home, too."""
    path = Path(run)
    settings = {"reward_model_path": "runs/secret-place"} if stage == "ppo" else {}
    (path / "config.json").write_text(json.dumps(settings))
    (path / "lineage.json").write_text(json.dumps({"commit": "0123456789abcdef", "parents": []}))
    (path / "summary.json").write_text(json.dumps(SUMMARY))
    (path / "recipe.yaml").write_text("seed: 1\n")
    (path / "code.diff").write_text("my unpublished idea")
    (path / "model" / "training_args.bin").write_bytes(b"pickle")
    (path / "model" / "README.md").write_text("[More Information Needed]")
    return run


def on(run: str, base: str) -> str:
    """The run with another base's name in its adapter."""
    path = Path(run) / "model" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base}))
    return run


@pytest.fixture
def run(tmp_path):
    """A finished run whose base this machine alone has."""
    return finished(adapter_on(save_smollm2(tmp_path / "base"), tmp_path / "tiny" / "ppo-s1"))


def test_an_adapter_goes_in_one_commit_with_card_numbers_and_recipe(hub, run):
    url = publish.main(on(run, "friend-base"), REPO)
    files = hub.repos[REPO]
    assert set(files) == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "summary.json", "recipe.yaml",
    }  # fmt: skip
    assert hub.messages == ["icebreaker: ppo-s1"] and url.startswith(f"{hub.url}/{REPO}/commit/")
    assert files["adapter_model.safetensors"] == (Path(run) / "model" / "adapter_model.safetensors").read_bytes()
    assert json.loads(files["summary.json"]) == SUMMARY and files["recipe.yaml"] == b"seed: 1\n"
    card = files["README.md"].decode()
    for part in (
        "license: cc-by-nc-sa-4.0",
        "| ppo/score | -0.4968 |",
        "| optimizer_steps | 231 |",
        "tiny/ppo-s1",
        "0123456",
    ):
        assert part in card
    assert "base_model" not in card, "friend-base is on no hub"
    assert hub.requests[0] == ("GET", "/api/whoami-v2")


def test_a_merged_model_loads_from_what_was_sent(hub, run, tmp_path):
    publish.main(run, REPO, merged=True)
    for name, content in hub.repos[REPO].items():
        (tmp_path / "got").mkdir(exist_ok=True)
        (tmp_path / "got" / name).write_bytes(content)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "got")
    assert AutoTokenizer.from_pretrained(tmp_path / "got").chat_template
    weights = load_file(tmp_path / "base" / "model.safetensors")
    change = max((model.state_dict()[name] - weight).abs().max() for name, weight in weights.items())
    assert change > 0.01, "the adapter is not in it"
    assert "vllm serve ada/friend" in hub.repos[REPO]["README.md"].decode()
    assert not (Path(run) / "merged").exists(), "it leaves nothing in the run"


def test_nothing_of_this_machine_is_in_it(hub, run, tmp_path):
    publish.main(run, REPO, merged=True)
    for name, content in hub.repos[REPO].items():
        assert str(tmp_path).encode() not in content, name
        assert b"secret-place" not in content and b"unpublished" not in content


def test_a_second_time_is_a_second_commit_and_a_new_private_repository_is_private(hub, run):
    on(run, "friend-base")
    publish.main(run, REPO, private=True)
    (Path(run) / "summary.json").write_text('{"again": 1}')
    publish.main(run, REPO)
    assert len(hub.messages) == 2 and hub.private == {REPO: True}
    assert hub.repos[REPO]["summary.json"] == b'{"again": 1}'
    assert sum(method == "PUT" for method, _ in hub.requests) == 1, "the weights are there already"


def test_a_base_of_a_hub_stands_in_the_metadata(run):
    directory = Path(on(run, "HuggingFaceTB/SmolLM2-135M-Instruct"))
    card = publish.card(directory, directory / "model", REPO)
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card
    assert "license:" not in card, "it is that base's to say"
    assert "AutoPeftModelForCausalLM" in card


def test_a_dry_run_sends_nothing_and_needs_no_token(hub, run, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert publish.main(on(run, "friend-base"), REPO, dry_run=True) == ""
    said = capsys.readouterr().out
    assert hub.requests == []
    assert "adapter_model.safetensors" in said and "| ppo/score | -0.4968 |" in said and hub.url in said


@pytest.mark.parametrize(
    ("repo", "change", "message"),
    (
        ("friend", None, "user/name"),
        ("ada/../x", None, "REPO is"),
        (REPO, lambda path: (path / "summary.json").unlink(), "no summary.json"),
        (REPO, lambda path: (path / "model" / "scorer.json").touch(), "a reward run"),
        (REPO, None, "add --merged"),
    ),
)
def test_what_cannot_be_published_is_said_before_anything_is_sent(hub, run, repo, change, message):
    if change:
        change(Path(run))
    with pytest.raises(ValueError, match=message):
        publish.main(run, repo)
    assert hub.requests == []


def test_a_missing_token_is_said(hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", " ")
    with pytest.raises(ValueError, match="HF_TOKEN is not set"):
        publish.main(on(run, "friend-base"), REPO)
    assert hub.requests == []


def test_what_the_hub_refuses_is_said_and_commits_nothing(hub, run, monkeypatch):
    on(run, "friend-base")
    with pytest.raises(RuntimeError, match="403.*may not write"):
        publish.main(run, "somebody/friend")
    hub.fail = {"/commit/": 400}
    with pytest.raises(RuntimeError, match="400.*refused by the test"):
        publish.main(run, REPO)
    assert hub.repos[REPO] == {} and hub.messages == []
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(RuntimeError, match="401.*not valid") as caught:
        publish.main(run, REPO)
    assert "hf_wrong" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("is_good", (True, False))
def test_the_token_is_in_nothing_that_the_command_says(hub, run, is_good):
    token = hub.token if is_good else "hf_wrong-but-secret"
    done = subprocess.run(
        [sys.executable, "-m", "models.publish", on(run, "friend-base"), REPO], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_DEBUG": "1"},
    )  # fmt: skip
    assert (done.returncode == 0) == is_good, done.stderr
    assert token not in done.stdout + done.stderr
    if not is_good:  # HF_DEBUG shows what huggingface_hub asks, and its own side errors; the last word is ours
        assert done.stderr.splitlines()[-1].startswith("publish: the hub refused ada/friend (401)")
    assert all(token.encode() not in content for content in hub.repos.get(REPO, {}).values())
