"""Scenes: what an opener starts from. A person's profile and, if they spoke first, their greeting.

A file of scenes has a row `{"id", "profile": [facts about the person], "greeting": their first words or null}` a line.
The friend sees the profile. No profile is in two splits.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data import empathetic, sample
from data.dialogue import SPLITS, system_text
from data.source import read_jsonl

SOURCES = ("sample", "empathetic")


@dataclass(frozen=True)
class Scene:
    """A profile, a greeting or both."""

    id: str
    profile: tuple[str, ...] = ()
    greeting: str | None = None

    def check(self) -> "Scene":
        """Returns self, or raises ValueError that names the scene and the field."""
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"scene {self.id!r}: id must be text")
        if not all(isinstance(fact, str) and fact.strip() for fact in self.profile):
            raise ValueError(f"scene {self.id!r}: profile holds an empty fact")
        if self.greeting is not None and not (isinstance(self.greeting, str) and self.greeting.strip()):
            raise ValueError(f"scene {self.id!r}: greeting is {self.greeting!r}, neither words nor null")
        if not self.profile and self.greeting is None:
            raise ValueError(
                f"scene {self.id!r} has neither profile nor greeting: the opener has nothing to start from"
            )
        return self


def load_scenes(path: str | Path, skip_bad_rows: bool | None = None) -> list[Scene]:
    """Scenes of a file. A bad row raises ValueError naming file and line, or is set aside, as `read_jsonl` says."""
    scenes = list(read_jsonl(path, skip_bad_rows, parse=scene_from_json))
    if not scenes:
        raise ValueError(f"{path} has no scenes")
    id, times = Counter(scene.id for scene in scenes).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{path}: the id {id!r} is there {times} times; openers are told apart by it")
    return scenes


def scene_from_json(row: dict) -> Scene:
    """A checked Scene from a JSON object. Raises ValueError naming a missing, unknown or wrong key."""
    if unknown := set(row) - {"id", "profile", "greeting"}:
        raise ValueError(f"scene {row.get('id')!r}: unknown key {min(unknown)!r}")
    if "id" not in row:
        raise ValueError("scene without id")
    profile = row.get("profile") or []
    if not isinstance(profile, list):
        raise ValueError(f"scene {row['id']!r}: profile is {profile!r}, not a list of facts")
    return Scene(row["id"], tuple(profile), row.get("greeting")).check()


def scenes_of(source: str, split: str, root: str | None = None, most: int | None = None) -> list[Scene]:
    """Scenes of a split: the sample's files, or derived from EmpatheticDialogues (`derived_scenes`).

    With `most`, the scenes whose ids hash lowest: a choice that depends neither on order nor on a seed.
    """
    if source not in SOURCES:
        raise ValueError(f"scenes are made of {SOURCES}, not of {source!r}")
    scenes = load_scenes(sample.FOLDER / f"scenes_{split}.jsonl") if source == "sample" else derived_scenes(split, root)
    return scenes if most is None else sorted(scenes, key=lambda scene: id_hash(scene.id))[:most]


def derived_scenes(split: str, root: str | None = None) -> list[Scene]:
    """A scene per EmpatheticDialogues dialogue of the kept situations whose situation yields facts.

    The profile is those facts; the greeting is the person's first turn in every second scene (by the hash of the id).
    A profile that a later split has too (train < validation < test), or an earlier scene, is left out.
    """
    scenes, seen = [], set()
    for other in reversed(SPLITS[SPLITS.index(split) :]):
        scenes = []
        for dialogue in empathetic.load(other, root):
            if dialogue.topic not in empathetic.KEPT_SITUATIONS or not dialogue.profile:
                continue
            if (profile := profile_hash(dialogue.profile)) in seen:
                continue
            seen.add(profile)
            greeting = dialogue.turns[0].text if id_hash(dialogue.id) % 2 else None
            scenes.append(Scene(dialogue.id, dialogue.profile, greeting).check())
    return scenes


def prompt_messages(scene: Scene, instruction: str) -> list[dict[str, str]]:
    """Chat messages that ask for the friend's opener: the system message, and the greeting as the user's, if any."""
    system = system_text(instruction, scene.profile)
    return [
        {"role": role, "content": content}
        for role, content in (("system", system), ("user", scene.greeting))
        if content
    ]


def profile_hash(profile: tuple[str, ...] | list[str]) -> str:
    """Equal for the same facts in any order, case and final stop."""
    facts = sorted(fact.lower().strip(" .") for fact in profile)
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def id_hash(id: str) -> int:
    """64 bits that depend on the id alone."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8])
