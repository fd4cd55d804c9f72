"""Labelled rows for the reward: {"context", "response", "profile", "label", "kind", "dialogue"[, "pair"]}.

kind is `true` (as it was said), `swapped` (the reply of another dialogue in its place; for an opener, the opener of
another profile) or `corrupted` (words shuffled, cut off mid sentence, a phrase repeated). The last two are labelled
disengaged, and `pair` is the index of the true row that they spoil.
"""

import numpy as np

from data import daily, emotions, sample
from data.dialogue import EMOTIONS, SPLITS, Dialogue
from reward.emotions import DISENGAGED, GO_EMOTIONS

DIALOGUES = {"sample": lambda split, root: sample.load(split), "daily": daily.load}
SOURCES = (*DIALOGUES, "go_emotions")
CONTEXT_TURNS = 4


def load_rows(config, split: str) -> list[dict]:
    """Rows of one split by a RewardConfig, the same for the same seed. Raises ValueError where there are none."""
    rows = []
    for source in config.sources:
        if source == "go_emotions":
            rows += comment_rows(split, config.data_root)
            continue
        dialogues = list(DIALOGUES[source](split, config.data_root))
        if split == "train":  # 310 dialogues of DailyDialog's train repeat a held-out one word for word
            held_out = {_texts(d) for other in SPLITS[1:] for d in DIALOGUES[source](other, config.data_root)}
            dialogues = [d for d in dialogues if _texts(d) not in held_out]
        rows += reaction_rows(dialogues) if config.preset == "reaction" else text_rows(dialogues)
    if not rows:
        raise ValueError(f"split {split!r} of {config.sources} has no labelled rows: check the files it is read from")
    rng = np.random.default_rng([config.seed, SPLITS.index(split)])
    if split == "train":
        rows = at_most_per_label(rows, config.max_per_label or len(rows), rng)
    elif config.max_eval_samples and len(rows) > config.max_eval_samples:
        rows = [rows[i] for i in sorted(rng.choice(len(rows), config.max_eval_samples, replace=False))]
    if config.preset == "reaction":
        rows += swapped_rows(rows, config.swapped_ratio, rng) + corrupted_rows(rows, config.corrupted_ratio, rng)
    return rows


def reaction_rows(dialogues: list[Dialogue]) -> list[dict]:
    """A row for every turn that has a next one; the label is the next turn's emotion.

    The profile is the person's, so it goes with the friend's turns alone. Turns whose successor has no label are left
    out. A short neutral answer that (nearly) ends the dialogue means that the other one had nothing more to say.
    """
    rows = []
    for dialogue in dialogues:
        for i, (turn, answer) in enumerate(zip(dialogue.turns, dialogue.turns[1:], strict=False)):
            if answer.emotion is None:
                continue
            remaining = len(dialogue.turns) - (i + 2)
            ends = answer.emotion == "neutral" and len(answer.text.split()) <= 3 and remaining <= 1
            rows.append(
                {
                    "context": [before.text for before in dialogue.turns[max(0, i - CONTEXT_TURNS) : i]],
                    "response": turn.text,
                    "profile": list(dialogue.profile) if turn.speaker == "friend" else [],
                    "label": DISENGAGED if ends else answer.emotion,
                    "kind": "true",
                    "dialogue": dialogue.id,
                }
            )
    return rows


def text_rows(dialogues: list[Dialogue]) -> list[dict]:
    """Preset `text`: every labelled turn by itself, with its own emotion."""
    return [_alone(t.text, t.emotion, d.id) for d in dialogues for t in d.turns if t.emotion is not None]


def comment_rows(split: str, root: str | None) -> list[dict]:
    """GoEmotions' comments whose labels all fall into one of the seven emotions; the others are left out."""
    rows = []
    for number, (text, labels) in enumerate(emotions.load(split, root)):
        groups = {GO_EMOTIONS[label] for label in labels}
        if len(groups) == 1 and text:
            rows.append(_alone(text, groups.pop(), f"go_emotions-{split}-{number}"))
    return rows


def at_most_per_label(rows: list[dict], most: int, rng: np.random.Generator) -> list[dict]:
    """At most `most` rows of each label, drawn at random, order kept: balance and time in one."""
    kept = set()
    for label in (*EMOTIONS, DISENGAGED):
        with_label = [i for i, row in enumerate(rows) if row["label"] == label]
        kept.update(with_label if len(with_label) <= most else rng.choice(with_label, most, replace=False).tolist())
    return [row for i, row in enumerate(rows) if i in kept]


def swapped_rows(rows: list[dict], ratio: float, rng: np.random.Generator) -> list[dict]:
    """ratio x rows with the response of another dialogue. Openers are swapped for openers and replies for replies, so
    that the place alone gives nothing away; rows with neither profile nor context fit anything and are left alone."""
    swapped = []
    fitting = [i for i, row in enumerate(rows) if row["context"] or row["profile"]]
    for i in _draw(fitting, ratio, rng):
        row = rows[i]
        other = next((rows[j] for j in rng.integers(len(rows), size=100) if _may_replace(rows[j], row)), None)
        if other:  # else, in a tiny split: no dialogue of this form among a hundred draws
            swapped.append({**row, "response": other["response"], "label": DISENGAGED, "kind": "swapped", "pair": i})
    return swapped


def corrupted_rows(rows: list[dict], ratio: float, rng: np.random.Generator) -> list[dict]:
    """ratio x rows whose response of six words or more no longer reads as English."""
    corrupted = []
    long_enough = [i for i, row in enumerate(rows) if len(row["response"].split()) >= 6]
    for i in _draw(long_enough, ratio, rng):
        words = rows[i]["response"].split()
        how = rng.integers(3)
        if how == 0:
            words = rng.permutation(words).tolist()
        elif how == 1:
            words = words[: rng.integers(2, len(words) - 2)]
        else:
            start, length = rng.integers(len(words) - 3), rng.integers(2, 5)
            phrase = words[start : start + length]
            words = words[:start] + phrase * int(rng.integers(3, 6)) + words[start + length :]
        corrupted.append({**rows[i], "response": " ".join(words), "label": DISENGAGED, "kind": "corrupted", "pair": i})
    return corrupted


def _draw(indices: list[int], ratio: float, rng: np.random.Generator) -> list[int]:
    """round(ratio x n) of the n indices; each once before any comes twice."""
    count = round(ratio * len(indices))
    rounds = [rng.permutation(indices) for _ in range(-(-count // max(len(indices), 1)))]
    return [int(i) for i in np.concatenate(rounds)[:count]] if rounds else []


def _may_replace(other: dict, row: dict) -> bool:
    alike = bool(other["context"]) == bool(row["context"]) and bool(other["profile"]) == bool(row["profile"])
    return alike and other["dialogue"] != row["dialogue"] and other["response"] != row["response"]


def _alone(text: str, label: str, dialogue: str) -> dict:
    return {"context": [], "response": text, "profile": [], "label": label, "kind": "true", "dialogue": dialogue}


def _texts(dialogue: Dialogue) -> tuple[str, ...]:
    return tuple(turn.text for turn in dialogue.turns)
