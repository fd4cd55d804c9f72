"""Mood: emotions of a person's messages, cumulated by an exponential mean, choose the friend's instruction.

The original's alternative to RL: no weight changes, only the prompt. Who cannot be asked to learn to comfort is told to.
Thresholds, emotions and prompts stand in models/mood.yaml.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from models.scorer import Scorer

MOODS = Path(__file__).parent / "mood.yaml"
#: Comfort goes before playful where both thresholds are passed.
NAMES = ("general", "playful", "comfort")
#: Messages that are read: what lies further back weighs nothing (0.7^16 = 0.3 %).
MEMORY = 16


@dataclass(frozen=True)
class Moods:
    """The table of mood.yaml and `read`, which tells the emotions of a text: label -> probability."""

    read: Callable[[str], dict[str, float]]
    negative: tuple[str, ...]
    positive: tuple[str, ...]
    thresholds: dict[str, float]
    prompts: dict[str, str]
    decay: float

    def of(self, messages: Sequence[str]) -> dict:
        """{"name", "negative", "positive"} after a person's messages, oldest first; general, 0 and 0 before the first.

        A message's negative (positive) is the sum of its negative (positive) emotions' probabilities, 1 at most. Their
        mean weighs each message `decay` times the one after it.
        """
        negative = positive = total = 0.0
        for message in messages[-MEMORY:]:
            emotions = self.read(message)
            negative = self.decay * negative + min(1.0, sum(emotions.get(name, 0.0) for name in self.negative))
            positive = self.decay * positive + min(1.0, sum(emotions.get(name, 0.0) for name in self.positive))
            total = self.decay * total + 1.0
        negative, positive = negative / max(total, 1.0), positive / max(total, 1.0)
        name = "general"
        if negative > self.thresholds["comfort"]:
            name = "comfort"
        elif positive > self.thresholds["playful"]:
            name = "playful"
        return {"name": name, "negative": negative, "positive": positive}

    def instruction(self, name: str, instruction: str) -> str:
        """The model's own instruction and what the mood `name` adds to it."""
        return f"{instruction} {self.prompts[name]}".strip()


def load_moods(read: Callable[[str], dict[str, float]], path: str | Path = MOODS) -> Moods:
    """The Moods of a YAML file. Raises ValueError naming the file and the key that is missing, unknown or wrong."""
    table = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    keys = ("thresholds", "decay", "negative", "positive", "prompts")

    def refuse(what: str):
        raise ValueError(f"{path}: {what}")

    if not isinstance(table, dict) or set(table) != set(keys):
        refuse(f"must have the keys {', '.join(keys)} and no other")
    for key, names in (("thresholds", NAMES[1:]), ("prompts", NAMES)):
        if not isinstance(table[key], dict) or set(table[key]) != set(names):
            refuse(f"{key} must name {', '.join(names)} and no other mood")
    for name, text in table["prompts"].items():
        if not isinstance(text, str):
            refuse(f"prompts, {name}: {text!r} is no text")
    for name, value in [*table["thresholds"].items(), ("decay", table["decay"])]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            refuse(f"{name} is {value!r}, not a number from 0 to 1")
    for key in ("negative", "positive"):
        if not isinstance(table[key], list) or not all(isinstance(name, str) for name in table[key]) or not table[key]:
            refuse(f"{key} must be a list of emotions")
    return Moods(
        read,
        tuple(table["negative"]),
        tuple(table["positive"]),
        *(table[key] for key in ("thresholds", "prompts", "decay")),
    )


def reader(scorer: Scorer, names: Sequence[str]) -> Callable[[str], dict[str, float]]:
    """`read` for Moods: a scorer's head for emotions, whose order `names` tells (data.emotions.LABELS), on a text alone.

    That of friend-reward saw GoEmotions' comments. Its reactions would not do: they tell how the *other* one takes a
    text. A scorer of preset `text` has no such head: its labels are emotions themselves. A conversation is read again
    with each of its messages, so the last 1,024 texts are kept, in memory alone.
    """

    @lru_cache(maxsize=1024)
    def read(text: str) -> dict[str, float]:
        row = {"context": [], "response": text}
        if scorer.preset == "text":
            return dict(zip(scorer.labels, scorer.score([row])[1][0].tolist(), strict=True))
        return dict(zip(names, scorer.emotions([row])[0].tolist(), strict=True))

    return read
