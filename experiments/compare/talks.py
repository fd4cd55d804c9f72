"""Each arm's conversations with the simulated person (experiments/simulate.py): rows, kept in talks.parquet.

A row is a talk: {"arm", "seed", "scene", "sample", "greeting", "friend", "person", "emotions", "disengaged", "cumulative",
the four of simulate.MEASURES, "moods" (of the arm that is told of them), "run_id", "key"}. `key` is a hash of all weights
that spoke or judged and of all that was asked: what is there under the same key is not simulated again.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data.dialogue import INSTRUCTIONS
from data.scenes import Scene
from experiments import simulate
from experiments.compare.arms import BEST_OF, MOOD, Speaker
from experiments.compare.openers import hash_of, judge_key, of, read, write
from experiments.run import weights_hash
from models.load import load_scorer, resolve
from models.mood import MOODS

if TYPE_CHECKING:
    from experiments.compare.__main__ import CompareConfig

#: Best of n that talks, at n candidates a turn. 64 would cost as much as all other arms together; 2 says little.
TALKING_BEST_OF = ("best-of-4", "best-of-16")


def talked(config: "CompareConfig", gold: str, scenes: list[Scene], who: list[Speaker], directory: Path) -> list[dict]:
    """The rows of all models among `who`, of best-of-n and of the arm with moods, on the first `talk_scenes` scenes. Rows
    of other arms stay in the file; those of an earlier model or question of the same arms are dropped."""
    scenes, path = scenes[: config.talk_scenes], directory / "talks.parquet"
    speakers = talkers(config.arms, who)
    keys = {(s.arm, s.seed): key(config, gold, scenes, s) for s in speakers}
    found = [row for row in read(path) if keys.get(of(row), row["key"]) == row["key"]]
    there = {of(row) for row in found}
    missing = [s for s in speakers if (s.arm, s.seed) not in there]
    if missing:
        size = {"max_new_tokens": config.response_length, "batch_size": config.batch_size, "dtype": config.model_dtype}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        judge, proxy, emotions = (
            load_scorer(name, device, dtype=config.reward_dtype)
            for name in (gold, config.reward_model_path, config.emotion_model_path)
        )
        simulate.check_readers(judge, emotions)
        person = simulate.load_person(config.person_model_path, config.person_temperature, **size)
    for speaker in missing:
        friend = simulate.load_speaker(speaker.model, config.temperature, **size)
        friend.instruction = INSTRUCTIONS[config.instruction]
        arm = simulate.Arm(speaker.arm, speaker.model, speaker.arm == MOOD, BEST_OF.get(speaker.arm, 1))
        noise = 100 * config.seed + speaker.seed  # else all seeds of an arm would err in the same way
        said = simulate.converse(
            arm, friend, person, scenes, config.talk_samples, config.talk_turns, noise, proxy, emotions
        )
        told = {"seed": speaker.seed, "run_id": speaker.id, "key": keys[speaker.arm, speaker.seed]}
        found += [{"scene": row.pop("scene_id"), **row, **told} for row in simulate.read(said, judge, emotions)]
        write(path, found)
    return [row for row in found if of(row) in keys]


def talkers(arms: list[str], who: list[Speaker]) -> list[Speaker]:
    """Every model among `who`, and SFT's once more for each arm that is SFT's with another choice of words."""
    models = [speaker for speaker in who if speaker.model]
    sft = next(speaker for speaker in models if speaker.arm == "sft")
    return models + [Speaker(arm, 0, sft.model, sft.id, sft.sha256) for arm in (MOOD, *TALKING_BEST_OF) if arm in arms]


def key(config: "CompareConfig", gold: str, scenes: list[Scene], speaker: Speaker) -> str:
    names = (
        "temperature", "person_temperature", "response_length", "talk_samples", "talk_turns", "instruction", "reward_dtype",
        "model_dtype", "seed",
    )  # fmt: skip
    asked = {name: getattr(config, name) for name in names}
    judges = gold, config.reward_model_path, config.emotion_model_path
    others = [
        weights_hash(resolve(config.person_model_path)),
        *(judge_key(name, config.reward_dtype) for name in judges),
    ]
    everything = [asdict(speaker), asked, others, MOODS.read_text(), [asdict(scene) for scene in scenes]]
    return hash_of(everything)
