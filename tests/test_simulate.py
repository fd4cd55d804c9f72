"""experiments/simulate.py on the tiny friend: who says what to whom, and what is counted.

Not covered: how like a person a trained simulated one is.
"""

import json
import shutil

import pytest
import torch

from data.dialogue import Dialogue, Turn
from data.emotions import LABELS
from data.scenes import Scene
from experiments.simulate import (
    Arm,
    SimulateConfig,
    arm_of,
    converse,
    gains,
    load_person,
    load_speaker,
    main,
    read,
    summarise,
)
from models.load import load_scorer

SCENES = [Scene("bees", ("keeps bees", "is 71")), Scene("hello", (), "Hello, you."), Scene("both", ("swims",), "Hi!")]
#: Text -> what FakeGold hears in it: an emotion, and how disengaged it is.
HEARD = {"great!": ("joy", 0.1), "oh no": ("sadness", 0.2), "ok": ("neutral", 0.9), "half": ("joy", 0.5)}


class FakeGold:
    """A scorer's interface: hears what HEARD says, and keeps the rows that it was asked about."""

    labels = ["neutral", "happiness", "disengaged"]
    preset = "reaction"

    def __init__(self):
        self.rows = []

    def score(self, rows):
        self.rows += rows
        p_B = torch.tensor([HEARD.get(row["response"], ("joy", 0.0))[1] for row in rows])
        return -p_B, torch.stack([1 - p_B, 0 * p_B, p_B], 1)

    def emotions(self, rows):
        found = torch.zeros(len(rows), len(LABELS))
        for i, row in enumerate(rows):
            assert row["context"] == []
            found[i, LABELS.index(HEARD.get(row["response"], ("neutral", 0))[0])] = 1.0
        return found


class Likes:
    """A proxy that likes long texts."""

    preset, labels = "reaction", ["disengaged"]

    def __init__(self):
        self.rows = []

    def score(self, rows):
        self.rows += rows
        return torch.tensor([float(len(row["response"])) for row in rows]), torch.ones(len(rows), 1)

    def emotions(self, rows):  # whoever says "no" is sad
        found = torch.zeros(len(rows), len(LABELS))
        for i, row in enumerate(rows):
            found[i, LABELS.index("sadness")] = float("no" in row["response"])
        return found


def config(**settings):
    given = {
        "arms": ["x"],
        "person_path": "x",
        "gold_model_path": "x",
        "output_dir": "x",
        "turns": 2,
        "max_new_tokens": 6,
    }
    return SimulateConfig(**given | settings)


@pytest.fixture(scope="module")
def friend(friend_adapter):
    return load_speaker(friend_adapter, 1.0, max_new_tokens=6)


@pytest.fixture(scope="module")
def person(friend_base):
    return load_person(friend_base, 1.0, max_new_tokens=6)


def row(scene_id="bees", person=("great!", "ok"), greeting=None, sample=0):
    texts = [f"friend {i}" for i in range(len(person))]
    said = {"friend": texts, "person": list(person)}
    return {"arm": "a", "scene_id": scene_id, "sample": sample, "greeting": greeting, **said}


# ------------------------------------------------------------------------------------------ talks


def test_each_side_hears_all_that_was_said_and_knows_the_profile(friend, person, monkeypatch):
    heard = []
    for speaker in (friend, person):

        def next_(talks, instructions, keys, seed, role=speaker.role, real=speaker.next):
            heard.append((role, talks[2], instructions[2], real(talks, instructions, keys, seed)[2]))
            return real(talks, instructions, keys, seed)

        monkeypatch.setattr(speaker, "next", next_)
    rows = converse(Arm("a", "x"), friend, person, SCENES, turns=2)
    assert [(r["scene_id"], len(r["friend"]), len(r["person"])) for r in rows] == [(s.id, 2, 2) for s in SCENES]
    assert [role for role, *_ in heard] == ["friend", "person", "friend", "person"]
    turns = [("person", "Hi!")]
    for role, talk, _, said in heard:
        assert [(turn.speaker, turn.text) for turn in talk.turns] == turns and talk.profile == ("swims",)
        turns.append((role, said))
    assert turns[1:] == [(role, rows[2][role][i]) for i in range(2) for role in ("friend", "person")]


def test_the_person_reads_the_chat_with_its_own_turns_as_the_assistants(person):
    talk = Dialogue("x", "simulated", "test", (Turn("person", "aa"), Turn("friend", "bb")), ("swims",))
    text = person.tokenizer.decode(person._prompt(talk, "Be kind."))
    assert (
        text.replace(" ", "")
        == "<|system|>Bekind.\nAboutthem:swims.<|end|><|friend|>aa<|end|><|person|>bb<|end|><|friend|>"
    )


def test_the_noise_is_the_scenes_own_whatever_the_batch(friend, person, monkeypatch):
    rows = converse(Arm("a", "x"), friend, person, SCENES, samples=2, turns=2)
    for speaker in (friend, person):
        monkeypatch.setattr(speaker, "batch_size", 2)
    assert converse(Arm("a", "x"), friend, person, SCENES, samples=2, turns=2) == rows
    assert rows[0]["friend"] != rows[1]["friend"]
    assert converse(Arm("a", "x"), friend, person, SCENES, samples=2, turns=2, seed=2) != rows


def test_best_of_n_takes_what_the_proxy_likes_at_every_turn(friend, person):
    proxy = Likes()
    one = converse(Arm("a", "x"), friend, person, SCENES, turns=2)
    best = converse(Arm("a", "x", candidates=8), friend, person, SCENES, turns=2, proxy=proxy)
    asked = [proxy.rows[i : i + 8] for i in range(0, len(proxy.rows), 8)]
    assert len(asked) == 2 * len(SCENES)
    for i, of_scene in enumerate(asked[:3]):
        assert of_scene[0]["response"] == one[i]["friend"][0]  # the first candidate is what one would have been
        assert best[i]["friend"][0] == max((r["response"] for r in of_scene), key=len)
    assert asked[2][0]["context"] == ["Hi!"] and asked[2][0]["profile"] == ["swims"]
    assert asked[5][0]["context"] == ["Hi!", best[2]["friend"][0], best[2]["person"][0]]


def test_the_threshold_arm_is_told_to_comfort_whom_it_heard_sad(friend, person, monkeypatch):
    given = []
    real = friend.next
    monkeypatch.setattr(friend, "next", lambda t, i, k, s: given.append(list(i)) or real(t, i, k, s))
    monkeypatch.setattr(person, "next", lambda t, i, k, s: ["oh no"] * len(t))
    rows = converse(Arm("a", "x", use_mood=True), friend, person, SCENES, turns=2, emotions=Likes())
    assert [r["moods"] for r in rows] == [["general", "comfort"]] * 3
    assert given[0] == [friend.instruction] * 3
    assert all("comfort them" in text and text.startswith(friend.instruction) for text in given[1])


def test_openers_from_elsewhere_begin_the_talk(friend, person):
    openers = {scene.id: [f"Hello {scene.id}."] for scene in SCENES}
    rows = converse(Arm("human", "x"), friend, person, SCENES, turns=2, openers=openers)
    assert [r["friend"][0] for r in rows] == [openers[s.id][0] for s in SCENES]


def test_a_long_talk_loses_its_oldest_turns(friend, person):
    long = Scene("long", ("swims",), "word " * 300)
    with pytest.raises(ValueError, match="exceeds the model's context"):
        converse(Arm("a", "x"), friend, person, [Scene("p", ("likes plums " * 200,))], turns=2)
    rows = converse(Arm("a", "x"), friend, person, [long], turns=2, openers={"long": ["you"]})
    assert len(rows[0]["person"]) == 2  # each side has forgotten the greeting


# ------------------------------------------------------------------------------------------ what is counted


def test_measures_by_hand():
    gold = FakeGold()
    [found] = read([row(person=("great!", "oh no", "ok"), greeting="Hi!")], gold, FakeGold())
    assert found["disengaged"] == pytest.approx([0.1, 0.2, 0.9])
    second = 0.7 / 1.7 - 1 / 1.7  # joy one message back, sadness now
    third = (0.49 - 0.7) / 2.19
    assert found["cumulative"] == pytest.approx([1.0, second, third])
    assert found["cumulative_final"] == pytest.approx(third)
    assert found["cumulative_mean"] == pytest.approx((1.0 + second + third) / 3)
    assert found["engaged"] == pytest.approx(2 / 3) and found["turns_until_disengaged"] == 2
    assert found["emotions"][1]["sadness"] == 1.0 and set(found["emotions"][0]) == set(LABELS)
    # Each reply is read in its place, by the last four turns, without the person's profile.
    assert [r["response"] for r in gold.rows] == ["great!", "oh no", "ok"]
    assert gold.rows[0]["context"] == ["Hi!", "friend 0"]
    assert gold.rows[2]["context"] == ["great!", "friend 1", "oh no", "friend 2"]
    assert all(r["profile"] == [] for r in gold.rows)


def test_half_is_not_engaged_and_a_talk_without_an_end_counts_all():
    rows = read([row(person=("half", "great!")), row(person=("great!", "great!"))], FakeGold(), FakeGold())
    assert [r["engaged"] for r in rows] == [0.5, 1.0]
    assert [r["turns_until_disengaged"] for r in rows] == [0, 2]


def test_summary_and_gain_are_over_scenes():
    good, bad = ("great!", "great!"), ("ok", "ok")
    ours = read(
        [row("s1", good), row("s1", good, sample=1), row("s1", bad, sample=2), row("s2", good)], FakeGold(), FakeGold()
    )
    theirs = read([row("s1", bad), row("s2", good)], FakeGold(), FakeGold())
    assert summarise(ours)["engaged"]["mean"] == pytest.approx((2 / 3 + 1) / 2)
    assert (summarise(ours)["talks"], summarise(ours)["scenes"]) == (4, 2)
    gain = gains(ours, theirs)["engaged"]
    assert gain["mean"] == pytest.approx(1 / 3) and gain["low"] <= gain["mean"] <= gain["high"]
    with pytest.raises(ValueError, match="'s1' is on one side alone"):
        gains(ours, theirs[1:])


# ------------------------------------------------------------------------------------------ bad input and the command


def test_bad_input_is_refused(friend_base, tiny_scorer, tmp_path):
    assert arm_of("runs/a+mood+best4") == Arm("runs/a+mood+best4", "runs/a", True, 4)
    for name in ("a+best0", "a+nice"):
        with pytest.raises(ValueError, match="neither .mood nor .bestN"):
            arm_of(name)
    with pytest.raises(ValueError, match="turns is 0"):
        config(turns=0)
    with pytest.raises(ValueError, match="no disengaged"):
        read([row()], load_scorer(tiny_scorer), FakeGold())
    untaught = FakeGold()
    untaught.emotions = lambda rows: torch.full((len(rows), len(LABELS)), 0.5)
    with pytest.raises(ValueError, match="head for emotions was never trained"):
        read([row()], FakeGold(), untaught)
    run = tmp_path / "sft-s1"
    shutil.copytree(friend_base, run / "model")
    (run / "lineage.json").write_text("{}")
    (run / "config.json").write_text('{"role": "friend"}')
    with pytest.raises(ValueError, match="learnt the friend's turns"):
        load_person(str(run))


def test_the_command_writes_rows_and_a_summary(friend_adapter, friend_base, tmp_path, capsys):
    scenes = [{"id": s.id, "profile": list(s.profile), "greeting": s.greeting} for s in SCENES]
    (tmp_path / "scenes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scenes))
    arms = [friend_adapter, f"{friend_adapter}+mood", f"{friend_adapter}+best2"]
    settings = {"person_path": friend_base, "gold_model_path": "friend-reward", "output_dir": str(tmp_path / "out")}
    main(config(arms=arms, scenes_file=str(tmp_path / "scenes.jsonl"), **settings))
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert list(summary) == arms and "gain" not in summary[arms[0]] and summary[arms[2]]["gain"]["engaged"]
    for name in arms:
        lines = (tmp_path / "out" / f"{name.replace('/', '-')}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == 3 and all(0 <= r["engaged"] <= 1 and -1 <= r["cumulative_final"] <= 1 for r in rows)
        assert all(len(r.get("moods", [])) == (2 if name == arms[1] else 0) for r in rows)
