"""The tiny default end to end at a reduced budget: the commands that make runs, with the real base and the real sample."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def run(*command: str, **kwargs) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All three stages, a small part of each recipe's budget."""
    directory = tmp_path_factory.mktemp("tiny")
    sft, reward, ppo = (str(directory / name) for name in ("sft-s1", "reward-s1", "ppo-s1"))
    run(
        "sft.train",
        "--config",
        "experiments/tiny/sft.yaml",
        "--run_dir",
        sft,
        "--max_steps",
        "30",
        "--eval_steps",
        "15",
    )
    run("reward.train", "--config", "experiments/tiny/reward.yaml", "--run_dir", reward, "--num_train_epochs", "0.3")
    done = run(
        "rl.train",
        "--config",
        "experiments/tiny/ppo.yaml",
        "--run_dir",
        ppo,
        "--sft_model_path",
        sft,
        "--reward_model_path",
        reward,
        "--total_episodes",
        "256",
        "--gradient_accumulation_steps",
        "4",
        "--eval_steps",
        "2",
        "--test_samples",
        "1",
        "--max_approx_kl",
        "100",  # no early stop, so that the optimizer's steps can be counted
    )
    return directory, done.stdout


def summary(directory: Path, name: str) -> dict:
    return json.loads((directory / name / "summary.json").read_text())


def test_sft_lowers_held_out_loss(runs):
    found = summary(runs[0], "sft-s1")
    assert found["after"]["eval_loss"] < found["before"]["eval_loss"] - 0.05
    assert found["test"]["test_bits_per_byte"] < 2


def test_reward_learns_to_tell_sense(runs):
    """It starts from friend-reward, which has the reactions already: what the recipe adds is what the grades say."""
    found = summary(runs[0], "reward-s1")
    for split in ("validation", "test"):
        assert found[f"{split}/spearman_rated"] > found[f"before/{split}/spearman_rated"] + 0.02


def test_ppo_ends_with_its_table_and_runs(runs):
    directory, printed = runs
    found = summary(directory, "ppo-s1")
    assert found["optimizer_steps"] == 4 * 4 * 1  # updates x minibatches x epochs
    assert found["gain"]["low"] <= found["gain"]["score"] <= found["gain"]["high"]
    assert 0 <= found["sft"]["kl"] < 1e-3
    for text in ("Openers on held-out scenes", "95 % interval", str(directory / "sft-s1")):
        assert text in printed.replace("\n", "") or text in printed
    lineage = json.loads((directory / "ppo-s1" / "lineage.json").read_text())
    parents = {Path(parent["path"]).name: parent for parent in lineage["parents"]}
    assert parents["sft-s1"]["id"] == summary(directory, "sft-s1")["id"]
    assert len(parents["reward-s1"]["sha256"]) == 64


def test_openers_come_from_any_run(runs, tmp_path):
    for name in ("sft-s1", "ppo-s1"):
        out = tmp_path / f"{name}.jsonl"
        run(
            "rl.generate",
            "--run_dir",
            str(runs[0] / name),
            "--scenes_file",
            "data/sample/scenes_test.jsonl",
            "--output_file",
            str(out),
            "--num_return_sequences",
            "2",
            "--seed",
            "1",
        )
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(rows) == 400 and set(rows[0]) == {"scene_id", "sample", "opener", "ended"}


#: `python -m rl.train` that kills itself when the third update is done, logged, and about to be saved.
KILLED = """
import os, runpy, signal
from rl.trainer import OpenerPPOTrainer
save = OpenerPPOTrainer._save
def struck(self, update):
    if update == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, update)
OpenerPPOTrainer._save = struck
runpy.run_module("rl.train", run_name="__main__", alter_sys=True)
"""


def test_a_killed_ppo_goes_on_to_the_same_end(runs, tmp_path):
    """SIGKILL in the middle, then the same command again: metrics as if it had been left alone."""
    settings = [
        "--config",
        "experiments/tiny/ppo.yaml",
        "--sft_model_path",
        str(runs[0] / "sft-s1"),
        "--reward_model_path",
        str(runs[0] / "reward-s1"),
        "--total_episodes",
        "64",
        "--per_device_train_batch_size",
        "4",
        "--gradient_accumulation_steps",
        "4",
        "--save_steps",
        "1",
        "--eval_steps",
        "100",
        "--test_samples",
        "1",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    command = ["rl.train", *settings, "--run_dir"]
    run(*command, str(alone), env=env)
    struck = [sys.executable, "-c", KILLED, *settings, "--run_dir", str(killed)]
    with open(tmp_path / "log", "w") as log:  # no pipe: a child of the killed process may hold it open
        done = subprocess.run(struck, cwd=ROOT, env=env, stdout=log, stderr=log)
    assert done.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()[-3000:]
    assert sorted(path.name for path in killed.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert not (killed / "summary.json").exists()
    run(*command, str(killed), env=env)

    def rows(directory):
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in lines]

    assert rows(killed) == rows(alone)
    weights = "model/adapter_model.safetensors"
    assert (killed / weights).read_bytes() == (alone / weights).read_bytes()
