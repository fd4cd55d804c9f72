"""Openers in plain words, written for the sample's scenes and for people of their own, and openers that a model said to
them, each with a grade (data/sample/README.md)."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from data import sample
from data.dialogue import Dialogue, Turn
from data.scenes import Scene, load_scenes
from data.source import read_jsonl


def load(split: str) -> Iterator[Dialogue]:
    """A dialogue for each opener: the person's greeting, if there is one, and the opener as the friend's turn.

    Those of a scene (rows {"scene_id", "opener"}) have its id and, after "#", their number among the scene's own. In
    training come people who are nobody's scene (rows {"profile", "greeting", "opener"}).
    """
    scenes = _scenes(split)
    rows = read_jsonl(sample.FOLDER / f"openers_{split}.jsonl", parse=lambda row: _of_scene(row, scenes))
    yield from _dialogues("openers", split, scenes, rows)
    if split == "train":
        yield from openers_of("openers", sample.FOLDER / "people.jsonl")


def load_more(split: str) -> Iterator[Dialogue]:
    """Openers for more people, training alone: for friends, no reward has read them."""
    if split == "train":
        yield from openers_of("more_openers", sample.FOLDER / "more_openers.jsonl")


def load_rated(split: str) -> Iterator[Dialogue]:
    """As `load`, but of what a model said (rows {"scene_id", "opener", "rating", "by"}): never a model to follow. The
    friend's turn has the grade, from 1 (nobody would answer) to 5; `scene_id` may name one of people.jsonl too."""
    scenes = _scenes(split) | ({scene.id: scene for scene, _ in people()} if split == "train" else {})
    rows = read_jsonl(sample.FOLDER / f"rated_{split}.jsonl", parse=lambda row: _of_scene(row, scenes, "rating", "by"))
    yield from _dialogues("rated", split, scenes, rows)


def _scenes(split: str) -> dict[str, Scene]:
    return {scene.id: scene for scene in load_scenes(sample.FOLDER / f"scenes_{split}.jsonl")}


def people(path: str | Path = sample.FOLDER / "people.jsonl") -> Iterator[tuple[Scene, str]]:
    """People who are nobody's scene, each with an opener: rows {"profile", "greeting", "opener"}."""
    for number, row in enumerate(read_jsonl(path, parse=_of_person)):
        yield Scene(f"person-{number:04}", tuple(row["profile"]), row["greeting"]).check(), row["opener"]


def openers_of(source: str, path: str | Path) -> Iterator[Dialogue]:
    """The people of a file and what is said to them, as training dialogues of `source`."""
    for scene, opener in people(path):
        yield _dialogue(scene.id, source, "train", scene, opener)


def _dialogues(source: str, split: str, scenes: dict[str, Scene], rows: Iterable[dict]) -> Iterator[Dialogue]:
    seen = dict.fromkeys(scenes, 0)
    for row in rows:
        scene = scenes[row["scene_id"]]
        seen[scene.id] += 1
        yield _dialogue(f"{scene.id}#{seen[scene.id]}", source, split, scene, row["opener"], row.get("rating"))


def _dialogue(id: str, source: str, split: str, scene: Scene, opener: str, rating: int | None = None) -> Dialogue:
    greeting = [Turn("person", scene.greeting)] if scene.greeting else []
    return Dialogue(id, source, split, (*greeting, Turn("friend", opener, rating=rating)), scene.profile).check()


def _of_scene(row: dict, scenes: dict[str, Scene], *more: str) -> dict:
    _check_keys(row, {"scene_id", "opener", *more})
    if row["scene_id"] not in scenes:
        raise ValueError(f"scene {row['scene_id']!r} is not among this split's scenes")
    return row


def _of_person(row: dict) -> dict:
    _check_keys(row, {"profile", "greeting", "opener"})
    return row


def _check_keys(row: dict, keys: set[str]) -> None:
    if set(row) != keys:
        raise ValueError(f"an opener's keys are {sorted(row)}, not {sorted(keys)}")
