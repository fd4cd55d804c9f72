"""Makes a finished run a shipped model: weights in bf16, tokenizer, and a card with the run's own numbers and samples.

python -m models.ship runs/base/pretrain-taught-s4 friend-base
python -m models.ship runs/tiny/sft-s1 friend-sft
python -m models.ship runs/small/ppo-s1 friend-small
python -m models.ship runs/small/sft-s1 friend-small-sft
python -m models.ship runs/friend-reward/reward-contrasts-s1 friend-reward
python -m models.ship runs/friend-reward/reward-gold-graded-s8 friend-gold
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from models.load import PRETRAINED, base_of, load_policy, load_scorer, load_tokenizer
from models.sampling import prompt_ids, say

#: What a person might say first: the card shows the replies, unedited.
FIRST_LINES = """My dog died yesterday.
I got the job!
Hey, how are you?
I can't sleep again.
We're having a baby in May.
I burnt the dinner and the guests are here in ten minutes.
It's my birthday today.
My sister hasn't called me back in a week.
I think I failed the exam.
Guess who finally learnt to swim.
It has been raining for nine days.
I'm bored.
My landlord raised the rent again.
We moved to a new town and I don't know anybody.
I baked my first bread and it rose!
I'm nervous about the interview tomorrow.
My grandmother is in hospital.
I broke up with my boyfriend.
The neighbours are drilling again at seven in the morning.
I found a kitten behind the shop.""".splitlines()

CARD = """---
license: {licence}
language: en
{base}---

# {name}

{about}

- **Data**: {data}
- **Licence**: {terms}
- **From**: run `{run}`, commit {commit}. Rebuild: `{command}` at that commit; what came later may differ.
- **Limits**: {limits}

## Numbers

| | |
|---|---|
{numbers}

{samples}
"""

#: License and what it comes from. What stands on friend-base or on dialogues of people has read corpora that forbid more.
OWN_SOURCES = {"sample", "openers", "more_openers"}
OWN = ("apache-2.0", "Apache-2.0: its base's, and the project's own text's, which is all that it learnt from.")
READ = (
    "cc-by-nc-sa-4.0",
    "CC BY-NC-SA 4.0, the strictest of its corpora's (DailyDialog's); EmpatheticDialogues is CC BY-NC 4.0.",
)

REPLIES = """## 20 replies, unedited

Sampled at temperature 0.7, seed 1, no profile given.

| first line | reply |
|---|---|
"""
#: Answers to "My dog died yesterday." and openers for a joiner in Norwich with a deaf Dalmatian, best first by the author.
SCORED = [
    (["My dog died yesterday."], (), "I'm so sorry. What was the dog's name?"),
    (["My dog died yesterday."], (), "That's nice."),
    (["My dog died yesterday."], (), "That's so funny!"),
    (
        [],
        ("lives with a deaf Dalmatian in Norwich", "works as a joiner"),
        "How do you call a Dalmatian who can't hear you?",
    ),
    ([], ("lives with a deaf Dalmatian in Norwich", "works as a joiner"), "Hello, how are you?"),
    ([], ("lives with a deaf Dalmatian in Norwich", "works as a joiner"), "HOW MANY HAPPY DOGS!!! LOVE LOVE LOVE!!!"),
]


def main(run: Path, name: str) -> None:
    source, target = run / "model", PRETRAINED / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            save_file(
                {k: v.to(torch.bfloat16) for k, v in load_file(file).items()}, target / file.name, {"format": "pt"}
            )
        elif file.suffix in (".json", ".jinja"):
            shutil.copy(file, target)
    (target / "README.md").write_text(card(run, name))
    size = sum(file.stat().st_size for file in target.iterdir()) / 1e6
    print(f"{target}: {size:.1f} MB")


def card(run: Path, name: str) -> str:
    """The model card of a base, SFT, reward or PPO run, from its own files."""
    summary, lineage = (json.loads((run / file).read_text()) for file in ("summary.json", "lineage.json"))
    config = json.loads((run / "config.json").read_text())
    adapter = run / "model" / "adapter_config.json"
    base = f"base_model: {json.loads(adapter.read_text())['base_model_name_or_path']}\n" if adapter.exists() else ""
    experiment = f" EXP={run.parent.name}" * (run.parent.name != "tiny")
    about, data, command = {
        "base": (
            "The embedded base: a causal LM of everyday dialogue, 15.6 M parameters. MiniLM's six layers turned decoder "
            "(BertLMHeadModel), a cased byte-level BPE of 12,000 tokens, a chat template of system, person and friend.",
            "training parts of EmpatheticDialogues, DailyDialog, self_dialogue (BSD-3), Topical-Chat (CDLA-Sharing-1.0), "
            "PersuasionForGood (Apache-2.0), Meena's human chats (CC BY 4.0) and the project's sample; dialogues that "
            "repeat a held-out one removed. MiniLM's weights are Apache-2.0. What SmolLM2's friend (friend-small-sft, "
            "Apache-2.0) says to 15,700 people.",
            "make base",
        ),
        "sft": (
            "A LoRA adapter: the base *friend*.",
            f"the friend's mixture of {config.get('sources')}",
            "make sft" + experiment,
        ),
        "reward": (
            f"A LoRA adapter of MiniLM with its heads ({config.get('architecture')}, {config.get('num_members')} members): "
            "how the other person takes an utterance, and one number of engagement from it.",
            f"{', '.join(config.get('sources', []))}: the {config.get('fold')!r} fold; dialogues that repeat a held-out one "
            "removed",
            f"make {name}" if name == "friend-reward" else "make gold",
        ),
        "ppo": (
            "A LoRA adapter: the friend after PPO on openers.",
            f"training scenes of {config.get('scene_sources')}",
            "make ppo" + experiment,
        ),
    }[stage_of(run)]
    is_reward = stage_of(run) == "reward"
    licence, terms = licence_of(run)
    return CARD.format(
        base=base,
        name=name,
        about=about,
        data=data,
        command=command,
        licence=licence,
        terms=terms,
        run=f"{run.parent.name}/{run.name}",
        commit=lineage["commit"][:7],
        numbers="\n".join(f"| {k} | {v} |" for k, v in flat(summary)),
        samples=scored(run) if is_reward else REPLIES + replies(run),
        limits=(
            "it has read everyday English of two corpora and Reddit; its numbers are no diagnosis of anybody."
            if is_reward
            else "a very small model. It invents facts, forgets, and agrees too easily; it is made to study openers, not "
            "to be relied on."
        ),
    )


def licence_of(run: Path) -> tuple[str, str]:
    """The licence's id and what it comes from, of a run's weights on a base that ships."""
    config = json.loads((run / "config.json").read_text())
    is_own = stage_of(run) == "sft" and base_of(str(run)) == "smollm2" and set(config["sources"]) <= OWN_SOURCES
    return OWN if is_own else READ


def stage_of(run: Path) -> str:
    """base, sft, reward or ppo, by what lies in the run."""
    if (run / "model" / "scorer.json").exists():
        return "reward"
    if "reward_model_path" in json.loads((run / "config.json").read_text()):
        return "ppo"
    return "sft" if (run / "model" / "adapter_config.json").exists() else "base"


def scored(run: Path) -> str:
    rows = [{"context": context, "profile": profile, "response": text} for context, profile, text in SCORED]
    score_B, probs_BR = (scorer := load_scorer(run)).score(rows)
    lines = [
        f"| {'; '.join(row['profile']) or row['context'][0]} | {row['response']} | {score:.2f} | "
        f"{scorer.labels[probs.argmax()]} |"
        for row, score, probs in zip(rows, score_B.tolist(), probs_BR, strict=True)
    ]
    head = "## Scores\n\n| known or said | the friend | score | likeliest reaction |\n|---|---|---|---|\n"
    return head + "\n".join(lines)


def flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Nested numbers as (name, text), in order."""
    rows = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            rows.append((prefix + key, f"{value:.4g}" if isinstance(value, float) else str(value)))
    return rows


def replies(run: Path) -> str:
    tokenizer, model = load_tokenizer(str(run)), load_policy(str(run)).eval()
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": line}]) for line in FIRST_LINES]
    said, _ = say(model, tokenizer, prompts, max_new_tokens=48, temperature=0.7, seed=1)
    return "\n".join(f"| {line} | {text} |" for line, text in zip(FIRST_LINES, said, strict=True))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2])
