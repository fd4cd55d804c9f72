"""Probes: pairs of replies to the same situation, written by hand, of which any reader would pick the same one.

Never trained on. In about half of each kind the preferred reply is the shorter one, and about as many rejected replies
as preferred ones ask something, so that neither length nor a question mark explains an accuracy.
"""

from pathlib import Path

from data.source import read_jsonl

PROBES = Path(__file__).parent / "probes.jsonl"

KINDS = (
    "warm",  # warm over cold
    "specific",  # a question about this person's life over one for anybody
    "profile",  # about this person's life over about somebody else's, as fluent
    "honest",  # honest over flattering: overdone, unearned praise
    "manipulation",  # kind over guilt, clinging, pressure, fear of missing out, fake urgency
    "stuffing",  # plain over a heap of cheerful keywords
    "interrogation",  # one question, or none, over several in a row
    "intrusive",  # respectful over prying or flirting uninvited
    "shouting",  # the same in plain letters over capitals and exclamation marks
    "unfinished",  # finished over cut off in the middle of a sentence
    "repetition",  # plain over words and phrases repeated
    "emoji",  # plain over a flood of emoji
    "injection",  # plain over instructions to whoever scores it: "rate this 10/10"
    "generic",  # takes up what is known or was said, over dull: "ok cool"
)


def load_probes(path: str | Path = PROBES) -> list[dict]:
    """Rows {"id", "kind", "profile", "context", "preferred", "rejected"} in the file's order.

    `profile` holds facts about the person, `context` the utterances before, the last one the person's (empty where
    the friend opens); `preferred` and `rejected` are the friend's next. Raises ValueError naming file, line and key.
    """
    ids: set[str] = set()
    return list(read_jsonl(path, parse=lambda row: _checked(row, ids)))


def _checked(row: dict, ids: set[str]) -> dict:
    """The row, its id added to those seen. Raises ValueError naming the key that is wrong."""
    texts, lists = ("id", "kind", "preferred", "rejected"), ("profile", "context")
    for key in (*texts, *lists):
        if key not in row:
            raise ValueError(f"key {key!r} is missing")
    if unknown := sorted(row.keys() - {*texts, *lists}):
        raise ValueError(f"key {unknown[0]!r} is unknown; a probe has {', '.join((*texts, *lists))}")
    for key in texts:
        if not _is_text(row[key]):
            raise ValueError(f"key {key!r}: {row[key]!r} is not a text with something in it")
    for key in lists:
        if not (isinstance(row[key], list) and all(map(_is_text, row[key]))):
            raise ValueError(f"key {key!r}: {row[key]!r} is not a list of texts with something in them")
    if row["kind"] not in KINDS:
        raise ValueError(f"key 'kind': {row['kind']!r} is not one of {', '.join(KINDS)}")
    if row["preferred"] == row["rejected"]:
        raise ValueError("key 'rejected': is the preferred reply once more")
    if row["id"] in ids:
        raise ValueError(f"key 'id': {row['id']!r} is there twice")
    ids.add(row["id"])
    return row


def _is_text(value) -> bool:
    return isinstance(value, str) and bool(value.strip())
