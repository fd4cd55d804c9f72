"""What a friend had better say at a moment, and what it had better not, by one hand (data/sample/README.md)."""

from collections.abc import Iterator

from data import sample
from data.dialogue import SPLITS, Dialogue, Turn
from data.source import read_jsonl

#: What is wrong with the other lines of a moment.
KINDS = ("cold", "gushing", "generic", "confused")
_KEYS = {"id", "profile", "context", "good", *KINDS}


def load(split: str) -> Iterator[Dialogue]:
    """A dialogue for each moment: what was said before (context, the last turn the person's) and the good line. Its id is
    that of the dialogue, scene or person it was written for."""
    for row in _rows(split):
        speakers = ("person", "friend") if len(row["context"]) % 2 else ("friend", "person")
        before = [Turn(speakers[i % 2], text) for i, text in enumerate(row["context"])]
        turns = (*before, Turn("friend", row["good"]))
        yield Dialogue(row["id"], "contrasts", split, turns, tuple(row["profile"])).check()


def worse_lines() -> dict[str, dict[str, str]]:
    """Of every split, id -> kind of KINDS -> the line that is wrong in this way."""
    return {row["id"]: {kind: row[kind] for kind in KINDS} for split in SPLITS for row in _rows(split)}


def _rows(split: str) -> Iterator[dict]:
    yield from read_jsonl(sample.FOLDER / f"contrasts_{split}.jsonl", parse=_checked)


def _checked(row: dict) -> dict:
    if set(row) != _KEYS:
        raise ValueError(f"a moment's keys are {sorted(row)}, not {sorted(_KEYS)}")
    if empty := [kind for kind in ("good", *KINDS) if not isinstance(row[kind], str) or not row[kind].strip()]:
        raise ValueError(f"key {empty[0]!r} is {row[empty[0]]!r}, not a line")
    return row
