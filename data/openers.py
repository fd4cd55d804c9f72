"""Openers in plain words, written for the sample's scenes and for people of their own (data/sample/README.md)."""

from collections.abc import Iterator

from data import sample
from data.dialogue import Dialogue, Turn
from data.scenes import Scene, load_scenes
from data.source import read_jsonl


def load(split: str) -> Iterator[Dialogue]:
    """A dialogue for each opener: the person's greeting, if there is one, and the opener as the friend's turn.

    Those of a scene (rows {"scene_id", "opener"}) have its id and, after "#", their number among the scene's own. In
    training come people who are nobody's scene (rows {"profile", "greeting", "opener"}).
    """
    scenes = {scene.id: scene for scene in load_scenes(sample.FOLDER / f"scenes_{split}.jsonl")}
    seen = dict.fromkeys(scenes, 0)
    for row in read_jsonl(sample.FOLDER / f"openers_{split}.jsonl", parse=lambda row: _of_scene(row, scenes)):
        scene = scenes[row["scene_id"]]
        seen[scene.id] += 1
        yield _dialogue(f"{scene.id}#{seen[scene.id]}", scene, row["opener"], split)
    if split == "train":
        for number, row in enumerate(read_jsonl(sample.FOLDER / "people.jsonl", parse=_of_person)):
            scene = Scene(f"person-{number:04}", tuple(row["profile"]), row["greeting"])
            yield _dialogue(scene.id, scene.check(), row["opener"], split)


def _dialogue(id: str, scene: Scene, opener: str, split: str) -> Dialogue:
    greeting = [Turn("person", scene.greeting)] if scene.greeting else []
    return Dialogue(id, "openers", split, (*greeting, Turn("friend", opener)), scene.profile).check()


def _of_scene(row: dict, scenes: dict[str, Scene]) -> dict:
    _check_keys(row, {"scene_id", "opener"})
    if row["scene_id"] not in scenes:
        raise ValueError(f"scene {row['scene_id']!r} is not among this split's scenes")
    return row


def _of_person(row: dict) -> dict:
    _check_keys(row, {"profile", "greeting", "opener"})
    return row


def _check_keys(row: dict, keys: set[str]) -> None:
    if set(row) != keys:
        raise ValueError(f"an opener's keys are {sorted(row)}, not {sorted(keys)}")
