"""reward/evaluate.py: its arithmetic by hand, and the whole of it on a scorer whose judgement is known.

Not covered: the figures of a trained reward; `make reward-eval` prints them beside their bars.
"""

import json
import os

import numpy as np
import pytest
import torch

from reward import evaluate
from reward.emotions import REACTIONS


class Known:
    """Scores a response by a function of it, and calls every reaction neutral."""

    likelihood = None

    def __init__(self, judge):
        self.judge = judge

    def score(self, rows):
        probs_BR = torch.full((len(rows), len(REACTIONS)), 0.1)
        probs_BR[:, 0] = 0.3
        return torch.tensor([float(self.judge(row)) for row in rows]), probs_BR

    def emotions(self, rows):
        return torch.rand(len(rows), 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def config():
    return evaluate.EvaluateConfig(run_dir="unused", max_rows=60)


def test_calibration_error_by_hand():
    probs_BR = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    target_B = np.array([0, 1, 1, 1])  # half right at .9, all right at .6
    error, points = evaluate.expected_calibration_error(probs_BR, target_B, num_bins=2)
    assert error == pytest.approx((abs(0.9 - 0.5) + abs(0.6 - 1.0)) / 2)
    assert points == [(pytest.approx(0.6), 1.0), (pytest.approx(0.9), 0.5)]


@pytest.mark.parametrize("a, b, near", [(10, 8, True), (8, 10, True), (10, 7, False), (1, 1, True), (0, 3, False)])
def test_within_a_fifth_in_length(a, b, near):
    assert evaluate.near_in_length(a, b) == near


def test_the_interval_holds_the_mean_and_narrows_with_more_rows():
    values = np.random.default_rng(0).random(400)
    wide = evaluate.bootstrap(40, lambda i: values[i].mean())
    narrow = evaluate.bootstrap(400, lambda i: values[i].mean())
    assert narrow[0] < values.mean() < narrow[1] and narrow[1] - narrow[0] < (wide[1] - wide[0]) / 2


def test_a_bar_may_be_a_floor_or_a_ceiling():
    assert (
        evaluate.Measure("m", 0.5, bar=0.4).verdict() == "yes" and evaluate.Measure("m", 0.3, bar=0.4).verdict() == "no"
    )
    assert evaluate.Measure("m", 0.3, bar=0.4, at_most=True).verdict() == "yes"
    assert evaluate.Measure("m", 0.3).verdict() == ""


def test_a_judge_of_shouting_gets_that_kind_of_probe_right_alone(tmp_path, config):
    judge = Known(lambda row: -sum(c.isupper() for c in row["response"]) / len(row["response"]))
    found = {m.name: m for m in evaluate.probes(judge, None, config, tmp_path)}
    assert found["probes: shouting"].value == 1.0 and found["probes, all 210"].value < 0.8
    assert len((tmp_path / "probes.jsonl").read_text().splitlines()) == 210


needs_data = pytest.mark.skipif("ICEBREAKER_DATA" not in os.environ, reason="needs the corpora: set ICEBREAKER_DATA")


@needs_data
def test_the_reference_figures_of_length_are_found_again(tmp_path, config):
    root = evaluate.data_root(None)
    judge = Known(lambda row: len(row["response"].split()))
    human, length = evaluate.human_engagement(judge, root, config, tmp_path)
    assert human.value == pytest.approx(length.value) == pytest.approx(0.138, abs=0.02)  # Ghazarian et al., dev half
    matched, everything, alone = evaluate.convai(judge, root, config, tmp_path)
    assert everything.value == pytest.approx(alone.value) == pytest.approx(0.78, abs=0.02)
    assert matched.value < everything.value  # length tells little among replies of like length
    assert (tmp_path / "human.png").stat().st_size > 5_000


@needs_data
def test_a_judge_without_judgement_is_found_out(tmp_path, config):
    root = evaluate.data_root(None)
    rng = np.random.default_rng(1)
    judge = Known(lambda row: rng.random())
    for measure in (evaluate.rated_turns, evaluate.true_replies):
        for m in measure(judge, root, config, tmp_path):
            if m.low is not None:
                assert m.low < 0.5 < m.high, m.name
    (f1,) = evaluate.named_emotions(judge, root, config, tmp_path)
    assert f1.value < 0.15
    error, skill = evaluate.calibration(judge, root, config, tmp_path)
    assert error.value > 0.05 and skill.value < 0.2


def test_the_good_line_of_a_moment_is_held_against_each_wrong_one(tmp_path, config):
    good = {row["response"] for row in evaluate.reaction_rows(list(evaluate.contrasts.load("test")))}
    cold = {lines["cold"] for lines in evaluate.contrasts.worse_lines().values()}
    judge = Known(lambda row: 2.0 if row["response"] in cold else float(row["response"] in good))
    found = {m.name: m for m in evaluate.wrong_lines(judge, None, config, tmp_path)}
    everything = found.pop("good line above a wrong one of its moment")
    assert everything.value == pytest.approx(0.75) and everything.note == "120 moments"
    marks = [found.pop(f"the same{of}, exclamation marks alone").value for of in ("", ": gushing")]
    assert 0.45 < marks[0] < 0.55 and 0.55 < marks[1] < 0.7  # what the card says of them
    assert {name.split()[-1]: m.value for name, m in found.items()} == {
        "cold": 0.0, "gushing": 1.0, "generic": 1.0, "confused": 1.0
    }  # fmt: skip


def test_what_a_reward_or_a_machine_cannot_answer_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ICEBREAKER_DATA", str(tmp_path))  # a directory that holds none of it
    found = evaluate.measured("length", evaluate.EvaluateConfig(), tmp_path, {})
    out = capsys.readouterr().out
    for said in (
        "human_engagement left out: [Errno 2]",
        "named_emotions left out: the reward has no head for emotions",
        "calibration left out: the reward foretells no reaction",
    ):
        assert said in out
    assert "probes, all 210" in {m.name for m in found}


def test_without_the_corpora_the_probes_are_left_and_said_so(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ICEBREAKER_DATA", raising=False)
    monkeypatch.setattr(evaluate, "load_scorer", lambda name: Known(lambda row: len(row["response"])))
    monkeypatch.setattr(evaluate, "resolve", lambda name: "a/hub-id")
    evaluate.main(evaluate.EvaluateConfig(run_dir=str(tmp_path / "eval")))
    out = capsys.readouterr().out
    assert "human_engagement left out" in out and "wrong one of its moment" in out and "probes, all 210" in out
    assert set(json.loads(out.strip().splitlines()[-1])) == {
        m["name"] for m in json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    }
    assert "| probes, all 210 |" in (tmp_path / "eval" / "table.md").read_text()


def test_other_seeds_add_mean_and_deviation_and_leave_the_first_ones_files(tmp_path, monkeypatch):
    monkeypatch.delenv("ICEBREAKER_DATA", raising=False)
    signs = {"a": 1, "b": -1, "c": 1}  # the longer reply, the shorter one
    monkeypatch.setattr(evaluate, "load_scorer", lambda name: Known(lambda row: signs[name] * len(row["response"])))
    monkeypatch.setattr(evaluate, "resolve", lambda name: "a/hub-id")
    folder = tmp_path / "eval"
    evaluate.main(evaluate.EvaluateConfig(reward_model_path="a", other_seeds=["b", "c"], run_dir=str(folder)))
    probes = next(m for m in json.loads((folder / "evaluation.json").read_text()) if m["name"] == "probes, all 210")
    longer, shorter, again = probes["value"], *probes["others"]
    assert longer == again and longer + shorter == pytest.approx(1, abs=0.05)  # but for pairs of like length
    mean, deviation = (2 * longer + shorter) / 3, abs(longer - shorter) / 3**0.5
    assert f"| {longer:.3f} | {mean:.3f} ± {deviation:.3f} |" in (folder / "table.md").read_text()
    first, second = ((folder / name / "probes.jsonl").read_text() for name in ("", "other-1"))
    assert first != second
