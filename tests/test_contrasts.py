"""data/sample/contrasts_*.jsonl: five lines for a moment, one good and four wrong there, which differ in sense and tone.

Not covered: that each line is what it is filed as, which only a reader can tell.
"""

import json
from collections import Counter

import numpy as np
import pytest

from data import contrasts, openers, sample
from data.dialogue import SPLITS
from data.scenes import id_hash, load_scenes
from reward.emotions import DISENGAGED
from reward.negatives import KINDS, add_negatives
from reward.pairs import reaction_rows
from reward.probes import load_probes
from tests.test_unwelcome import runs

LINES = ("good", *contrasts.KINDS)
RUN = 8  # as many words in a row in two lines are a template, not chance


@pytest.fixture(scope="module")
def moments():
    return {split: list(contrasts._rows(split)) for split in SPLITS}


@pytest.fixture(scope="module")
def lines(moments):
    return {kind: [row[kind] for rows in moments.values() for row in rows] for kind in LINES}


def test_each_split_has_its_own_moments(moments):
    assert {split: len(rows) for split, rows in moments.items()} == {"train": 640, "validation": 120, "test": 120}
    ids = [row["id"] for rows in moments.values() for row in rows]
    assert len(set(ids)) == len(ids)
    for split, rows in moments.items():
        known = {dialogue.id for dialogue in sample.load(split)} | {scene.id for scene in scenes(split)}
        known |= {opener.id for opener in openers.load(split) if split == "train"}
        assert {row["id"] for row in rows} <= known


def scenes(split):
    return load_scenes(sample.FOLDER / f"scenes_{split}.jsonl")


def test_the_moments_are_those_of_their_dialogues_and_scenes(moments):
    for split, rows in moments.items():
        dialogues = {dialogue.id: dialogue for dialogue in sample.load(split)}
        opened = {
            scene.id: (list(scene.profile), [scene.greeting] if scene.greeting else []) for scene in scenes(split)
        }
        for opener in openers.load(split):
            opened[opener.id] = (list(opener.profile), [turn.text for turn in opener.turns[:-1]])
        for row in rows:
            as_opened = opened.get(row["id"]) == (row["profile"], row["context"])
            turns = [turn.text for turn in dialogues[row["id"]].turns] if row["id"] in dialogues else []
            size = len(row["context"])
            assert as_opened or any(turns[i : i + size] == row["context"] for i in range(len(turns))), row["id"]


def test_gold_has_no_moment_of_its_own_among_them(moments):
    """The reward that PPO sees learns from them; the other third of the dialogues is gold's."""
    assert not [row["id"] for row in moments["train"] if id_hash(row["id"]) % 3 == 0]


def test_neither_length_nor_question_marks_tell_the_kinds_apart(moments, lines):
    for kind, texts in lines.items():
        words = [len(text.split()) for text in texts]
        assert all(4 <= n <= 30 for n in words) and 14 <= np.mean(words) <= 17, (kind, np.mean(words))
        assert 0.4 <= np.mean([text.endswith("?") for text in texts]) <= 0.6, kind
    every = [row for rows in moments.values() for row in rows]
    longest = Counter(max(LINES, key=lambda kind: len(row[kind].split())) for row in every)
    assert all(0.1 <= longest[kind] / len(lines["good"]) <= 0.35 for kind in LINES), longest


def test_exclamation_marks_are_as_the_card_says(lines):
    """Gushing has more of them than good lines, the others have fewer: alone they tell a little."""
    exclaims = {kind: np.mean(["!" in text for text in texts]) for kind, texts in lines.items()}
    assert 0.2 <= exclaims["good"] <= 0.3 and 0.45 <= exclaims["gushing"] <= 0.6, exclaims
    assert all(0.05 <= exclaims[kind] <= 0.15 for kind in ("cold", "generic", "confused")), exclaims


def test_no_line_is_made_by_a_template(lines):
    seen = {}
    for kind in LINES:
        if kind != "generic":  # what could be said to anybody repeats itself
            for number, text in enumerate(lines[kind]):
                for run in set(runs(text, RUN)):
                    assert seen.setdefault(run, (kind, number)) == (kind, number), " ".join(run)


def test_no_line_shares_six_words_with_a_probe(lines):
    asked = {run for probe in load_probes() for key in ("preferred", "rejected") for run in runs(probe[key])}
    for texts in lines.values():
        assert not [text for text in texts if asked & set(runs(text))]


def test_the_wrong_lines_stand_in_place_of_the_good_one():
    rows = reaction_rows(list(contrasts.load("validation")))
    assert {row["kind"] for row in rows} == {"true"} and {row["disengaged"] for row in rows} == {0.0}
    other = {**rows[0], "source": "sample"}  # has no wrong lines of its own
    made = add_negatives([*rows, other], {"cold": 1.0, "confused": 0.5}, np.random.default_rng(0))[len(rows) + 1 :]
    assert Counter(row["kind"] for row in made) == {"cold": 120, "confused": 60}
    worse = contrasts.worse_lines()
    for row in made:
        true = rows[row["pair"]]
        assert (row["context"], row["profile"], row["dialogue"]) == (true["context"], true["profile"], true["dialogue"])
        assert row["response"] == worse[row["dialogue"]][row["kind"]]
        assert (row["label"], row["disengaged"]) == (DISENGAGED, KINDS[row["kind"]])


def test_a_bad_row_is_named(tmp_path, monkeypatch):
    row = {"id": "a", "profile": [], "context": [], **dict.fromkeys(LINES, "A line.")}
    monkeypatch.setattr(sample, "FOLDER", tmp_path)
    for bad, message in (({**row, "cold": " "}, "'cold'"), ({**row, "rude": "x"}, "rude")):
        (tmp_path / "contrasts_train.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(bad) + "\n")
        with pytest.raises(ValueError, match=f"contrasts_train.jsonl.*2.*{message}"):
            list(contrasts.load("train"))
