"""experiments/sweep.py: what is asked, proposed, kept and told, with a trial that is made up; and a sweep of PPO on the tiny
friend, killed in the middle.

Not covered: a wandb sweep; of that path the command that its agent runs.
"""

import json
import os
import signal
import sys

import optuna
import pytest
import torch
import wandb
import yaml
from trl.experimental.ppo import PPOConfig

from experiments import sweep
from experiments.run import parse_config
from experiments.sweep import SweepConfig
from rl.trainer import OpenerConfig, OpenerPPOTrainer

RANGES = {
    "kl_coef": {"min": 0.01, "max": 1.0, "distribution": "log_uniform_values"},
    "learning_rate": {"min": 1e-4, "max": 1e-2, "distribution": "log_uniform_values"},
    "num_mini_batches": {"values": [1, 2, 4]},
}


@pytest.fixture
def recipe(friend_adapter, tiny_scorer, tmp_path):
    """PPO on the tiny friend: 2 updates of 8 openers each, evaluated before, between and after."""
    path = tmp_path / "tiny" / "ppo.yaml"
    path.parent.mkdir()
    keys = {
        "sft_model_path": friend_adapter, "reward_model_path": tiny_scorer, "gold_model_path": tiny_scorer, "max_scenes": 10,
        "total_episodes": 16, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_mini_batches": 2,
        "num_ppo_epochs": 1, "response_length": 6, "temperature": 1.0, "learning_rate": 1.0e-3, "kl_coef": 0.05,
        "local_rollout_forward_batch_size": 64, "save_steps": 1, "eval_steps": 1, "gradient_checkpointing": False,
        "bf16": False, "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(keys))
    return str(path)


@pytest.fixture
def config(recipe, tmp_path):
    def make(name="sweep", parameters=RANGES, **more):
        run_dir = str(tmp_path / "runs" / name)
        return SweepConfig(**({"run_dir": run_dir, "ppo_recipe": recipe, "parameters": parameters, "trials": 3} | more))

    return make


@pytest.fixture
def quick(monkeypatch):
    """Trials without PPO: the score has its peak at kl_coef 0.3. Returns the kl_coefs of those that were run."""
    ran = []

    def trial(ppo, args):
        ran.append(args.kl_coef)
        os.makedirs(ppo.run_dir)
        with open(f"{ppo.run_dir}/config.json", "w") as file:
            json.dump({key: getattr(args, key) for key in RANGES}, file)
        if len(ran) == 2:
            raise FloatingPointError("loss is nan at step 3")
        best = {"score": -abs(args.kl_coef - 0.3), "kl": 1 / args.kl_coef, "update": 2}
        with open(f"{ppo.run_dir}/summary.json", "w") as file:
            json.dump({"best": best}, file)

    monkeypatch.setattr(sweep, "trial", trial)
    monkeypatch.setattr(sweep, "plot", lambda *_: None)  # half a second each time
    return ran


def trials_in(directory):
    return optuna.load_study(storage=f"sqlite:///{directory}/study.db", study_name="sweep").trials


def in_a_child(work) -> int:
    """Runs `work` in a forked process; its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# ------------------------------------------------------------------------------------------ on PPO itself


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's threads cannot be forked")
def test_a_killed_sweep_goes_on_as_if_it_had_not_been(config, tmp_path, monkeypatch, capsys):
    """Of three trials the second is killed between two updates; the third has a learning rate at which the loss is nan."""
    ranges = RANGES | {"learning_rate": {"values": [1e-3, 1e30]}}
    alone = sweep.main(config("alone", ranges, seed=5))
    step = OpenerPPOTrainer._step

    def strike(self, *args):
        if self.run.dir.name == "ppo-t1" and self.state.global_step == 1:  # its first update is saved
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args)

    wandb.teardown()  # else the child would share its service
    with monkeypatch.context() as context:
        context.setattr(OpenerPPOTrainer, "_step", strike)
        assert in_a_child(lambda: sweep.main(config("killed", ranges, seed=5))) == -signal.SIGKILL
    killed = tmp_path / "runs" / "killed"
    assert len(trials_in(killed)) == 1
    capsys.readouterr()
    assert sweep.main(config("killed", ranges, seed=5)) == alone
    said = capsys.readouterr().out
    assert "ppo-t1: goes on where it was interrupted" in said and "trial 0 of" not in said
    assert "trial 2 failed: loss is nan" in said and wandb.run is None

    assert [row["trial"] for row in alone][2] == "t2" and alone[2]["score"] is None
    told = trials_in(killed)
    assert [t.value for t in told] == [t.value for t in trials_in(tmp_path / "runs" / "alone")]
    assert [t.state.name for t in told] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert told[0].params == {"kl_coef": 0.05, "learning_rate": 1e-3, "num_mini_batches": 2}  # the recipe's own
    for row in alone[:2]:
        run = killed / f"ppo-{row['trial']}"
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        scores = [r["eval/score"] for r in rows if "eval/score" in r]
        assert len(scores) == 3 and max(scores) == row["score"]  # the KL is far below max_kl
        assert [r["optimizer_steps"] for r in rows if "update" in r][-1] == 2 * row["num_mini_batches"]
        assert not [path for path in run.iterdir() if "test" in path.name] and not any("eval/gold" in r for r in rows)
    assert (killed / "table.md").read_text().count("\n| t") == 3
    assert (killed / "sweep.png").stat().st_size > 10_000


# ------------------------------------------------------------------------------------------ the search


def test_a_search_learns_and_its_failures_are_rows(config, quick, tmp_path, capsys):
    rows = sweep.main(config(trials=14))
    assert len(rows) == len(quick) == 14 and quick[0] == 0.05
    assert rows[-1]["score"] is None and rows[-1]["trial"] == "t1"
    scores = [row["score"] for row in rows[:-1]]
    assert scores == sorted(scores, reverse=True) and scores[0] > -0.1
    guided, random = [abs(x - 0.3) for x in quick[6:]], [abs(x - 0.3) for x in quick[1:6]]
    assert sorted(guided)[4] < sorted(random)[2]  # TPE looks where it was good
    said = capsys.readouterr().out
    assert "trial 1 failed: loss is nan at step 3" in said
    assert f"kl_coef: {rows[0]['kl_coef']:.3g}" in said and "as it is, -0.250 at 20.00" in said
    assert "| t1 |" in said and "| failed | failed | failed |" in said

    assert sweep.main(config(trials=14)) == rows and len(quick) == 14  # nothing is run again, not even what failed
    more = sweep.main(config(trials=15))
    assert len(more) == len(quick) == 15 and [row for row in more if row["trial"] != "t14"] == rows


def test_what_is_proposed_depends_on_seed_and_results_alone(config, quick, tmp_path):
    sweep.main(config("a", trials=7))
    first = list(quick)
    for trials in (1, 3, 7):  # stopped and started again
        quick.clear()
        quick += first[: len(trials_in(tmp_path / "runs" / "b"))] if trials > 1 else []
        sweep.main(config("b", trials=trials))
    assert quick == first
    quick.clear()
    sweep.main(config("c", trials=7, seed=2))
    assert quick[0] == first[0] and not set(quick[1:]) & set(first[1:])


def test_a_run_that_ended_before_its_line_in_the_study_is_not_made_again(config, quick, tmp_path, monkeypatch):
    rows = sweep.main(config("a"))
    os.makedirs(tmp_path / "runs" / "b")
    quick.clear()
    monkeypatch.setattr(optuna.Study, "add_trial", lambda *_: sys.exit(1))
    with pytest.raises(SystemExit):
        sweep.main(config("b"))
    monkeypatch.undo()
    assert quick == [0.05] and (tmp_path / "runs" / "b" / "ppo-t0" / "summary.json").exists()
    monkeypatch.setattr(sweep, "trial", lambda *_: pytest.fail("a finished trial was made again"))
    assert sweep.main(config("b", trials=1)) == [row for row in rows if row["trial"] == "t0"]


def test_another_question_moves_the_old_answers_away(config, quick, tmp_path, recipe, capsys):
    sweep.main(config(trials=1))
    with open(recipe, "a") as file:
        file.write("gamma: 0.9\n")
    assert len(sweep.main(config(trials=1))) == 1 and len(quick) == 2
    assert "it is now" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "runs" / "sweep.old").glob("ppo-*")] == ["ppo-t0"]


def test_advice_claims_no_more_than_there_is(config):
    own = {"kl_coef": 0.05, "learning_rate": 1e-3, "num_mini_batches": 2}
    rows = [{"trial": f"t{i}", **own, "score": s, "kl": 1.0, "update": 3} for i, s in enumerate((0.2, 0.1))]
    rows[1]["kl_coef"] = 0.4
    assert (
        sweep.advice(rows, config()) == f"Leave {config().ppo_recipe} as it is: none of 1 other trials scored higher."
    )
    assert "part of its lead is luck" in sweep.advice([rows[1]], config())
    assert "rise above" in sweep.advice([{**rows[0], "update": 0}], config())
    assert "No trial finished" in sweep.advice([{**rows[0], "score": None, "update": None}], config())


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"learnin_rate": {"values": [1.0]}}, "'learnin_rate' is no key of PPO's recipes"),
        ({"kl_coef": {"values": []}}, "kl_coef is .* with one or more"),
        ({"kl_coef": 0.1}, "kl_coef is 0.1; write"),
        ({"kl_coef": {"min": 0.1}}, "kl_coef is .*; write"),
        ({"kl_coef": {"min": 0.1, "max": 0.2, "distribution": "normal"}}, "distribution: log_uniform_values"),
        ({"kl_coef": {"min": 0.2, "max": 0.1}}, "min must be below max"),
        ({"kl_coef": {"min": 0.0, "max": 0.1, "distribution": "log_uniform_values"}}, "above 0 for log"),
        ({"learning_rate": {"min": "1e-5", "max": 1e-3}}, "'1e-5' is no number"),
        ({}, "parameters is empty"),
    ],
)
def test_a_range_that_is_none_is_named(config, parameters, message):
    with pytest.raises(ValueError, match=message):
        config(parameters=parameters)


def test_values_that_no_run_could_have_are_refused_before_the_first(config, quick, tmp_path):
    with pytest.raises(ValueError, match="num_mini_batches 3 must divide"):
        sweep.main(config(parameters={"num_mini_batches": {"values": [1, 3]}}))
    with pytest.raises(ValueError, match="trials is 0"):
        config(trials=0)
    with pytest.raises(FileNotFoundError, match="there is no file nowhere.yaml"):
        config(ppo_recipe="nowhere.yaml")
    assert not quick and not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------------------ with wandb's service


def test_wandbs_agent_is_told_how_to_start_a_trial(config, quick, tmp_path, recipe, monkeypatch):
    asked = []
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "sweep", lambda sweep, project: asked.append(sweep) or "abc123")

    def agent(id, project, count):
        """Two of three trials, as the agent starts them: each a process with this command line."""
        assert id == "abc123"
        asked.append(count)
        for number in range(2):
            values = ["--kl_coef=0.2", f"--learning_rate=0.00{number + 1}", "--num_mini_batches=4"]
            monkeypatch.setattr(sys, "argv", [*asked[0]["command"][2:-1], *values])
            monkeypatch.setenv("WANDB_RUN_ID", f"run{len(quick)}")
            sweep.agents_trial(*parse_config(OpenerConfig, PPOConfig))

    monkeypatch.setattr(wandb, "agent", agent)
    with pytest.raises(FloatingPointError):  # the second of `quick`
        sweep.main(config())
    rows = sweep.main(config())
    assert asked[0]["parameters"] == RANGES and asked[0]["metric"]["name"] == "best_score"
    assert asked[1:] == [3, 1]  # one sweep; the second time only what is left of it
    assert [row["trial"] for row in rows] == ["run0", "run2", "run3", "run1"][:3] + ["run1"]
    assert rows[0]["kl_coef"] == 0.2 and rows[-1]["score"] is None
