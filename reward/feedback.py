"""Feedback as labelled rows (reward/pairs.py): what people liked beside what they disliked in its place.

A liked reply is a true row of kind `true`, whose person was engaged. A disliked one is of kind `disliked`, whose person
had nothing to say with a probability that grows with the votes against it; its `pair` is the liked reply to the same, or
None where nobody liked any: it still tells what was no good there.
"""

from itertools import groupby

from data.feedback import load, opinions
from data.scenes import id_hash
from reward.emotions import DISENGAGED

DISLIKED = "disliked"
#: Votes against -> the probability that the other one had nothing to say; more votes are as two. One is a talk that ended
#: (reward.emotions.ENDS says 0.6 of it too), two a thumb down, a retry or an edit.
VOTES_AGAINST = {1: 0.6, 2: 0.9}
#: Every so-manieth scene validates.
HELD_OUT = 5


def feedback_rows(path: str, split: str, context_turns: int, repeats: int = 1, start: int = 0) -> list[dict]:
    """Rows of the training or validation split (the test split has none), training's `repeats` times over; `pair`
    counts from `start`. ValueError names the file and the line of a bad row.

    Scenes in the order of their hash: each fifth one validates, so fewer than five train all together.
    """
    scenes = [list(scene) for _, scene in groupby(sorted(opinions(load(path)), key=_scene), key=_scene)]
    scenes.sort(key=lambda scene: id_hash(_scene(scene[0])))
    chosen = {
        "train": [scene for i, scene in enumerate(scenes) if i % HELD_OUT != HELD_OUT - 1] * repeats,
        "validation": scenes[HELD_OUT - 1 :: HELD_OUT],
    }.get(split, [])
    rows: list[dict] = []
    for scene in chosen:
        liked = [opinion for opinion in scene if opinion["votes"] > 0]
        first = start + len(rows)
        rows += [_row(opinion, context_turns, label=None, disengaged=0.0, kind="true") for opinion in liked]
        for opinion in scene:
            if opinion["votes"] < 0:
                disengaged = VOTES_AGAINST[min(-opinion["votes"], 2)]
                for pair in range(first, first + len(liked)) or [None]:
                    row = _row(opinion, context_turns, label=DISENGAGED, disengaged=disengaged, kind=DISLIKED)
                    rows.append({**row, "pair": pair})
    return rows


def _row(opinion: dict, context_turns: int, **labels) -> dict:
    return {
        "context": opinion["context"][-context_turns:], "response": opinion["response"], "profile": opinion["profile"],
        "source": "feedback", "dialogue": f"feedback-{id_hash(_scene(opinion)):016x}", **labels,
    }  # fmt: skip


def _scene(opinion: dict) -> str:
    return "\n".join([*opinion["profile"], "|", *opinion["context"]])
