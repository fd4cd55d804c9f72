"""Writes down what a larger friend says to many people: text that friend-base learns to open conversations from.

    python -m sft.distill --config experiments/base/distill.yaml

Sequence-level distillation (Kim & Rush 2016, section 3.2), with samples in place of the one best sequence: the openers of a
teacher are the student's text. Its people are those of data/sample/people.jsonl as they are, imagined ones made of two of
them, and those of EmpatheticDialogues' training dialogues; nobody of the sample's scenes is among them. What is empty or did
not end is left out, and no row is there twice.

Rows out: {"profile": [facts], "greeting": text or null, "opener"}, as in people.jsonl. A run that was cut off goes on after
the batches it has written.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.dialogue import INSTRUCTIONS
from data.openers import people
from data.scenes import Scene, derived_scenes, profile_hash, prompt_messages
from data.source import write_whole
from experiments.run import parse_config, weights_hash
from models.load import fast_dtype, load_policy, load_tokenizer, resolve
from models.sampling import prompt_ids, say


@dataclass
class DistillConfig:
    """A teacher and how many openers of it are wanted."""

    teacher: str = field(default="friend-small-sft", metadata={"help": "a run, a shipped model's name, or a path"})
    output_file: str = field(default="runs/base/taught.jsonl", metadata={"help": "JSON lines of people and openers"})
    imagined_people: int = field(default=8000, metadata={"help": "people made of two of people.jsonl"})
    num_return_sequences: int = field(default=3, metadata={"help": "openers a person"})
    temperature: float = 0.4
    max_new_tokens: int = 40
    batch_size: int = field(default=64, metadata={"help": "people at a time"})
    data_root: str | None = field(default=None, metadata={"help": "directory of the corpora; else ICEBREAKER_DATA"})
    seed: int = 1


def main(config: DistillConfig) -> None:
    tokenizer = load_tokenizer(config.teacher)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = str(fast_dtype(device)).removeprefix("torch.")
    teacher = load_policy(config.teacher, dtype).eval().to(device)
    if hasattr(teacher, "merge_and_unload"):
        teacher = teacher.merge_and_unload()
    scenes = [scene for scene, _ in people()] + derived_scenes("train", config.data_root)
    scenes += imagined(config.imagined_people, config.seed)
    prompts = [prompt_ids(tokenizer, prompt_messages(scene, INSTRUCTIONS["friend"])) for scene in scenes]
    order = sorted(range(len(scenes)), key=lambda i: len(prompts[i]))
    batches = [order[start : start + config.batch_size] for start in range(0, len(order), config.batch_size)]

    target, k = Path(config.output_file), config.num_return_sequences
    asked = {**asdict(config), "teacher_sha256": weights_hash(resolve(config.teacher)), "prompts": hash_of(prompts)}
    part, done = unfinished(target, json.dumps(asked))
    with open(part, "a", encoding="utf-8") as out:
        for batch in tqdm(batches[done:], initial=done, total=len(batches), desc="people", unit="batch", disable=None):
            openers, ended = say(
                teacher,
                tokenizer,
                [prompts[i] for i in batch for _ in range(k)],
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                seed=config.seed,
                keys=[i * k + s for i in batch for s in range(k)],
            )
            said = zip(np.repeat(batch, k), openers, ended, strict=True)
            rows = [row_of(scenes[i], opener) for i, opener, whole in said if opener and whole]
            out.write(json.dumps(rows) + "\n")
            out.flush()
    rows = (row for line in part.read_text().splitlines()[1:] for row in json.loads(line))
    lines = [row + "\n" for row in dict.fromkeys(rows)]
    np.random.default_rng(config.seed).shuffle(lines)
    write_whole(target, "".join(lines))
    part.unlink()
    print(f"{len(lines)} openers of {config.teacher} for {len(scenes)} people: {target}")


def imagined(count: int, seed: int) -> list[Scene]:
    """People who are made of two: one's first fact and first words, if they spoke, and one to three facts of both. None is
    there twice, or among the known ones."""
    known, rng = [scene for scene, _ in people()], np.random.default_rng(seed)
    made, seen = [], {(profile_hash(scene.profile), scene.greeting) for scene in known}
    while len(made) < count:
        one, other = (known[i] for i in rng.choice(len(known), 2, replace=False))
        rest = [*one.profile[1:], *other.profile]
        more = [rest[i] for i in rng.permutation(len(rest))[: rng.integers(1, 4)]]
        profile = tuple(dict.fromkeys([*one.profile[:1], *more]))
        person = Scene(f"imagined-{len(made)}", profile, one.greeting).check()
        if (who := (profile_hash(person.profile), person.greeting)) not in seen:
            seen.add(who)
            made.append(person)
    return made


def row_of(scene: Scene, opener: str) -> str:
    row = {"profile": list(scene.profile), "greeting": scene.greeting, "opener": opener}
    return json.dumps(row, ensure_ascii=False)


def hash_of(prompts: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


def unfinished(target: Path, settings: str) -> tuple[Path, int]:
    """The file that a run writes to, its settings in the first line and then a batch a line, and the batches there.

    Raises ValueError where it was begun with other settings, another teacher or other people.
    """
    part = target.with_suffix(".part")
    lines = part.read_text().split("\n")[:-1] if part.exists() else []  # what a kill left of a line is no batch
    if lines and lines[0] != settings:
        raise ValueError(
            f"{part} was begun with other settings, teacher or people ({lines[0]}): remove it, or take those"
        )
    write_whole(part, "".join(line + "\n" for line in lines or [settings]))
    return part, max(0, len(lines) - 1)


if __name__ == "__main__":
    main(*parse_config(DistillConfig))
