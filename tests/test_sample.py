"""The sample that ships: what its card promises, checked row by row."""

import json
import re
from collections import Counter, defaultdict

import pytest

from data import sample
from data.dialogue import EMOTIONS, SPLITS
from data.friend import same_words
from data.scenes import load_scenes, profile_hash


@pytest.fixture(scope="module")
def dialogues():
    return [dialogue for split in SPLITS for dialogue in sample.load(split)]  # from_json checks each


@pytest.fixture(scope="module")
def scenes():
    return {split: load_scenes(sample.FOLDER / f"scenes_{split}.jsonl") for split in SPLITS}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def test_size_and_ids(dialogues):
    assert len(dialogues) >= 800
    assert len({dialogue.id for dialogue in dialogues}) == len(dialogues)
    assert all(re.fullmatch(r"sample-\d{4}", d.id) and d.source == "sample" for d in dialogues)
    for split in SPLITS:
        assert {d.split for d in sample.load(split)} == {split}


def test_shape_of_each_dialogue(dialogues):
    for dialogue in dialogues:
        speakers = [turn.speaker for turn in dialogue.turns]
        assert 4 <= len(speakers) <= 8, f"{dialogue.id}: {len(speakers)} turns"
        assert all(a != b for a, b in zip(speakers, speakers[1:], strict=False)), f"{dialogue.id}: not alternating"
        assert all(turn.emotion in EMOTIONS for turn in dialogue.turns), f"{dialogue.id}: a turn without emotion"
        assert 2 <= len(dialogue.profile) <= 4, f"{dialogue.id}: {len(dialogue.profile)} facts"
        assert all(turn.text == turn.text.strip() for turn in dialogue.turns), f"{dialogue.id}: stray spaces"


def test_balance(dialogues):
    openers = Counter(dialogue.turns[0].speaker for dialogue in dialogues)
    assert openers["friend"] >= len(dialogues) / 2
    assert len({dialogue.topic for dialogue in dialogues}) >= 80
    assert None not in {dialogue.topic for dialogue in dialogues}
    lengths = Counter(len(dialogue.turns) for dialogue in dialogues)
    assert all(lengths[n] >= 0.1 * len(dialogues) for n in range(4, 9)), lengths


def test_every_label_is_used(dialogues):
    for speaker, least in (("person", EMOTIONS), ("friend", ("neutral", "happiness", "surprise", "sadness"))):
        used = Counter(t.emotion for d in dialogues for t in d.turns if t.speaker == speaker)
        assert set(least) <= set(used), f"{speaker}: {used}"


def test_no_two_openers_share_a_six_word_run(dialogues):
    owners = defaultdict(set)
    for dialogue in dialogues:
        said = words(next(turn.text for turn in dialogue.turns if turn.speaker == "friend"))
        for i in range(len(said) - 5):
            owners[" ".join(said[i : i + 6])].add(dialogue.id)
    shared = {run: ids for run, ids in owners.items() if len(ids) > 1}
    assert not shared, shared


def test_nothing_is_there_twice(dialogues):
    assert max(Counter(map(same_words, dialogues)).values()) == 1


def test_no_profile_crosses_splits(dialogues):
    splits = defaultdict(set)
    for dialogue in dialogues:
        splits[profile_hash(dialogue.profile)].add(dialogue.split)
    assert all(len(found) == 1 for found in splits.values())


def test_scenes_are_the_dialogues_starts(dialogues, scenes):
    assert {split: len(found) for split, found in scenes.items()} == {"train": 500, "validation": 100, "test": 200}
    by_id = {dialogue.id: dialogue for dialogue in dialogues}
    for split, found in scenes.items():
        assert len({profile_hash(scene.profile) for scene in found}) == len(found)
        for scene in found:
            dialogue = by_id[scene.id]
            first = dialogue.turns[0]
            assert (dialogue.split, dialogue.profile) == (split, scene.profile)
            assert scene.greeting == (first.text if first.speaker == "person" else None)


def test_scene_profiles_are_unique_to_their_split(scenes):
    hashes = {split: {profile_hash(scene.profile) for scene in found} for split, found in scenes.items()}
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not hashes[a] & hashes[b]


def test_scene_rows_have_the_three_keys():
    for split in SPLITS:
        for line in (sample.FOLDER / f"scenes_{split}.jsonl").read_text(encoding="utf-8").splitlines():
            assert set(json.loads(line)) == {"id", "profile", "greeting"}
