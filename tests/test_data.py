"""data/: cleaning, loaders on tiny files in the hub's columns, the friend's mixture and its counts, scenes, bad input.

The counts of the real corpora are checked where ICEBREAKER_DATA names them. Not covered: reading from the hub itself.
"""

import errno
import functools
import json
import lzma
import os
from dataclasses import replace

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import daily, emotions, empathetic, sample
from data.__main__ import main
from data.corpora import LOADERS, same_words
from data.dialogue import ACTS, EMOTIONS, SPLITS, Dialogue, Turn, from_json, merge_runs, messages, swap, to_json
from data.friend import examples_of, mixture
from data.profile import derive_profile, facts_of, opener_readings
from data.scenes import Scene, load_scenes, profile_hash, prompt_messages, scene_from_json, scenes_of
from data.source import data_root, read_jsonl, read_table, write_whole
from data.text import detokenise, from_empathetic, normalise


@pytest.fixture(autouse=True)
def no_stale_rows(tmp_path, monkeypatch):
    """`datasets` keeps what it reads: these tests' files are read into their own folder, not the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# ------------------------------------------------------------------------------------------------ text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (
            "Say , Jim , how about going for a few beers after dinner ?",
            "Say, Jim, how about going for a few beers after dinner?",
        ),
        ("I don ' t know . I ' m sure they ' ll come .", "I don't know. I'm sure they'll come."),
        ("Good.Let ' s go now .", "Good. Let's go now."),
        ("I guess you are right.But what shall we do ?", "I guess you are right. But what shall we do?"),
        ("Can you help ?Can you ?", "Can you help? Can you?"),
        ("Well . . . I am not sure .", "Well... I am not sure."),
        ("Wait ... what ?", "Wait... what?"),
        ("Really ? ! That's impossible !", "Really?! That's impossible!"),
        ("He lives in the U.S. and likes it .", "He lives in the U.S. and likes it."),
        ("The U . S . economy", "The U.S. economy"),
        ("Come at 10 : 30 a . m .", "Come at 10:30 a.m."),
        ("It grew by 3.5 percent , or 1,000 people .", "It grew by 3.5 percent, or 1,000 people."),
        ("It costs $ 3.50 , the other £ 330 .", "It costs $3.50, the other £330."),
        ("See you at 7 o ' clock , ma ' am .", "See you at 7 o'clock, ma'am."),
        ("push-ups ( 30 of them ) a minute", "push-ups (30 of them) a minute"),
        ('He said , " I am fine . " and left .', 'He said, "I am fine." and left.'),
        ("' Hello , ' he said .", "'Hello,' he said."),
        ("the dogs ' owner and the teacher ' s pen", "the dogs' owner and the teacher's pen"),
        ("I ’ m “ fine ” — thanks", 'I\'m "fine" - thanks'),
        ("100 % sure", "100% sure"),
        ("Mr.Smith is here .", "Mr. Smith is here."),
        ("  spaces \u00a0 and\ttabs ", "spaces and tabs"),
        ("", ""),
    ],
)
def test_detokenise(raw, clean):
    assert detokenise(raw) == clean
    assert detokenise(clean) == clean  # clean text stays as it is


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("in love with_comma_ or just a best friend?", "in love with, or just a best friend?"),
        ("yes_comma_no", "yes, no"),
        ("wow _comma_ really", "wow, really"),
        ("I won 1_comma_000 dollars", "I won 1,000 dollars"),
        ("there were_comma_200 of us", "there were, 200 of us"),
        ("It’s  fine", "It's fine"),
    ],
)
def test_from_empathetic(raw, clean):
    assert from_empathetic(raw) == clean


@given(st.text())
@settings(derandomize=True, max_examples=200)
def test_cleaning_settles_spaces_and_keeps_letters(text):
    for clean in (normalise, detokenise):
        out = clean(text)
        assert "  " not in out and out == out.strip()
        assert [c for c in out if c.isalnum()] == [c for c in text if c.isalnum()]


# ------------------------------------------------------------------------------------------------ schema

texts = st.text(min_size=1, max_size=30).filter(lambda text: text.strip())


@st.composite
def dialogues(draw):
    first = draw(st.integers(0, 1))
    turns = tuple(
        Turn(
            ("person", "friend")[(first + i) % 2],
            draw(texts),
            draw(st.sampled_from((None, *EMOTIONS))),
            draw(st.sampled_from((None, *ACTS))),
        )
        for i in range(draw(st.integers(1, 6)))
    )
    profile = tuple(draw(st.lists(texts, max_size=3)))
    return Dialogue(draw(texts), "made", draw(st.sampled_from(SPLITS)), turns, profile, draw(st.none() | texts))


@given(dialogues())
@settings(derandomize=True, max_examples=100)
def test_json_round_trip(dialogue):
    line = to_json(dialogue)
    assert "\n" not in line
    assert from_json(json.loads(line)) == dialogue


@given(dialogues())
@settings(derandomize=True, max_examples=50)
def test_swap_exchanges_the_sides(dialogue):
    other = swap(dialogue)
    assert [turn.text for turn in other.turns] == [turn.text for turn in dialogue.turns]
    assert all(a.speaker != b.speaker for a, b in zip(dialogue.turns, other.turns, strict=True))
    assert other.profile == () and other.id != dialogue.id
    assert messages(dialogue, "", "person")[-1]["role"] == messages(other, "")[-1]["role"]


def made(*turns: str, **fields) -> Dialogue:
    """A dialogue of "P: text" or "F: text" lines."""
    speakers = {"P": "person", "F": "friend"}
    fields = {"id": "made-1", "source": "made", "split": "train", **fields}
    return Dialogue(turns=tuple(Turn(speakers[turn[0]], turn[3:]) for turn in turns), **fields)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (made("P: hi", "P: there"), "turn 1: person speaks twice"),
        (made("P: hi", "F:  "), "turn 1: text is empty"),
        (made(), "no turns"),
        (made("P: hi", split="dev"), "split is 'dev'"),
        (made("P: hi", profile=("",)), "empty fact"),
        (replace(made("P: hi"), turns=(Turn("bot", "hi"),)), "speaker is 'bot'"),
        (replace(made("P: hi"), turns=(Turn("person", "hi", "joy"),)), "emotion is 'joy'"),
        (replace(made("P: hi"), turns=(Turn("person", "hi", None, "ask"),)), "act is 'ask'"),
    ],
)
def test_check_names_dialogue_and_field(wrong, message):
    with pytest.raises(ValueError, match=f"'made-1'.*{message}"):
        wrong.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"turns": None}, "made-1"),
        ({"mood": "good"}, "mood"),
        ({"profile": "has a dog"}, "not a list of facts"),
        ({"turns": [{"speaker": "person"}]}, "text"),
    ],
)
def test_from_json_names_the_key(change, message):
    row = {**json.loads(to_json(made("P: hi", "F: hello"))), **change}
    with pytest.raises(ValueError, match=message):
        from_json(row)
    del row["turns"]
    with pytest.raises(ValueError, match="turns"):
        from_json({**row, "profile": []})


def test_merge_runs_joins_one_speakers_turns():
    turns = [Turn("person", "Hi.", "neutral"), Turn("person", "Guess what?", "happiness"), Turn("friend", "What?")]
    assert merge_runs(turns) == (Turn("person", "Hi. Guess what?", "happiness"), Turn("friend", "What?"))


# ------------------------------------------------------------------------------------------------ files


def test_read_jsonl_names_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3: .*--skip_bad_rows"):
        list(read_jsonl(path, skip_bad_rows=False))
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3: (?!.*skip_bad_rows)"):  # who calls has no such flag
        list(read_jsonl(path))
    path.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(ValueError, match=r"line 2: is a JSON list"):
        list(read_jsonl(path))
    path.write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(ValueError, match=r"line 1: .*utf-8"):
        list(read_jsonl(path))


def test_skip_bad_rows_sets_them_aside_and_counts(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\nbroken\n{"b": 2}\n{"a": 3}\n7')

    def needs_a(row):
        if "a" not in row:
            raise ValueError("no a")
        return row["a"]

    assert list(read_jsonl(path, skip_bad_rows=True, parse=needs_a)) == [1, 3]
    assert (tmp_path / "rows.jsonl.bad").read_text() == 'broken\n{"b": 2}\n7\n'
    assert "3 broken rows" in capsys.readouterr().out


def test_read_jsonl_reads_xz(tmp_path):
    path = tmp_path / "rows.jsonl.xz"
    path.write_bytes(lzma.compress('{"a": "é"}\n'.encode()))
    assert list(read_jsonl(path)) == [{"a": "é"}]


@pytest.mark.parametrize("fails_in", ["fsync", "rename"])
def test_write_whole_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch, fails_in):
    path = tmp_path / "deep" / "file.txt"
    write_whole(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if fails_in == "fsync" else (type(path), "replace")), full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [found.name for found in path.parent.iterdir()] == ["file.txt"]  # no half of the new one either


# ------------------------------------------------------------------------------------------------ loaders


def write_parquet(root, repo: str, split: str, rows: list[dict]) -> None:
    (root / repo).mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / repo / f"{split}.parquet")


def empathetic_rows(conv_id: str, context: str, prompt: str, *utterances: str) -> list[dict]:
    shared = {"conv_id": conv_id, "context": context, "prompt": prompt, "selfeval": "", "tags": ""}
    return [
        {**shared, "utterance_idx": i, "speaker_idx": 7 + i % 2, "utterance": u} for i, u in enumerate(utterances, 1)
    ]


def daily_row(*utterances: str, emotion: int = 0, labels: int | None = None) -> dict:
    labels = len(utterances) if labels is None else labels
    return {"dialog": list(utterances), "act": [1] * labels, "emotion": [emotion] * labels}


@pytest.fixture
def corpora(tmp_path):
    """Both corpora, each split small and with something to drop for every rule."""
    beach = ("Shall we go to the beach ?", "Yes , let ' s !")
    rows = {
        "train": [
            *empathetic_rows(
                "t:1", "joyful", "I got a new dog_comma_ a puppy.", "I got a dog_comma_ yay!", "Which breed?"
            ),
            *empathetic_rows("t:2", "furious", "They stole my bike.", "My bike is gone.", "Oh no."),
            *empathetic_rows("t:3", "sad", "My cat died last week.", "Only one turn here."),
            *empathetic_rows("t:4", "proud", "My son won a prize.", "My son won!", "", "He really did.", "Great!"),
        ],
        "validation": empathetic_rows("v:1", "sad", "My cat died last week.", "My cat died.", "I'm sorry."),
        "test": empathetic_rows("e:1", "lonely", "I live alone on a farm.", "It's quiet.", "Very?"),
    }
    for split, found in rows.items():
        write_parquet(tmp_path, empathetic.REPO, split, found)
    rows = {
        "train": [
            daily_row("Hello .", "Hi .", "I have two dogs at home ."),
            daily_row("I hate it .", "Me too .", emotion=1),
            daily_row("One .", "Two .", "Three .", labels=2),
            daily_row("Alone ."),
            daily_row("hello", "hi!", "I have two dogs at home"),  # the first again, tokenised another way
            daily_row(*beach),  # the test's
            daily_row("It's quiet.", "Very?"),  # EmpatheticDialogues' test
        ],
        "validation": [daily_row("Good day .", "Good day to you .", emotion=4), daily_row(*beach)],
        "test": [daily_row(*beach, emotion=6), daily_row("It's quiet.", "Very?", emotion=3)],
    }
    for split, found in rows.items():
        write_parquet(tmp_path, daily.REPO, split, found)
    return str(tmp_path)


def test_empathetic_loader(corpora):
    first, *_, last = empathetic.load("train", corpora)
    assert [(turn.speaker, turn.text) for turn in first.turns] == [
        ("person", "I got a dog, yay!"),
        ("friend", "Which breed?"),
    ]
    assert (first.id, first.topic, first.profile) == ("t:1", "joyful", ("got a new dog, a puppy",))
    # the empty second utterance falls out and the speaker's two turns become one
    assert [turn.text for turn in last.turns] == ["My son won! He really did.", "Great!"]


def test_daily_loader_keeps_a_row_with_more_utterances_than_labels(corpora):
    found = list(daily.load("train", corpora))
    assert [turn.emotion for turn in found[1].turns] == ["anger", "anger"]
    assert [turn.emotion for turn in found[2].turns] == ["neutral", "neutral", None]
    assert [turn.act for turn in found[2].turns] == ["inform", "inform", None]
    assert [turn.speaker for turn in found[2].turns] == ["person", "friend", "person"]


def test_goemotions_loader(tmp_path):
    write_parquet(tmp_path, emotions.REPO, "test", [{"text": "Thanks,  [NAME]!", "labels": [15, 27], "id": "x"}])
    assert list(emotions.load("test", str(tmp_path))) == [("Thanks, [NAME]!", ["gratitude", "neutral"])]
    assert len(set(emotions.LABELS)) == 28
    write_parquet(tmp_path, emotions.REPO, "train", [{"text": "Hm", "labels": [28], "id": "y"}])
    with pytest.raises(ValueError, match="'y'"):
        list(emotions.load("train", str(tmp_path)))


@pytest.mark.parametrize("module", [empathetic, daily, emotions])
def test_a_missing_column_is_named(tmp_path, module):
    *others, last = module.COLUMNS
    write_parquet(tmp_path, module.REPO, "train", [dict.fromkeys(others, "x")])
    with pytest.raises(ValueError, match=f"column '{last}' is missing"):
        list(module.load("train", str(tmp_path)))


def test_missing_data_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"train\.parquet is missing"):
        read_table(daily.REPO, "train", daily.COLUMNS, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nowhere.*ICEBREAKER_DATA"):
        data_root(str(tmp_path / "nowhere"))
    monkeypatch.setenv("ICEBREAKER_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.delenv("ICEBREAKER_DATA")
    assert data_root() is None


# ------------------------------------------------------------------------------------------------ profiles


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("I have two dogs.", ["has two dogs"]),
        ("I'm a nurse in Leeds.", ["is a nurse in Leeds"]),
        ("My car broke down. We moved to a new city.", ["their car broke down", "moved to a new city"]),
        ("I really study every evening!", ["studies every evening"]),
        ("I was late, because I was in my garden.", ["was late, because they were in their garden"]),
        ("I've been working in a bakery.", ["has been working in a bakery"]),
        ("I have a boat, do you?", []),  # a question
        ("I think my car is broken.", []),  # the talk
        ("I'm sure about my answer.", []),
        ("I like your new car.", []),  # the partner
        ("I gave it to her yesterday.", []),  # someone and something named before
        ("I am here.", []),  # too short
        ("I skedaddle along the road.", []),  # a verb that no list knows
        ("The weather is nice today.", []),
        ("", []),
    ],
)
def test_facts_of(text, facts):
    assert facts_of(text) == facts


def test_derive_profile_reads_the_person_alone():
    dialogue = made(
        "P: I have two dogs. I have two dogs.",
        "F: I have a red boat.",
        "P: I live in Leeds. My son is ten. I'm a nurse there in town. I play chess badly.",
    )
    assert derive_profile(dialogue) == ("has two dogs", "lives in Leeds", "their son is ten")
    assert derive_profile(swap(dialogue)) == ("has a red boat",)
    assert derive_profile(dialogue, most=1) == ("has two dogs",)


# ------------------------------------------------------------------------------------------------ the mixture


def test_clean_mixture(corpora):
    splits, counts = mixture("clean", ("empathetic", "daily"), corpora)
    for count in counts:
        assert count.rows_in == count.kept + count.dropped.total()
    told = {(c.source, c.split): (c.rows_in, c.kept, dict(c.dropped), c.examples) for c in counts}
    assert told == {
        ("empathetic", "train"): (4, 2, {"filter": 1, "short": 1}, 2),
        ("empathetic", "validation"): (1, 1, {}, 1),
        ("empathetic", "test"): (1, 1, {}, 1),
        ("daily", "train"): (7, 1, {"filter": 1, "labels": 1, "short": 1, "repeated": 1, "held out": 2}, 2),
        ("daily", "validation"): (2, 1, {"held out": 1}, 2),
        ("daily", "test"): (2, 1, {"filter": 1}, 2),
    }
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 4, "validation": 3, "test": 3}
    for split, examples in splits.items():
        assert {dialogue.split for dialogue in examples} == {split}


def test_clean_mixture_drops_a_repetition_across_sources(corpora, tmp_path):
    write_parquet(
        tmp_path, daily.REPO, "train", [daily_row("I got a dog , yay !", "Which breed ?"), daily_row("Hey", "Yes ?")]
    )
    _, counts = mixture("clean", ("empathetic", "daily"), corpora)
    assert next(c.dropped for c in counts if (c.source, c.split) == ("daily", "train")) == {"repeated": 1}


def test_the_friend_opens_in_half_of_daily(corpora):
    splits, _ = mixture("clean", ("daily",), corpora)
    for examples in splits.values():
        assert [dialogue.turns[0].speaker for dialogue in examples] == ["person", "friend"] * (len(examples) // 2)
    asked, asking = splits["train"]
    assert asked.profile == ("has two dogs at home",)  # the person who says so
    assert asking.profile == ()  # the other side's person says "Hi." alone


def test_original_mixture_glues_test_to_train_and_removes_no_repetition(corpora):
    splits, counts = mixture("original", ("empathetic", "daily"), corpora)
    assert set(splits) == {"train", "validation"}
    told = {(c.source, c.split): (c.rows_in, c.kept, dict(c.dropped)) for c in counts}
    assert told["empathetic", "train"] == (4, 3, {"filter": 1})
    assert told["daily", "train"] == (7, 6, {"filter": 1})
    assert len(splits["train"]) == 3 + 1 + 6 + 1
    for dialogue in splits["train"] + splits["validation"]:
        assert all(turn.speaker == ("friend" if i % 2 else "person") for i, turn in enumerate(dialogue.turns))
        assert dialogue.profile == ()


def test_the_sample_is_added_as_written(corpora):
    splits, counts = mixture("clean", ("sample", "daily"), corpora)
    for split in SPLITS:
        written = list(sample.load(split))
        assert splits[split][: len(written)] == written
    assert all(c.kept == c.rows_in == c.examples for c in counts if c.source == "sample")


def test_mixture_refuses_what_it_does_not_know(corpora):
    with pytest.raises(ValueError, match="preset is 'dirty'"):
        mixture("dirty", ("daily",), corpora)
    with pytest.raises(ValueError, match="'weekly'"):
        mixture("clean", ("daily", "weekly"), corpora)
    with pytest.raises(ValueError, match="sample"):
        mixture("original", ("sample",), corpora)


def test_an_empty_split_is_an_error(corpora, tmp_path):
    write_parquet(tmp_path, daily.REPO, "validation", [daily_row("I hate it .", "Me too .", emotion=1)])
    with pytest.raises(ValueError, match=r"the validation split is empty: daily 1 rows, dropped \{'filter': 1\}"):
        mixture("clean", ("daily",), corpora)


def test_same_words():
    assert same_words(made("P: Let's go!", "F: OK.")) == same_words(made("P: let ' s", "F: go ok"))
    assert same_words(made("P: Let's go!")) != same_words(made("P: Let's not go!"))


def test_both_sides_only_where_nobody_is_the_friend():
    assert len(examples_of(made("P: hi", "F: hello", source="sample"))) == 1
    assert len(examples_of(made("P: hi", "F: hello", source="daily"))) == 2


def test_the_friend_opens_a_second_example_where_the_person_told_facts():
    told = made("P: I lied to my girlfriend.", "F: Why did you lie to her?", "P: Fear.", source="empathetic")
    first, second = examples_of(told)
    assert first == told and second.turns == told.turns[1:] and second.profile == ("lied to their girlfriend",)
    assert len(examples_of(made("P: hi", "F: hello there, how are you?", source="empathetic"))) == 1


def test_an_opener_reading_starts_at_every_answer_to_facts():
    told = made(
        "P: Well.", "F: Yes, what is it now?", "P: I bought a house. I love my dog.", "F: That is a lot at once!",
        "P: I hate rain.", "F: Why?", "P: I have two cats.",
    )  # fmt: skip
    (reading,) = opener_readings(told)  # "Why?" is too short, after the last turn comes none
    assert reading.profile == ("bought a house", "loves their dog") and reading.turns == told.turns[3:]
    assert reading.check().turns[0].speaker == "friend"


# ------------------------------------------------------------------------------------------------ scenes


def test_scenes_are_checked(tmp_path):
    path = tmp_path / "scenes.jsonl"
    good = '{"id": "a", "profile": ["has a dog"], "greeting": null}\n{"id": "b", "profile": [], "greeting": "hey"}\n'
    path.write_text(good)
    assert load_scenes(path) == [Scene("a", ("has a dog",)), Scene("b", (), "hey")]
    bad = '{"id": "c", "profile": [], "greeting": null}\n'
    path.write_text(good + bad)
    with pytest.raises(ValueError, match=r"scenes\.jsonl, line 3: scene 'c' has neither profile nor greeting"):
        load_scenes(path)
    assert len(load_scenes(path, skip_bad_rows=True)) == 2
    assert (tmp_path / "scenes.jsonl.bad").read_text() == bad
    path.write_text(good + good)
    with pytest.raises(ValueError, match="'a' is there 2 times"):
        load_scenes(path)
    path.write_text("")
    with pytest.raises(ValueError, match="no scenes"):
        load_scenes(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"profile": ["has a dog"]}, "without id"),
        ({"id": "a", "profile": "has a dog"}, "not a list"),
        ({"id": "a", "profile": ["has a dog", " "]}, "empty fact"),
        ({"id": "a", "profile": ["has a dog"], "greeting": " "}, "greeting"),
        ({"id": "a", "facts": ["has a dog"]}, "'facts'"),
    ],
)
def test_a_bad_scene_names_what_is_wrong(row, message):
    with pytest.raises(ValueError, match=message):
        scene_from_json(row)


def test_prompt_messages():
    system = {"role": "system", "content": "Be kind.\nAbout them: has a dog; is ten."}
    assert prompt_messages(Scene("a", ("has a dog", "is ten.")), "Be kind.") == [system]
    assert prompt_messages(Scene("a", ("has a dog", "is ten."), "hey"), "Be kind.") == [
        system,
        {"role": "user", "content": "hey"},
    ]
    assert prompt_messages(Scene("a", (), "hey"), "") == [{"role": "user", "content": "hey"}]


def test_derived_scenes_share_no_profile(corpora):
    found = {split: scenes_of("empathetic", split, corpora) for split in SPLITS}
    assert {split: [scene.id for scene in scenes] for split, scenes in found.items()} == {
        "train": ["t:1", "t:4"],  # t:2 is furious, t:3 has validation's profile
        "validation": ["v:1"],
        "test": ["e:1"],
    }
    hashes = [profile_hash(scene.profile) for scenes in found.values() for scene in scenes]
    assert len(set(hashes)) == len(hashes)


def test_most_chooses_by_id_alone():
    chosen = scenes_of("sample", "train", most=20)
    assert len(chosen) == 20
    everything = scenes_of("sample", "train")
    assert set(chosen) < set(scenes_of("sample", "train", most=40)) < set(everything)
    assert set(chosen) != set(sorted(everything, key=lambda scene: scene.id)[:20])  # ids follow the topics
    with pytest.raises(ValueError, match="'daily'"):
        scenes_of("daily", "train")


def test_profile_hash_knows_the_same_facts():
    assert profile_hash(["Has a dog.", "is ten"]) == profile_hash(("is ten", "has a dog"))
    assert profile_hash(["has a dog"]) != profile_hash(["has a dog", "is ten"])


# ------------------------------------------------------------------------------------------------ python -m data


def test_the_table_adds_up(corpora, capsys):
    main(["--data_root", corpora])
    out = capsys.readouterr().out
    row = next(line.replace(",", "").split() for line in out.splitlines() if line.split()[:2] == ["daily", "train"])
    rows, kept, *dropped, examples = map(int, row[2:])
    assert rows == kept + sum(dropped) == 7 and examples == 2
    assert "sample" in out and "\nsystem: " in out and "\nfriend: " in out and "\nperson: " in out


def test_without_data_the_table_is_the_samples(monkeypatch, capsys):
    monkeypatch.delenv("ICEBREAKER_DATA", raising=False)
    main([])
    out = capsys.readouterr().out
    assert "sample" in out and "daily" not in out
    with pytest.raises(SystemExit, match="source 'weekly'"):
        main(["--sources", "weekly"])


# ------------------------------------------------------------------------------------------------ the real corpora


@pytest.fixture(scope="module")
def real():
    """The real corpora, each split read once."""
    if not os.environ.get("ICEBREAKER_DATA"):
        pytest.skip("needs the real corpora: set ICEBREAKER_DATA")
    with pytest.MonkeyPatch.context() as patch:
        for name, module in (("empathetic", empathetic), ("daily", daily)):
            load = functools.cache(lambda split, root=None, load=module.load: tuple(load(split, root)))
            patch.setattr(module, "load", load)
            patch.setitem(LOADERS, name, load)
        yield


def kept(counts, source: str) -> list[int]:
    return [next(c.kept for c in counts if (c.source, c.split) == (source, split)) for split in SPLITS]


@pytest.mark.slow
def test_original_counts(real):
    """DailyDialog's are the original recipe's own; it kept 7,490 / 1,160 / 1,098 of the hub's EmpatheticDialogues."""
    splits, counts = mixture("original", ("empathetic", "daily"))
    assert kept(counts, "daily") == [9_874, 889, 863]
    assert kept(counts, "empathetic") == [8_209, 1_163, 1_100]
    assert {split: len(found) for split, found in splits.items()} == {"train": 20_046, "validation": 2_052}


def test_clean_counts(real):
    splits, counts = mixture("clean", ("empathetic", "daily"))
    dropped = next(c.dropped for c in counts if (c.source, c.split) == ("daily", "train"))
    assert (dropped["held out"], dropped["labels"]) == (310, 1)
    assert kept(counts, "daily") == [8_923, 873, 860]
    assert kept(counts, "empathetic") == [8_208, 1_163, 1_100]
    words = {split: {same_words(d) for d in found} for split, found in splits.items()}
    assert not words["train"] & (words["validation"] | words["test"]) and not words["validation"] & words["test"]


def test_real_scenes_share_no_profile(real):
    found = {split: {profile_hash(s.profile) for s in scenes_of("empathetic", split)} for split in SPLITS}
    assert all(len(hashes) > 300 for hashes in found.values())
    assert not found["train"] & (found["validation"] | found["test"]) and not found["validation"] & found["test"]
    greeted = sum(scene.greeting is not None for scene in scenes_of("empathetic", "train"))
    assert 0.45 < greeted / len(found["train"]) < 0.55
