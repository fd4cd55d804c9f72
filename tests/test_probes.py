"""The probes: what reward/probes.py promises of them, and how it refuses a broken file."""

import json
import re
from collections import Counter, defaultdict

import pytest

from data import sample
from data.dialogue import SPLITS
from data.scenes import profile_hash
from reward.probes import KINDS, load_probes

ROW = {"id": "warm-01", "kind": "warm", "profile": ["baker"], "context": [], "preferred": "Hello!", "rejected": "Go."}


@pytest.fixture(scope="module")
def probes():
    return load_probes()  # checks each row


@pytest.fixture(scope="module")
def dialogues():
    return [dialogue for split in SPLITS for dialogue in sample.load(split)]


def six_word_runs(text: str) -> set[tuple[str, ...]]:
    said = re.findall(r"[a-z0-9']+", text.lower())
    return {tuple(said[i : i + 6]) for i in range(len(said) - 5)}


def share(probes: list[dict], holds) -> float:
    """How often `holds` is true of the preferred reply alone, a tie counting half: what it alone would score."""
    wins = [(holds(p, "preferred", "rejected") - holds(p, "rejected", "preferred") + 1) / 2 for p in probes]
    return sum(wins) / len(wins)


def longer(probe: dict, one: str, other: str) -> bool:
    return len(probe[one]) > len(probe[other])


def asks_alone(probe: dict, one: str, other: str) -> bool:
    return "?" in probe[one] and "?" not in probe[other]


def test_enough_of_every_kind(probes):
    counts = Counter(probe["kind"] for probe in probes)
    assert len(probes) >= 150
    assert set(counts) == set(KINDS) and len(KINDS) == 14
    assert min(counts.values()) >= 10, counts


def test_ids_say_the_kind(probes):
    assert all(re.fullmatch(rf"{probe['kind']}-\d\d", probe["id"]) for probe in probes)


def test_openers_and_replies(probes):
    turns = Counter(len(probe["context"]) for probe in probes)
    assert set(turns) <= {0, 1, 2, 3}
    assert turns[0] >= len(probes) / 3 and turns[2] + turns[3] >= len(probes) / 5, turns
    assert all(6 <= len(probe["preferred"].split()) <= 25 for probe in probes)


def test_preferred_replies_share_no_six_word_run(probes, dialogues):
    owners = defaultdict(set)
    for probe in probes:
        for run in six_word_runs(probe["preferred"]):
            owners[run].add(probe["id"])
    shared = {run: ids for run, ids in owners.items() if len(ids) > 1}
    assert not shared, shared
    in_sample = {run for dialogue in dialogues for turn in dialogue.turns for run in six_word_runs(turn.text)}
    assert not owners.keys() & in_sample


def test_profiles_are_new(probes, dialogues):
    hashes = [profile_hash(tuple(probe["profile"])) for probe in probes]
    assert len(set(hashes)) == len(hashes)
    assert not set(hashes) & {profile_hash(dialogue.profile) for dialogue in dialogues}


def test_neither_length_nor_a_question_mark_explains_them(probes):
    assert 0.35 <= share(probes, longer) <= 0.65
    assert 0.35 <= share(probes, asks_alone) <= 0.65
    for kind in KINDS:
        assert 0.35 <= share([probe for probe in probes if probe["kind"] == kind], longer) <= 0.65, kind


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "wram"}, "'kind': 'wram' is not one of warm"),
        ({"preferred": " "}, "'preferred': ' ' is not a text"),
        ({"profile": "baker"}, "'profile': 'baker' is not a list"),
        ({"context": ["hi", ""]}, "'context'.* is not a list"),
        ({"rejected": ROW["preferred"]}, "'rejected': is the preferred"),
        ({"note": "x"}, "'note' is unknown"),
        ({"id": "warm-00"}, "'id': 'warm-00' is there twice"),
    ],
)
def test_a_broken_row_is_named(tmp_path, changes, message):
    rows = [{**ROW, "id": "warm-00"}, ROW | changes]
    path = tmp_path / "probes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"probes\.jsonl, line 2: key {message}"):
        load_probes(path)


@pytest.mark.parametrize("key", ROW)
def test_a_missing_key_is_named(tmp_path, key):
    path = tmp_path / "probes.jsonl"
    path.write_text(json.dumps({k: v for k, v in ROW.items() if k != key}), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"line 1: key '{key}' is missing"):
        load_probes(path)
