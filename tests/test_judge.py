"""experiments/judge.py and judge_human.py against a judge on loopback, and their numbers by hand.

Not covered: whether a real judge agrees with people.
"""

import itertools
import json
import os
import pty
import re
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from data.scenes import Scene
from experiments import judge_human
from experiments.judge import (
    Cache,
    Judge,
    JudgeConfig,
    JudgeError,
    Pair,
    compare,
    grade,
    grade_numbers,
    grade_of,
    length_controlled,
    load_openers,
    main,
    openers_file,
    pair_numbers,
    pair_up,
    retry_after,
    verdict_of,
    verdict_row,
)
from experiments.judge_human import HumanConfig
from tests.fake_judge import FakeJudge

ROOT = Path(__file__).parent.parent
SCENES = [Scene(f"s{i}", ("keeps bees",), "Hello." if i % 2 else None) for i in range(60)]


def pairs_of(n=12, run="The run's {i}?", against="The other's {i}, which has more words."):
    return [Pair(scene, 0, run.format(i=i), against.format(i=i)) for i, scene in enumerate(SCENES[:n])]


def first_of(prompt: str) -> str:
    return re.search(r'Message 1:\n"(.*)"', prompt)[1]


def likes_run(prompt: str) -> str:
    """Prefers the run's opener in every pair, and grades it 8, the other 5."""
    if "Message 1:" not in prompt:
        return "Fine. Rating: [[8]]" if "The run's" in prompt else "[[5]]"
    return "It is about them. [[1]]" if "The run's" in first_of(prompt) else "[[2]]"


@pytest.fixture
def ask(tmp_path):
    """A Judge for a fake one, impatient; one cache for all of a test."""

    def judge(fake, **settings):
        settings = {"api_key": fake.key, "pause": 0.01, "retries": 3, "timeout": 5.0} | settings
        return Judge(fake.url, "j-1", Cache(tmp_path / "answers.jsonl"), **settings)

    return judge


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The directory of a finished run with openers for 12 scenes; no endpoint in the environment."""
    for name in ("JUDGE_BASE_URL", "JUDGE_MODEL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    directory = tmp_path / "ppo-s1"
    directory.mkdir()
    scenes = [{"id": s.id, "profile": list(s.profile), "greeting": s.greeting} for s in SCENES[:12]]
    (directory / "scenes_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scenes))
    for name, side in (("ppo", "run"), ("sft", "against")):
        rows = [{"scene_id": p.scene.id, "sample": 0, "opener": getattr(p, side), "score": 1.0} for p in pairs_of()]
        (directory / f"openers_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


# ------------------------------------------------------------------------------------------ the endpoint


def test_a_judge_that_likes_the_run_gives_it_every_pair(ask):
    with FakeJudge(likes_run) as fake:
        judge, pairs = ask(fake), pairs_of()
        numbers, grades = pair_numbers(pairs, compare(judge, pairs)), grade_numbers(grade(judge, pairs))
    assert numbers["win_rate"] == {"rate": 1.0, "low": 1.0, "high": 1.0}
    assert (numbers["consistency"], numbers["first_slot_rate"], numbers["invalid_rate"]) == (1.0, 0.5, 0.0)
    assert numbers["words"] == -4.0 and numbers["length_controlled"] is None  # always four words shorter
    assert grades["grade"]["difference"]["rate"] == 3.0 and grades["grade"]["run"]["rate"] == 8.0
    assert len(fake.prompts) == 4 * 12 and all(body["temperature"] == 0 for body in fake.bodies)
    assert {body["model"] for body in fake.bodies} == {"j-1"}


def test_a_judge_that_likes_the_first_place_is_seen_through_by_the_other_order(ask):
    """Of 50 pairs it truly prefers the run's in 24 and the other's in 9, and in 17 always the first it reads."""

    def partial(prompt):
        i = int(re.search(r"\d+", first_of(prompt))[0])
        if i < 17:
            return "[[1]]"
        return "[[1]]" if (i < 41) == ("The run's" in first_of(prompt)) else "[[2]]"

    with FakeJudge(partial) as fake:
        pairs = pairs_of(50)
        numbers = pair_numbers(pairs, compare(ask(fake), pairs))
    assert numbers["unswapped"] == pytest.approx(0.82)
    assert numbers["win_rate"]["rate"] == pytest.approx((24 + 8.5) / 50)  # 0.65
    assert numbers["win_rate"]["low"] < 0.65 < numbers["win_rate"]["high"] < 0.82
    assert numbers["consistency"] == pytest.approx(33 / 50)
    assert numbers["first_slot_rate"] == pytest.approx((34 + 33) / 100)


def test_openers_of_the_same_words_are_a_tie_that_nobody_is_asked_about(ask):
    with FakeJudge(likes_run) as fake:
        pairs = [*pairs_of(2), Pair(SCENES[5], 0, "Same  here.", "Same here. ")]
        numbers = pair_numbers(pairs, compare(ask(fake), pairs))
    assert len(fake.prompts) == 4
    assert numbers["win_rate"]["rate"] == pytest.approx(2.5 / 3)
    assert numbers["consistency"] == 1.0


def test_nonsense_is_counted_and_left_out(ask):
    def mostly(prompt):
        return "I cannot choose." if "other's 3" in prompt else likes_run(prompt)

    with FakeJudge(mostly) as fake:
        judge, pairs = ask(fake), pairs_of(4)
        numbers, grades = pair_numbers(pairs, compare(judge, pairs)), grade_numbers(grade(judge, pairs))
    assert (numbers["judged"], numbers["pairs"], numbers["invalid_rate"]) == (3, 4, 0.25)
    assert numbers["win_rate"]["rate"] == 1.0
    assert grades["grade_invalid_rate"] == pytest.approx(1 / 8) and grades["grade"]["run"]["rate"] == 8.0


def test_nothing_but_nonsense_gives_no_rate(ask):
    with FakeJudge(lambda prompt: "[[maybe]]") as fake:
        judge, pairs = ask(fake), pairs_of(3)
        numbers, grades = pair_numbers(pairs, compare(judge, pairs)), grade_numbers(grade(judge, pairs))
    assert numbers["win_rate"] is None and numbers["length_controlled"] is None and numbers["invalid_rate"] == 1.0
    assert grades["grade"] == {"run": None, "against": None, "difference": None}


def test_limits_errors_silence_and_broken_bodies_are_asked_again(ask):
    troubles = [
        (429, {"Retry-After": "0.2"}), 500, 503, 9.0, b"<html>gateway</html>", b'{"choices": []}',
        b'{"choices": [{"message": {"content": [1]}}]}',
    ]  # fmt: skip
    seen = []

    def trouble(prompt):
        seen.append(time.monotonic())
        return troubles[len(seen) - 1] if len(seen) <= len(troubles) else "[[tie]]"

    with FakeJudge(trouble) as fake:
        answers = ask(fake, retries=8, timeout=1.0, parallel=1).answers(["?"], "x")
    assert answers == ["[[tie]]"] and len(seen) == len(troubles) + 1
    assert seen[1] - seen[0] >= 0.2  # what Retry-After asked for, not the 0.01 of the backoff


def test_requests_at_a_time_are_bounded(ask):
    turn, together = itertools.count(), threading.Barrier(3)

    def slow(prompt):
        if next(turn) < 3:
            together.wait(4)  # until all three are there
        time.sleep(0.02)  # time for a fourth, if one were sent
        return "[[1]]"

    with FakeJudge(slow) as fake:
        ask(fake, parallel=3).answers([f"{i}?" for i in range(20)], "x")
    assert fake.most == 3


def test_a_judge_that_dies_halfway_loses_nothing(ask):
    pairs, turn = pairs_of(), itertools.count()
    with FakeJudge(lambda prompt: likes_run(prompt) if next(turn) < 9 else 500) as fake:
        judge = ask(fake, parallel=2)
        with pytest.raises(JudgeError, match="stopped answering: HTTP 500, 4 times.*the same command goes on"):
            compare(judge, pairs)
        kept = len(judge.cache.path.read_text().splitlines())
        assert kept == 9
        # A kill in the middle of a line costs that line alone.
        with open(judge.cache.path, "a") as out:
            out.write('{"key": "half')
        fake.answer, asked = likes_run, len(fake.prompts)
        again = ask(fake)
        numbers = pair_numbers(pairs, compare(again, pairs))
        assert len(fake.prompts) - asked == 24 - 9
        assert numbers["win_rate"]["rate"] == 1.0 and numbers["judged"] == 12
        compare(ask(fake), pairs)
        assert len(fake.prompts) - asked == 24 - 9  # the line after the half one was read too


def test_another_model_or_another_pair_is_another_question(ask):
    with FakeJudge(likes_run) as fake:
        ask(fake).answers(["a", "b", "a"], "x")
        assert sorted(fake.prompts) == ["a", "b"]
        other = ask(fake)
        other.model = "j-2"
        other.answers(["a"], "x")
        ask(fake, max_tokens=5).answers(["a"], "x")
        assert len(fake.prompts) == 4


def test_a_refusal_ends_at_once_and_shows_no_key(ask, tmp_path):
    with FakeJudge(likes_run) as fake:
        judge = ask(fake, api_key="sk-secret")
        with pytest.raises(JudgeError, match="refuses: HTTP 401 .*Incorrect API key") as told:
            judge.answers(["a"], "x")
        assert "secret" not in str(told.value) + repr(judge) and told.value.__cause__ is None
        ask(fake, retries=0)
        fake.answer = lambda prompt: f"your key is {fake.key} [[1]]"
        ask(fake).answers(["b"], "x")
        assert fake.key not in (tmp_path / "answers.jsonl").read_text()
    for key in ("sk-sec\nret", "sk-secret\u2019"):
        with pytest.raises(ValueError, match="no header may hold") as told:
            ask(fake, api_key=key)
        assert "sec" not in str(told.value)


def test_no_server_is_a_clear_error(ask, tmp_path):
    with FakeJudge(likes_run) as fake:
        pass
    with pytest.raises(JudgeError, match="ConnectError, 2 times"):
        ask(fake, retries=1).answers(["a"], "x")
    for url in ("localhost:1", "http://localhost:x/v1", "v1"):
        with pytest.raises(ValueError, match="must be an address such as"):
            Judge(url, "m", Cache(tmp_path / "x"))


def test_retry_after_is_seconds_or_a_date():
    assert retry_after("2") == 2.0 and retry_after("-1") == 0.0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after(None) is None and retry_after("soon") is None


# ------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Warm. [[1]]", "1"), ("[[ 2 ]]", "2"), ("[[TIE]]", "tie"), ("2", "2"), (" Tie. ", "tie"), ("**1**", "1"),
        ("[[1]] or [[2]]", None), ("[[1]] ... so [[1]]", "1"), ("Message 1 is better", None), ("", None), ("[[3]]", None),
        ("<think>[[1]]? no</think>[[2]]", "2"), ("<think>[[1]] and on", None), ("[1]", None),
    ],
)  # fmt: skip
def test_verdicts(answer, verdict):
    assert verdict_of(answer) == verdict


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        ("Rating: [[7]]", 7.0), ("[[7.5]]", 7.5), ("[[8/10]]", 8.0), ("9", 9.0), ("[[10]]", 10.0), ("[[11]]", None),
        ("[[0]]", None), ("[[-3]]", None), ("-3", None), ("I give it 7", None), ("[[7]] [[8]]", None), ("", None),
    ],
)  # fmt: skip
def test_grades(answer, grade):
    assert grade_of(answer) == grade


# ------------------------------------------------------------------------------------------ numbers


def test_several_samples_of_a_scene_weigh_as_one_scene():
    pairs = [Pair(SCENES[0], s, f"a{s}", f"b{s}") for s in range(3)] + [Pair(SCENES[1], 0, "a", "b")]
    won = [verdict_row(p, first, "1" if first else "2") for p in pairs[:3] for first in (True, False)]
    lost = [verdict_row(pairs[3], first, "2" if first else "1") for first in (True, False)]
    assert pair_numbers(pairs, won + lost)["win_rate"]["rate"] == 0.5


def test_a_preference_for_length_alone_goes_at_equal_length():
    rng = np.random.default_rng(0)
    words_N = rng.normal(6, 8, 400).round()
    wins_N = (rng.random(400) < 1 / (1 + np.exp(-words_N / 3))).astype(float)
    found = length_controlled(wins_N, words_N, [str(i) for i in range(400)])
    assert wins_N.mean() > 0.65
    assert found["low"] < 0.5 < found["high"] and found["high"] - found["low"] < 0.2


def test_a_true_preference_stays_at_equal_length():
    rng = np.random.default_rng(1)
    words_N = rng.normal(0, 8, 400).round()
    wins_N = (rng.random(400) < 0.8).astype(float)
    names = [str(i // 2) for i in range(400)]
    found = length_controlled(wins_N, words_N, names)
    assert found["rate"] == pytest.approx(wins_N.mean(), abs=0.02) and found["low"] > 0.7


def test_the_fit_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(2)
    words_N = rng.normal(3, 5, 200)
    wins_N = (rng.random(200) < 1 / (1 + np.exp(-words_N / 4 + 0.3))).astype(float)
    x = np.tanh(words_N / words_N.std())[:, None]
    fit = LogisticRegression(C=1e6).fit(x, wins_N)
    at_zero = fit.predict_proba([[0.0]])[0, 1]
    assert length_controlled(wins_N, words_N, list(map(str, range(200))))["rate"] == pytest.approx(at_zero, abs=0.01)


def test_winning_everything_stays_finite():
    words_N = np.array([1.0, -2.0, 3.0, 0.0])
    found = length_controlled(np.ones(4), words_N, list("abcd"))
    assert 0.98 < found["low"] <= found["rate"] <= 1.0
    assert length_controlled(np.ones(4), np.zeros(4), list("abcd"))["rate"] > 0.98
    assert length_controlled(np.ones(4), np.full(4, 2.0), list("abcd")) is None


# ------------------------------------------------------------------------------------------ openers in


def test_bad_files_are_refused(run, tmp_path):
    rows = [{"scene_id": "s0", "sample": 0, "opener": "Hi."}, {"scene_id": "s1", "sample": 0, "opener": "Hi."}]
    with pytest.raises(ValueError, match="'s1' has openers on one side alone"):
        pair_up(rows, rows[:1], SCENES)
    with pytest.raises(ValueError, match="'s1' has openers but is not in the file of scenes"):
        pair_up(rows, rows, SCENES[:1])
    with pytest.raises(ValueError, match="no openers"):
        pair_up([], [], SCENES)
    file = tmp_path / "openers.jsonl"
    file.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[0]) + "\n")
    with pytest.raises(ValueError, match="'s0' has sample 0 twice"):
        load_openers(file)
    file.write_text('{"scene_id": "s0", "sample": 0, "opener": null}\n')
    with pytest.raises(ValueError, match="openers.jsonl, line 1: opener is None"):
        load_openers(file)
    assert openers_file(str(run)).name == "openers_ppo.jsonl"
    with pytest.raises(FileNotFoundError, match="holds 0 files"):
        openers_file(str(tmp_path))
    with pytest.raises(ValueError, match="against itself"):
        main(JudgeConfig(str(run), against=str(run)))


# ------------------------------------------------------------------------------------------ the commands


def test_without_an_endpoint_it_says_so(run, capsys):
    assert main(JudgeConfig(str(run))) is None
    assert "skipped, no endpoint is set (JUDGE_BASE_URL and JUDGE_MODEL" in capsys.readouterr().out
    assert not (run / "judge.json").exists()


def test_the_command_prints_and_writes_the_result(run, capsys, monkeypatch):
    with FakeJudge(likes_run) as fake:
        monkeypatch.setenv("JUDGE_BASE_URL", fake.url + "/")
        monkeypatch.setenv("JUDGE_MODEL", "j-1")
        monkeypatch.setenv("OPENAI_API_KEY", fake.key + "\n")
        main(JudgeConfig(str(run)))
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert json.loads((run / "judge.json").read_text()) == result
    assert result["judge"] == "j-1" and result["win_rate"]["rate"] == 1.0 and result["grade"]["against"]["rate"] == 5.0
    assert "win rate" in out and "grade, difference" in out
    told = out + "".join(file.read_text() for file in run.iterdir())
    assert fake.key not in told and fake.url not in told


def keys(*pressed):
    return iter([*pressed, *[""] * 9]).__next__


def test_a_person_judges_blind_and_goes_on_later(run, capsys):
    config = HumanConfig(str(run), pairs=10)
    assert judge_human.main(config, keys("x", "1", "T", "q")) is None
    first = capsys.readouterr().out
    assert "1 of 11" in first and "the same command goes on" in first and "win_rate" not in first
    shown = []

    def prefers_run():  # sees what is on the screen and nothing else
        out = capsys.readouterr().out
        shown.append(out)
        return "1" if out.index("The run's") < out.index("The other's") else "2"

    result = judge_human.main(config, prefers_run)
    assert len(shown) == 11 - 2 and "ppo" not in "".join(shown) + first.lower().split("kept in")[0]
    assert result["judge"] == "human" and result["pairs"] == result["judged"] == 10
    # The first pair was given a 1, whatever it was, and comes again at the end, judged truly.
    assert result["consistency"] in (0.0, 1.0) and result["win_rate"]["rate"] >= 0.85
    assert json.loads((run / "judge-human.json").read_text()) == result
    assert judge_human.main(config, keys()) == result  # all is known: nobody is asked


def test_which_opener_comes_first_is_drawn_by_the_seed():
    def firsts(seed, n=40):
        return [run_first for _, run_first in judge_human.order(pairs_of(n), seed)]

    once = firsts(1)
    assert once == firsts(1) != firsts(2) and len(once) == 44
    assert 10 < sum(once[:40]) < 30 and once[40:] == [not first for first in once[:4]]
    assert firsts(1, 20)[:20] == once[:20]
    assert judge_human.chosen(pairs_of(), 3, 1) == judge_human.chosen(pairs_of(), 9, 1)[:3]


def test_keys_from_a_pipe_and_from_a_terminal(run):
    command = [sys.executable, "-m", "experiments.judge_human", "--run", str(run), "--pairs", "2"]
    done = subprocess.run(command, cwd=ROOT, input="t\nt\n", capture_output=True, text=True, timeout=180)
    assert json.loads(done.stdout.splitlines()[-1])["win_rate"]["rate"] == 0.5, done.stderr
    code = "from experiments.judge_human import read_key as k\nprint('ready', flush=True)\nprint([k(), k()])"
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=theirs, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        end = time.monotonic() + 60
        while termios.tcgetattr(theirs)[3] & termios.ICANON:  # what is written before it waits for a key is thrown away
            assert time.monotonic() < end, "it waits for a line"
            time.sleep(0.01)
        os.write(ours, b"1q")  # no Enter
        assert child.communicate(timeout=120)[0] == "['1', 'q']\n"
