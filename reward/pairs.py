"""Labelled rows for the reward: what was known and said, an utterance, and how the other one took it.

    {"context", "response", "profile", "label", "disengaged", "kind", "source", "dialogue"[, "emotions"][, "pair"]}

`label` is the other one's emotion, DISENGAGED, or None where nothing is known of it but that they answered. `disengaged`
is the probability that they had nothing to say, from 0 to 1, or None for a comment without any answer; `emotions` are a
comment's own. `kind` is `true` (as it was said), `comment`, `rated`, or one of reward/negatives.py's, whose `pair` is the
index of the true row that they spoil.

What each source tells:
    sample, daily   the emotion of the next turn
    topical_chat    the emotion of the next turn, and the partner's rating of this one beside its dialogue's others
    openers         that somebody would answer: they were written for it
    contrasts       what is good at a moment; what is cold, gushing, generic or confused there is a negative
    rated           how gladly one would answer what a model said (RATED): the same style, with and without sense
    empathetic      that there was an answer; what the friend says when facts are known (data/profile.py: opener_readings)
    go_emotions     what 28 emotions look like in a text by itself
"""

import numpy as np

from data import emotions
from data.corpora import load_without_leaks
from data.dialogue import SPLITS, Dialogue, swap
from data.profile import opener_readings
from data.scenes import id_hash
from reward.emotions import ENDS, GO_EMOTIONS, RATED
from reward.feedback import feedback_rows
from reward.negatives import add_negatives

DIALOGUES = ("sample", "openers", "contrasts", "rated", "daily", "empathetic", "topical_chat")
SOURCES = (*DIALOGUES, "go_emotions")
FOLDS = ("all", "proxy", "gold")
CONTEXT_TURNS = 4


def load_rows(config, split: str) -> list[dict]:
    """Rows of one split by a RewardConfig, the same for the same seed. Raises ValueError where there are none.

    `max_rows` caps a source's true rows of training, `max_eval_samples` those of the other splits.
    """
    rng = np.random.default_rng([config.seed, SPLITS.index(split)])
    rows = []
    for source in config.sources:
        if source == "go_emotions":
            found = comment_rows(split, config.data_root, config.preset)
        else:
            dialogues = load_dialogues(source, split, config.data_root, config.fold)
            found = text_rows(dialogues) if config.preset == "text" else reaction_rows(dialogues)
        most = config.max_rows.get(source) if split == "train" else config.max_eval_samples
        times = config.repeats.get(source, 1) if split == "train" else 1
        rows += (whole_dialogues(found, most, rng) if most else found) * times
    if not rows:
        raise ValueError(f"split {split!r} of {config.sources} has no labelled rows: check the files it is read from")
    if config.preset == "reaction":
        rows = add_negatives(rows, config.negatives, rng)
    if config.feedback_file:
        rows += feedback_rows(config.feedback_file, split, CONTEXT_TURNS, config.feedback_repeats, start=len(rows))
    return rows


def whole_dialogues(rows: list[dict], most: int, rng: np.random.Generator) -> list[dict]:
    """The rows of dialogues drawn at random, order kept, cut at `most`: a row's neighbours are drawn with it."""
    names = list(dict.fromkeys(row["dialogue"] for row in rows))
    place = {names[j]: i for i, j in enumerate(rng.permutation(len(names)))}
    chosen = sorted(range(len(rows)), key=lambda i: (place[rows[i]["dialogue"]], i))[:most]
    return [rows[i] for i in sorted(chosen)]


def load_dialogues(source: str, split: str, root: str | None, fold: str = "all") -> list[Dialogue]:
    """A source's dialogues. A third of the training dialogues, by the hash of the id, belongs to the gold judge ("gold"),
    the others to the reward that PPO sees ("proxy"); "all" takes both. A scene's openers go with its dialogue."""
    dialogues = load_without_leaks(source, split, root)
    if split != "train" or fold == "all":
        return dialogues
    return [d for d in dialogues if (id_hash(d.id.split("#")[0]) % 3 == 0) == (fold == "gold")]


def context_of(dialogue: Dialogue, i: int) -> list[str]:
    """What the reward reads before turn i: up to CONTEXT_TURNS texts."""
    return [before.text for before in dialogue.turns[max(0, i - CONTEXT_TURNS) : i]]


def reaction_rows(dialogues: list[Dialogue]) -> list[dict]:
    """A row for every turn that has an answer, and one for every opener that can be read out of a dialogue.

    The profile is the person's, so it goes with the friend's turns alone. In a source that labels emotions, turns whose
    answer has none are left out. A short neutral answer that (nearly) ends the dialogue likely had nothing more to say.
    """
    rows = []
    for dialogue in dialogues:
        if dialogue.source in ("openers", "contrasts", "rated"):
            opener = dialogue.turns[-1]
            said = (opener.text, None, context_of(dialogue, len(dialogue.turns) - 1), dialogue.profile)
            row = _row(dialogue.source, dialogue.id.split("#")[0], *said)
            rows.append({**row, "kind": "rated", "disengaged": RATED[opener.rating]} if opener.rating else row)
            continue
        is_labelled = any(turn.emotion for turn in dialogue.turns)
        ratings = [turn.rating for turn in dialogue.turns if turn.rating]
        for i, (turn, answer) in enumerate(zip(dialogue.turns, dialogue.turns[1:], strict=False)):
            if is_labelled and answer.emotion is None:
                continue
            remaining = len(dialogue.turns) - (i + 2)
            ends = answer.emotion == "neutral" and len(answer.text.split()) <= 3 and remaining <= 1
            disengaged = rated_among(turn.rating, ratings) if turn.rating else ENDS if ends else 0.0
            profile = dialogue.profile if turn.speaker == "friend" else ()
            said = (turn.text, answer.emotion, context_of(dialogue, i), profile, disengaged)
            rows.append(_row(dialogue.source, dialogue.id, *said))
        if dialogue.source in ("daily", "empathetic"):  # the sample has openers of its own, Topical-Chat has topics
            sides = [dialogue] if dialogue.source == "empathetic" else [dialogue, swap(dialogue)]
            for reading in (reading for side in sides for reading in opener_readings(side)):
                answer = reading.turns[1].emotion if len(reading.turns) > 1 else None
                rows.append(_row(dialogue.source, dialogue.id, reading.turns[0].text, answer, profile=reading.profile))
    return rows


def rated_among(rating: int, ratings: list[int]) -> float:
    """The probability that the partner was disengaged by a turn, from its rating beside the others of its dialogue: one at
    their mean counts as good (4), since people differ in what they call good by more than turns do."""
    grade = 4 + rating - sum(ratings) / len(ratings)
    return float(np.interp(grade, sorted(RATED), [RATED[g] for g in sorted(RATED)]))


def _row(source, dialogue, response, label, context=(), profile=(), disengaged=0.0) -> dict:
    return {
        "context": list(context), "response": response, "profile": list(profile), "label": label,
        "disengaged": disengaged, "kind": "true", "source": source, "dialogue": dialogue,
    }  # fmt: skip


def text_rows(dialogues: list[Dialogue]) -> list[dict]:
    """Preset `text`: every labelled turn by itself, with its own emotion."""
    return [
        _row(d.source, d.id, turn.text, turn.emotion) for d in dialogues for turn in d.turns if turn.emotion is not None
    ]


def comment_rows(split: str, root: str | None, preset: str) -> list[dict]:
    """GoEmotions' comments. Preset `text`: those whose labels all fall into one of the seven emotions; else all, with
    their labels among the 28 as `emotions` and no reaction."""
    rows = []
    for number, (text, labels) in enumerate(emotions.load(split, root)):
        row = _row("go_emotions", f"go_emotions-{split}-{number}", text, None)
        if preset == "text":
            groups = {GO_EMOTIONS[label] for label in labels}
            if len(groups) == 1 and text:
                rows.append({**row, "label": groups.pop()})
        elif text:
            rows.append({**row, "kind": "comment", "disengaged": None, "emotions": labels})
    return rows
