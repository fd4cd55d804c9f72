"""data/feedback.py, chat/feedback.py and what the reward learns from such rows. Not covered: people."""

import json
import multiprocessing
import stat

import pytest
from rich.console import Console

from chat.feedback import Feedback, main, report, wilson
from data.feedback import KINDS, load, opinions, pairs
from models.load import load_scorer
from reward import train
from reward.emotions import DISENGAGED, ENDS
from reward.feedback import DISLIKED as KIND
from reward.feedback import feedback_rows
from tests.test_reward import config_of, encoder, folder, tokenizer  # noqa: F401, fixtures

SAID = {"surface": "terminal", "model": "friend-ppo", "profile": ["keeps bees"], "context": []}


def row(kind="thumb_up", response="How are the bees?", **more):
    return {**SAID, "kind": kind, "response": response, **more}


def test_a_row_is_written_and_read_back(tmp_path):
    feedback = Feedback(tmp_path / "feedback.jsonl")
    written = [feedback.add(row(), "anna"), feedback.add(row("edit", instead="Hello!"), "anna")]
    assert load(feedback.path) == written
    assert written[0]["who"] == written[1]["who"] != feedback.add(row(), "ben")["who"]
    assert "anna" not in feedback.path.read_text()
    assert stat.S_IMODE(feedback.path.stat().st_mode) == 0o600


def test_the_salt_lies_beside_the_file_for_its_owner_alone_and_stays(tmp_path, monkeypatch):
    first, again = Feedback(tmp_path / "a.jsonl"), Feedback(tmp_path / "a.jsonl")
    assert stat.S_IMODE((tmp_path / "a.jsonl.salt").stat().st_mode) == 0o600
    assert first.who("anna") == again.who("anna") != Feedback(tmp_path / "b.jsonl").who("anna")
    monkeypatch.setenv("FEEDBACK_SALT", "salt")
    assert Feedback(tmp_path / "a.jsonl").who("anna") == Feedback(tmp_path / "c.jsonl").who("anna") != first.who("anna")
    assert not (tmp_path / "c.jsonl.salt").exists()


def test_forget_takes_one_person_out(tmp_path):
    feedback = Feedback(tmp_path / "feedback.jsonl")
    assert feedback.forget("anna") == 0
    for person in ("anna", "ben", "anna"):
        feedback.add(row(), person)
    assert feedback.forget("anna") == 2 and feedback.forget("anna") == 0
    feedback.add(row(), "ben")
    assert {r["who"] for r in load(feedback.path)} == {feedback.who("ben")} and len(load(feedback.path)) == 2


def test_a_half_written_row_spoils_no_other(tmp_path):
    feedback = Feedback(tmp_path / "feedback.jsonl")
    feedback.add(row(), "anna")
    with open(feedback.path, "a") as out:
        out.write('{"kind": "thumb_')
    feedback.add(row("ended"), "anna")
    lines = feedback.path.read_text().splitlines()
    assert [json.loads(line)["kind"] for line in (lines[0], lines[2])] == ["thumb_up", "ended"]
    with pytest.raises(ValueError, match=r"feedback.jsonl, line 2"):
        load(feedback.path)


def _write(path, person):
    feedback = Feedback(path)
    for _ in range(5):
        feedback.add(row(context=["long words " * 50]), person)
        feedback.forget("nobody" if person != "p0" else "p0")


def test_processes_write_at_once_and_lose_nothing(tmp_path):
    path = tmp_path / "feedback.jsonl"
    workers = [multiprocessing.get_context("fork").Process(target=_write, args=(path, f"p{i}")) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(load(path)) == 15  # p0 forgets its own


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "like"}, "kind is 'like'"),
        ({"response": " "}, "response"),
        ({"context": "hi"}, "context"),
        ({"profile": [1]}, "profile"),
        ({"instead": "x"}, "instead"),
        ({"kind": "edit"}, "instead"),
        ({"reply_seconds": -1}, "reply_seconds"),
        ({"reply_seconds": float("nan")}, "reply_seconds"),
        ({"reply_words": 1.5}, "reply_words"),
        ({"name": "anna"}, "unknown key 'name'"),
    ],
)
def test_a_wrong_key_is_named_and_nothing_written(tmp_path, change, named):
    feedback = Feedback(tmp_path / "feedback.jsonl")
    with pytest.raises(ValueError, match=named):
        feedback.add(row(**change), "anna")
    assert not feedback.path.exists()


def given(kind, response, who="anna", instead=None, context=()):
    return row(kind, response, who=who, instead=instead, context=list(context))


def test_pairs_are_of_one_scene_and_an_edit_is_one_by_itself():
    rows = [
        given("thumb_up", "good"), given("thumb_down", "bad"), given("retry", "again"), given("continued", "fine"),
        given("thumb_down", "elsewhere", context=["hi"]), given("edit", "said", instead="meant", context=["hi"]),
        given("ended", "left", context=["bye"]),
    ]  # fmt: skip
    found = {(liked["response"], disliked["response"]) for liked, disliked in pairs(rows)}
    assert found == {
        ("good", "bad"), ("good", "again"), ("fine", "bad"), ("fine", "again"),
        ("meant", "elsewhere"), ("meant", "said"),
    }  # fmt: skip


def test_a_persons_strongest_word_counts_once_and_people_are_added():
    assert opinions([given("continued", "a"), given("thumb_down", "a")])[0]["votes"] == -2
    assert opinions([given("thumb_up", "a")] * 5)[0]["votes"] == 2
    corrected = [given("thumb_up", "a"), given("thumb_down", "a"), given("thumb_up", "a")]
    assert [opinions(corrected[:n])[0]["votes"] for n in (1, 2, 3)] == [2, -2, 2]  # the last thumb is what they mean
    assert opinions([given("thumb_up", "a"), given("thumb_down", "a", who="ben")]) == []
    assert opinions([given("thumb_up", "a"), given("thumb_up", "a", who="ben")])[0]["votes"] == 4


def test_the_report_counts_and_gives_intervals(tmp_path, capsys):
    feedback = Feedback(tmp_path / "feedback.jsonl")
    for _ in range(3):
        feedback.add(row(), "anna")
    feedback.add(row("thumb_down", "Bees?", surface="page"), "ben")
    feedback.add(row("continued", reply_seconds=12.4, reply_words=7), "ben")
    console = Console(width=200, record=True)
    report(feedback.path, console)
    text = console.export_text()
    assert "5 rows of 2 people" in text and "1 pairs" in text
    terminal = next(line for line in text.splitlines() if "terminal" in line)
    assert "1.00 [0.44, 1.00]" in terminal and "12 s, 7 words" in terminal
    assert "0.75 [0.30, 0.95]" in next(line for line in text.splitlines() if "│ all" in line)
    main(["report", str(feedback.path)])
    assert "friend-ppo" in capsys.readouterr().out


def test_the_interval_is_wilsons():
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Newcombe 1998
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_every_kind_votes():
    assert all(opinions([given(kind, "a", instead="b" if kind == "edit" else None)]) for kind in KINDS)


# ------------------------------------------------------------------------------------------------ the reward


LIKED, DISLIKED = "how are your bees today?", "zzz buy more now"


def write(path, rows):
    feedback = Feedback(path)
    for i, line in enumerate(rows):
        feedback.add(line, f"person {i}")
    return str(path)


def test_rows_for_the_reward_stand_in_pairs(tmp_path):
    said = [row("thumb_up", LIKED), row("thumb_down", DISLIKED), row("ended", "~ well", context=["hi"])]
    path = write(tmp_path / "feedback.jsonl", said)
    liked, disliked, alone = sorted(feedback_rows(path, "train", 4, start=10), key=lambda r: r["response"])
    assert (liked["kind"], liked["disengaged"], liked["label"]) == ("true", 0.0, None)
    assert (disliked["kind"], disliked["disengaged"], disliked["label"]) == (KIND, 0.9, DISENGAGED)
    assert (alone["pair"], alone["disengaged"]) == (None, ENDS)
    rows = feedback_rows(path, "train", 4, repeats=2, start=10)
    assert len(rows) == 6 and all(rows[r["pair"] - 10]["response"] == LIKED for r in rows if r["response"] == DISLIKED)
    assert feedback_rows(path, "validation", 4) == feedback_rows(path, "test", 4) == []


def test_a_fifth_of_the_scenes_validates_and_none_is_in_both(tmp_path):
    said = [row(kind, kind, profile=[f"person {i}"]) for i in range(20) for kind in ("thumb_up", "thumb_down")]
    path = write(tmp_path / "feedback.jsonl", said)
    people = {s: {r["profile"][0] for r in feedback_rows(path, s, 4)} for s in ("train", "validation")}
    assert len(people["train"]) == 16 and len(people["validation"]) == 4 and not people["train"] & people["validation"]


def test_training_on_feedback_prefers_what_people_liked(folder, encoder):  # noqa: F811
    said = [
        row(kind, response, profile=[f"likes {thing}"])
        for thing in "abcdefghij"
        for kind, response in (("thumb_up", LIKED), ("thumb_down", DISLIKED))
    ]
    path = write(folder / "feedback.jsonl", said)
    settings = {"negatives": {}, "num_train_epochs": 12.0, "learning_rate": 1e-2, "use_peft": False, "eval_steps": 0.5}
    train.main(config_of(encoder, folder / "without", **settings))
    train.main(config_of(encoder, folder / "with", feedback_file=path, **settings))
    asked = [{"context": [], "response": said, "profile": ["likes bees"]} for said in (LIKED, DISLIKED)]
    gap = {}
    for run in ("without", "with"):
        score_B, _ = load_scorer(folder / run).score(asked)
        gap[run] = (score_B[0] - score_B[1]).item()
    assert gap["with"] > gap["without"] + 0.3 and gap["with"] > 0
    summary = json.loads((folder / "with" / "summary.json").read_text())
    assert summary["validation/true_above_disliked"] == 1.0
    assert "validation/true_above_disliked" not in json.loads((folder / "without" / "summary.json").read_text())


def test_a_bad_row_stops_training_by_file_line_and_key(folder, encoder):  # noqa: F811
    path = folder / "feedback.jsonl"
    write(path, [row()])
    path.write_text(path.read_text() + path.read_text().replace('"thumb_up"', '"like"'))
    with pytest.raises(ValueError, match=r"feedback.jsonl, line 2: kind is 'like'"):
        train.main(config_of(encoder, folder / "run", feedback_file=str(path)))


@pytest.mark.parametrize("change", [{"preset": "text"}, {"fold": "gold"}])
def test_a_reward_that_may_not_see_feedback_refuses_it(change):
    with pytest.raises(ValueError, match="feedback_file"):
        train.RewardConfig(feedback_file="feedback.jsonl", **change)
