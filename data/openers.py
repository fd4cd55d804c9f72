"""Openers written for the sample's scenes, in plain words (data/sample/README.md): rows {"scene_id", "opener"}."""

from collections.abc import Iterator

from data import sample
from data.dialogue import Dialogue, Turn
from data.source import read_jsonl

KEYS = {"scene_id", "opener"}


def load(split: str) -> Iterator[Dialogue]:
    """A dialogue for each opener: the person's greeting, if the scene has one, and the opener as the friend's turn.

    Its id is the scene's and, after "#", the number of the opener among the scene's own.
    """
    scenes = {row["id"]: row for row in read_jsonl(sample.FOLDER / f"scenes_{split}.jsonl")}
    seen = dict.fromkeys(scenes, 0)
    for row in read_jsonl(sample.FOLDER / f"openers_{split}.jsonl", parse=lambda row: _checked(row, scenes)):
        scene = scenes[row["scene_id"]]
        greeting = [Turn("person", scene["greeting"])] if scene["greeting"] else []
        turns = (*greeting, Turn("friend", row["opener"]))
        seen[scene["id"]] += 1
        id = f"{scene['id']}#{seen[scene['id']]}"
        yield Dialogue(id, "openers", split, turns, tuple(scene["profile"])).check()


def _checked(row: dict, scenes: dict[str, dict]) -> dict:
    if set(row) != KEYS:
        raise ValueError(f"an opener's keys are {sorted(row)}, not {sorted(KEYS)}")
    if row["scene_id"] not in scenes:
        raise ValueError(f"scene {row['scene_id']!r} is not among this split's scenes")
    return row
