"""The sample that ships: what its card promises, checked row by row."""

import json
import re
from collections import Counter, defaultdict

import pytest

from data import openers, sample
from data.corpora import same_words
from data.dialogue import EMOTIONS, SPLITS
from data.scenes import load_scenes, profile_hash


@pytest.fixture(scope="module")
def dialogues():
    return [dialogue for split in SPLITS for dialogue in sample.load(split)]  # from_json checks each


@pytest.fixture(scope="module")
def scenes():
    return {split: load_scenes(sample.FOLDER / f"scenes_{split}.jsonl") for split in SPLITS}


@pytest.fixture(scope="module")
def written():
    return {split: list(openers.load(split)) for split in SPLITS}


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


def test_every_scene_has_openers_of_its_own(written, scenes):
    of_scenes = {split: [o for o in found if o.id.startswith("sample-")] for split, found in written.items()}
    assert {split: len(found) for split, found in of_scenes.items()} == {"train": 1500, "validation": 100, "test": 200}
    for split, found in of_scenes.items():
        counts = Counter(opener.id.split("#")[0] for opener in found)
        assert counts == {scene.id: 3 if split == "train" else 1 for scene in scenes[split]}
        by_id = {scene.id: scene for scene in scenes[split]}
        for opener in found:
            scene = by_id[opener.id.split("#")[0]]
            before = [turn.text for turn in opener.turns[:-1]]
            assert (opener.profile, before) == (scene.profile, [scene.greeting] if scene.greeting else [])


def test_written_openers_are_short_plain_and_each_its_own(written):
    owners = defaultdict(set)
    for opener in (opener for found in written.values() for opener in found):
        text = opener.turns[-1].text
        assert opener.turns[-1].speaker == "friend" and text == text.strip() and text[-1] in ".?!", text
        assert 4 <= len(text.split()) <= 20 and text.count("?") <= 1, text
        said = words(text)
        for i in range(len(said) - 6):  # six words may be a stock frame: "how long does it take you"
            owners[" ".join(said[i : i + 7])].add(opener.id)
    shared = {run: ids for run, ids in owners.items() if len(ids) > 1}
    assert not shared, shared


def test_most_written_openers_take_up_a_word_of_their_scene(written):
    for found in written.values():
        grounded = 0
        for opener in found:
            known = {w[:5] for text in (*opener.profile, *(t.text for t in opener.turns[:-1])) for w in words(text)}
            grounded += any(len(w) > 3 and w[:5] in known for w in words(opener.turns[-1].text))
        assert grounded > 0.9 * len(found)


def test_the_people_with_openers_of_their_own_are_nobody_elses(written, dialogues):
    people = [opener for opener in written["train"] if opener.id.startswith("person-")]
    assert len(people) >= 1500 and len({person.id for person in people}) == len(people)
    others = {profile_hash(dialogue.profile) for dialogue in dialogues}
    assert not others & {profile_hash(person.profile) for person in people}
    assert 0.25 < sum(len(person.turns) == 2 for person in people) / len(people) < 0.6  # who have greeted first


def test_more_openers_are_for_people_of_their_own_and_repeat_nothing_held_out(written, dialogues):
    more = list(openers.load_more("train"))
    assert len(more) >= 7000 and not [d for split in ("validation", "test") for d in openers.load_more(split)]
    profiles = {profile_hash(person.profile) for person in more}
    assert len(profiles) == len(more)
    assert not profiles & {profile_hash(d.profile) for d in (*dialogues, *(o for s in SPLITS for o in written[s]))}
    assert 0.4 < sum(len(person.turns) == 2 for person in more) / len(more) < 0.6  # who have greeted first
    said = [d for d in dialogues if d.split != "train"] + written["validation"] + written["test"]
    held_out = {run for d in said for turn in d.turns for run in runs_of_six(turn.text)}
    assert not held_out & {run for person in more for turn in person.turns for run in runs_of_six(turn.text)}
    lengths = [len(person.turns[-1].text.split()) for person in more]
    assert min(lengths) >= 4 and max(lengths) <= 22
    questions = sum("?" in person.turns[-1].text for person in more) / len(more)
    assert 0.7 < questions < 0.9


def runs_of_six(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + 6]) for i in range(len(found) - 5)}


def test_every_graded_opener_has_its_scene_and_a_grade(scenes):
    for split in SPLITS:
        rated = list(openers.load_rated(split))
        assert len(rated) >= 150 and len({opener.id for opener in rated}) == len(rated)
        assert {opener.turns[-1].rating for opener in rated} == {1, 2, 3, 4, 5}
        assert not any(turn.rating for opener in rated for turn in opener.turns[:-1])
        profiles = {scene.id: scene.profile for scene in scenes[split]}
        of_scenes = [opener for opener in rated if opener.id.startswith("sample-")]
        assert all(opener.profile == profiles[opener.id.split("#")[0]] for opener in of_scenes)
        assert split == "train" or len(of_scenes) == len(rated)


def test_no_graded_opener_is_taught(written):
    graded = {
        (o.profile, o.turns[-1].text) for split in SPLITS for o in openers.load_rated(split) if o.turns[-1].rating < 4
    }
    assert not graded & {(o.profile, o.turns[-1].text) for found in written.values() for o in found}


def test_a_broken_opener_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "FOLDER", tmp_path)
    (tmp_path / "scenes_test.jsonl").write_text('{"id": "a", "profile": ["is tall"], "greeting": null}\n')
    for line, told in (('{"scene_id": "b", "opener": "Hi."}', "scene 'b'"), ('{"scene_id": "a"}', "keys")):
        (tmp_path / "openers_test.jsonl").write_text(line + "\n")
        with pytest.raises(ValueError, match=f"openers_test.jsonl.*line 1.*{told}"):
            list(openers.load("test"))


def test_scene_rows_have_the_three_keys():
    for split in SPLITS:
        for line in (sample.FOLDER / f"scenes_{split}.jsonl").read_text(encoding="utf-8").splitlines():
            assert set(json.loads(line)) == {"id", "profile", "greeting"}
