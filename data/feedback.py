"""Feedback: what people did with a friend's replies, as rows that the chat writes and the reward trains on.

{"kind", "surface", "model", "profile", "context", "response", "instead", "who", "reply_seconds", "reply_words", "time"}

kind            thumb_up, thumb_down, retry (another reply was asked for), edit (`instead` was written over it),
                continued (they answered it), ended (they left at it)
surface, model  where ("terminal", "page", "telegram", "api") and who said it
profile         facts known about the person; context: the turns before, oldest first; response: the reply
instead         of an edit: the text that stands there now; else null
who             a salted hash of the person, which tells rows of one person and gives no name (chat/feedback.py)
reply_seconds   of continued, where known: until they answered; reply_words: how much they wrote
time            ISO 8601, UTC
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from data.source import read_jsonl

KINDS = ("thumb_up", "thumb_down", "retry", "edit", "continued", "ended")
KEYS = (
    "kind", "surface", "model", "profile", "context", "response", "instead", "who", "reply_seconds", "reply_words",
    "time",
)  # fmt: skip
#: What each kind says of the response: a vote for or against it. Words and thumbs outweigh what may have other reasons.
VOTES = {"thumb_up": 2, "continued": 1, "ended": -1, "retry": -2, "edit": -2, "thumb_down": -2}
INSTEAD_VOTE = 2


def check(row: dict) -> dict:
    """Returns row, or raises ValueError naming the key that is not as it must be."""
    if unknown := set(row) - set(KEYS):
        raise ValueError(f"unknown key {min(unknown)!r}; a row of feedback has {', '.join(KEYS)}")
    if missing := [key for key in KEYS if key not in row]:
        raise ValueError(f"key {missing[0]!r} is missing")
    if row["kind"] not in KINDS:
        raise ValueError(f"kind is {row['kind']!r}, not one of {KINDS}")
    for key in ("surface", "model", "response", "who", "time"):
        if not isinstance(row[key], str) or not row[key].strip():
            raise ValueError(f"{key} is {row[key]!r}, not a text")
    for key in ("profile", "context"):
        if not isinstance(row[key], list) or not all(isinstance(text, str) for text in row[key]):
            raise ValueError(f"{key} is {row[key]!r}, not a list of texts")
    if (row["kind"] == "edit") != (isinstance(row["instead"], str) and bool(row["instead"].strip())):
        raise ValueError(f"instead is {row['instead']!r}: an edit has the new text there, other kinds null")
    for key, kinds in (("reply_seconds", int | float), ("reply_words", int)):
        value = row[key]
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool) or not 0 <= value < 1e9):
            raise ValueError(f"{key} is {value!r}, neither a number from 0 on nor null")
    try:
        datetime.fromisoformat(row["time"])
    except ValueError:
        raise ValueError(f"time is {row['time']!r}, not ISO 8601") from None
    return row


def load(path: str | Path) -> list[dict]:
    """The rows of a file. A bad one raises ValueError naming file, line and key; so does a file without any."""
    rows = list(read_jsonl(path, parse=check))
    if not rows:
        raise ValueError(f"{path} has no feedback")
    return rows


def pairs(rows: Iterable[dict]) -> list[tuple[dict, dict]]:
    """(preferred, rejected) among the `opinions` of one scene: every liked one with every disliked one."""
    return [
        (liked, disliked)
        for scene in _scenes(opinions(rows))
        for liked in scene
        for disliked in scene
        if liked["votes"] > 0 > disliked["votes"]
    ]


def opinions(rows: Iterable[dict]) -> list[dict]:
    """{"profile", "context", "response", "votes"} of each response that people were for (votes above 0) or against, in
    the order of their first rows. Of each person the strongest word counts, once, and of words as strong the last one;
    what evens out is left out."""
    said: dict[tuple, dict[str, dict[int, None]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        scene = (tuple(row["profile"]), tuple(row["context"]))
        _say(said[*scene, row["response"]][row["who"]], VOTES[row["kind"]])
        if row["kind"] == "edit":
            _say(said[*scene, row["instead"]][row["who"]], INSTEAD_VOTE)
    found = []
    for (profile, context, response), people in said.items():
        votes = sum(max(reversed(of_one), key=abs) for of_one in people.values())
        if votes:
            found.append({"profile": list(profile), "context": list(context), "response": response, "votes": votes})
    return found


def _say(of_one: dict[int, None], vote: int) -> None:
    """The last word stands last."""
    of_one.pop(vote, None)
    of_one[vote] = None


def _scenes(found: list[dict]) -> list[list[dict]]:
    scenes = defaultdict(list)
    for opinion in found:
        scenes[tuple(opinion["profile"]), tuple(opinion["context"])].append(opinion)
    return list(scenes.values())
