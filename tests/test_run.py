"""experiments/run.py: what a run directory holds, when a run goes on and when it starts afresh; and every recipe.

wandb's offline file is read back by its own reader. Not covered: WANDB_MODE=online, which needs an account.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
import yaml
from trl import DPOConfig, GRPOConfig, SFTConfig
from trl.experimental.ppo import PPOConfig

from experiments import run as run_module
from experiments.compare.__main__ import CompareConfig
from experiments.run import (
    RunConfig,
    finish_run,
    one_gpu_a_process,
    parse_config,
    run_directory,
    start_run,
    weights_hash,
)
from experiments.sweep import SweepConfig
from models.load import PRETRAINED
from reward.train import RewardConfig
from rl.dpo import PairConfig
from rl.stable import StableConfig
from rl.trainer import OpenerConfig
from sft.distill import DistillConfig
from sft.pretrain import PretrainConfig
from sft.train import FriendConfig

ROOT = Path(run_module.__file__).parent.parent
STAGES = {
    "sft": (FriendConfig, SFTConfig),
    "person": (FriendConfig, SFTConfig),
    "reward": (RewardConfig,),
    "ppo": (OpenerConfig, PPOConfig),
    "sweep": (SweepConfig,),
    "grpo": (StableConfig, GRPOConfig),
    "dpo": (PairConfig, DPOConfig),
    "expert": (PairConfig, DPOConfig),
    "compare": (CompareConfig,),
    "pretrain": (PretrainConfig,),
    "distill": (DistillConfig,),
}
RECIPES = [path for path in sorted(ROOT.glob("experiments/*/*.yaml")) if path.parent.name != "accelerate"]


@dataclass
class Settings(RunConfig):
    learning_rate: float = 1.0e-3
    steps: int = 10
    words: list[str] = field(default_factory=lambda: ["a"])


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "runs" / "tiny" / "thing-s1"


def start(directory, **settings):
    return start_run(Settings(run_dir=str(directory), **settings), stage="sft", seed=1)


def rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ the directory


def test_what_a_run_leaves(directory, tmp_path):
    recipe = tmp_path / "thing.yaml"
    recipe.write_text("steps: 3 # few\n")
    parent = tmp_path / "parent"
    (parent / "model").mkdir(parents=True)
    (parent / "model" / "model.safetensors").write_bytes(b"weights")
    (parent / "lineage.json").write_text('{"id": "abc"}')
    config = Settings(run_dir=str(directory), steps=3)
    config.recipe = str(recipe)

    run = start_run(config, stage="sft", seed=1, parents=[parent])
    run.log({"loss": 2.5}, step=1)
    run.log({"loss": 1.5, "lr": 0.1}, step=2)
    run.table("samples", ["said", "n"], [["hello, Zoë", 1]])
    assert not (directory / "summary.json").exists()
    finish_run(run, {"best": 1.5})

    assert (directory / "recipe.yaml").read_text() == recipe.read_text()
    assert json.loads((directory / "config.json").read_text()) == {"learning_rate": 1e-3, "steps": 3, "words": ["a"]}
    lineage = json.loads((directory / "lineage.json").read_text())
    digest = hashlib.sha256(b"weights").hexdigest()
    assert lineage["id"] == run.id and lineage["parents"] == [
        {"path": str(parent), "sha256": digest, "scorer_sha256": None, "id": "abc"}
    ]
    assert (directory / "code.diff").read_text().startswith(f"commit {lineage['commit']}\n")
    assert rows(directory) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.5, "lr": 0.1}]
    assert json.loads((directory / "samples.jsonl").read_text()) == {"said": "hello, Zoë", "n": 1}
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["id"], summary["best"]) == (run.id, 1.5)
    newest = max((p for p in directory.iterdir() if p.is_file()), key=lambda p: p.stat().st_mtime_ns)
    assert newest.name == "summary.json"
    assert not list(directory.glob("*.tmp"))


def test_the_recipe_and_the_seed_name_the_directory():
    config = Settings()
    config.recipe = "experiments/tiny/sft.yaml"
    assert run_directory(config, seed=7) == Path("runs/tiny/sft-s7")
    config.recipe = None
    with pytest.raises(ValueError, match="--config .* or --run_dir"):
        run_directory(config, seed=7)


def test_weights_decide_the_hash_of_a_parent(tmp_path):
    assert weights_hash(tmp_path) is None and weights_hash("some/hub-id") is None
    (tmp_path / "a.safetensors").write_bytes(b"a")
    alone = weights_hash(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"b")
    assert weights_hash(tmp_path) not in (alone, None)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "x.safetensors").write_bytes(b"a")
    assert weights_hash(tmp_path) == alone  # a run's model/ comes first


def test_a_reward_is_known_by_its_settings_too_and_a_shipped_model_by_its_name(directory):
    start_run(Settings(run_dir=str(directory)), stage="ppo", seed=1, parents=["friend-reward", "some/hub-id"])
    reward, hub = json.loads((directory / "lineage.json").read_text())["parents"]
    shipped = PRETRAINED / "friend-reward"
    digest = hashlib.sha256((shipped / "scorer.json").read_bytes()).hexdigest()
    assert (reward["path"], reward["sha256"]) == ("friend-reward", weights_hash(shipped))
    assert reward["scorer_sha256"] == digest and hub["sha256"] is hub["scorer_sha256"] is None


def test_several_gpus_in_one_process_are_refused():
    one_gpu_a_process(SimpleNamespace(n_gpu=1), "sft.train")
    with pytest.raises(ValueError, match=r"CUDA_VISIBLE_DEVICES=0, or .* torchrun --nproc_per_node 4 -m sft\.train"):
        one_gpu_a_process(SimpleNamespace(n_gpu=4), "sft.train")


def test_a_parent_without_weights_is_refused(directory, tmp_path):
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(FileNotFoundError, match="unfinished holds no weights: has that stage finished"):
        start_run(Settings(run_dir=str(directory)), stage="ppo", seed=1, parents=[tmp_path / "unfinished"])


# ------------------------------------------------------------------------------------------------ again


def test_an_interrupted_run_goes_on(directory, capsys):
    first = start(directory)
    first.log({"loss": 1.0}, step=1)
    (directory / "checkpoint-1").mkdir()
    wandb.finish()
    again = start(directory)
    assert again.id == first.id and "goes on" in capsys.readouterr().out
    assert (directory / "checkpoint-1").exists() and rows(directory) == [{"step": 1, "loss": 1.0}]
    assert not directory.with_name("thing-s1.old").exists()


@pytest.mark.parametrize("changed", [{"steps": 11}, {"words": ["a", "b"]}])
def test_a_changed_setting_starts_afresh_and_keeps_the_old_run(directory, changed):
    first = start(directory)
    first.log({"loss": 1.0}, step=1)
    wandb.finish()
    again = start(directory, **changed)
    assert again.id != first.id and not (directory / "metrics.jsonl").exists()
    assert rows(directory.with_name("thing-s1.old")) == [{"step": 1, "loss": 1.0}]


def test_changed_weights_of_a_parent_start_afresh(directory, tmp_path):
    weights = tmp_path / "parent" / "model.safetensors"
    weights.parent.mkdir()
    ids = []
    for content in (b"one", b"one", b"two"):
        weights.write_bytes(content)
        config = Settings(run_dir=str(directory))
        ids.append(start_run(config, stage="ppo", seed=1, parents=[weights.parent]).id)
        wandb.finish()
    assert ids[0] == ids[1] != ids[2]


def test_a_finished_run_is_set_aside_when_run_again(directory):
    first = start(directory)
    finish_run(first, {"done": 1})
    again = start(directory)
    assert again.id != first.id and not (directory / "summary.json").exists()
    assert json.loads((directory.with_name("thing-s1.old") / "summary.json").read_text())["id"] == first.id


def test_an_unfinished_run_takes_no_finished_one_s_place(directory):
    first = start(directory)
    finish_run(first, {"done": 1})
    start(directory, steps=0).wandb.finish()  # as where a trainer then refuses its settings
    start(directory, steps=5).wandb.finish()
    kept = [directory.with_name(f"thing-s1{end}") for end in (".old", ".unfinished.old")]
    assert json.loads((kept[0] / "summary.json").read_text())["id"] == first.id
    assert json.loads((kept[1] / "config.json").read_text())["steps"] == 0


def test_without_git_a_run_has_no_commit(directory, monkeypatch):
    monkeypatch.setenv("PATH", "")
    start(directory)
    assert json.loads((directory / "lineage.json").read_text())["commit"] == "unknown"


def test_rewind_drops_later_rows_and_half_a_line(directory):
    run = start(directory)
    for step in range(5):
        run.log({"loss": float(step)}, step=step)
    with (directory / "metrics.jsonl").open("a") as out:
        out.write('{"step": 2, "lo')  # a kill in the middle of a write
    run.rewind(2)
    run.log({"loss": 9.0}, step=3)
    assert [row["step"] for row in rows(directory)] == [0, 1, 2, 3]
    run.rewind(-1)
    assert rows(directory) == []


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run(directory, loss):
    run = start(directory)
    run.check_finite(3.0, step=6)
    with pytest.raises(FloatingPointError, match=rf"loss is {loss} at step 7; .*{directory.name}.* learning_rate"):
        run.check_finite(loss, step=7)


def test_a_full_disk_leaves_no_half_summary(directory, monkeypatch):
    run = start(directory)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        finish_run(run, {})
    assert not (directory / "summary.json").exists() and not list(directory.glob(".summary*"))


def test_only_the_first_of_several_processes_writes(directory, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run = start(directory)
    run.log({"loss": 1.0}, step=1)
    run.table("samples", ["a"], [[1]])
    run.rewind(-1)
    finish_run(run, {})
    assert not run.is_main and not directory.exists()


# ------------------------------------------------------------------------------------------------ recipes


def parse(monkeypatch, stage, text=None, path=None, tmp_path=None, more=()):
    if text is not None:
        path = tmp_path / f"{stage}.yaml"
        path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["stage", "--config", str(path), *more])
    return parse_config(*STAGES[stage])


def stage_of(recipe):
    return next(stage for stage in STAGES if recipe.name.startswith(stage))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_recipe_parses_and_says_what_it_sets(recipe, monkeypatch):
    on_cpu = () if stage_of(recipe) in ("reward", "pretrain", "distill", "compare", "sweep") else ("--use_cpu", "true")
    configs = parse(monkeypatch, stage_of(recipe), path=recipe, more=on_cpu)
    assert configs[0].recipe == str(recipe)
    for key, value in (yaml.safe_load(recipe.read_text()) or {}).items():
        owners = [config for config in configs if key in type(config).__dataclass_fields__]
        found = getattr(owners[0], key)
        assert len(owners) == 1, f"{key} is a field of both {owners}"
        assert found == value or str(getattr(found, "value", found)) == str(value) or found == type(found)(value), key
    assert recipe.read_text().startswith("#"), "a recipe's head says hardware, duration and what to expect"


def test_there_are_recipes():
    assert {stage_of(recipe) for recipe in RECIPES} == set(STAGES)


CPU = "use_cpu: true\nbf16: false\n"


@pytest.mark.parametrize(
    ("stage", "line"),
    [("sft", "learnin_rate: 1.0e-3"), ("ppo", "kl_coeff: 0.1"), ("reward", "batch_size: 4"), ("pretrain", "lr: 1.0")],
)
def test_an_unknown_key_is_refused(stage, line, monkeypatch, tmp_path):
    text = line + "\n" + (CPU if stage in ("sft", "ppo") else "")
    if stage == "pretrain":
        text += "weights_start: {sample: 1.0}\nweights_end: {sample: 1.0}\n"
    with pytest.raises(ValueError, match=line.split(":")[0]):
        parse(monkeypatch, stage, text, tmp_path=tmp_path)


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        ("sft", "max_steps: 10.5"), ("sft", "lora_r: true"), ("sft", "max_length: 10.5"),
        ("ppo", "total_episodes: 10.5"), ("reward", "lora_r: 10.5"),
    ],
)  # fmt: skip
def test_a_number_that_is_not_whole_is_refused(stage, line, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=f"{line.split(':')[0]} is .* but must be a whole number"):
        parse(monkeypatch, stage, line + "\n" + (CPU if stage in ("sft", "ppo") else ""), tmp_path=tmp_path)


@pytest.mark.parametrize(("stage", "key"), [("sft", "learning_rate"), ("ppo", "kl_target"), ("reward", "weight_decay")])
def test_5e_7_is_a_number_though_yaml_reads_text(stage, key, monkeypatch, tmp_path):
    text = f"{key}: 5e-7\n" + (CPU if stage in ("sft", "ppo") else "")
    assert isinstance(yaml.safe_load(text)[key], str)
    owner = next(c for c in parse(monkeypatch, stage, text, tmp_path=tmp_path) if hasattr(c, key))
    assert getattr(owner, key) == 5e-7 and isinstance(getattr(owner, key), float)


@pytest.mark.parametrize(
    ("stage", "line", "message"),
    [
        ("sft", "role: dog", "role is 'dog'"),
        ("sft", "instruction: secret", "instruction is 'secret'"),
        ("sft", "quantization: 3bit", "quantization is '3bit'"),
        ("ppo", "kl_target: 0.0", "kl_target is 0.0"),
        ("ppo", "instruction: secret", "instruction is 'secret'"),
        ("pretrain", "weights_start: {nowhere: 1.0}", "nowhere"),
        ("pretrain", "weights_start: {sample: 1.0}\nweights_end: {daily: 1.0}", "the same corpora"),
    ],
)
def test_values_that_cannot_be_are_refused(stage, line, message, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse(monkeypatch, stage, line + "\n" + (CPU if stage != "pretrain" else ""), tmp_path=tmp_path)


def test_the_command_line_wins_over_the_recipe(monkeypatch, tmp_path):
    configs = parse(monkeypatch, "sft", "seed: 1\n" + CPU, tmp_path=tmp_path, more=["--seed", "2"])
    assert configs[1].seed == 2


# ------------------------------------------------------------------------------------------------ wandb


def records(directory):
    """wandb's own reading of the offline files: [{"type": ..., ...}]."""
    files = list(directory.glob("wandb/offline-run-*/run-*.wandb"))
    lines = []
    for file in files:
        command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file)]
        lines += subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_the_offline_run_carries_everything(directory, tmp_path):
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent" / "model.safetensors").write_bytes(b"weights")
    run = start_run(Settings(run_dir=str(directory)), stage="sft", seed=1, parents=[tmp_path / "parent"])
    for step in (5, 10):
        run.log({"eval/loss": 1.0 / step}, step=step)
    finish_run(run, {"after": 0.1})
    text = json.dumps(records(directory))
    for piece in ("tiny", "thing-s1", "sft", "seed-1", "learning_rate", weights_hash(tmp_path / "parent"), run.id):
        assert piece in text, piece
    history = [r for r in records(directory) if r.get("type") == "history"]
    assert len(history) == 2, history


SLEEPER = """
import sys, time
from experiments.run import RunConfig, start_run
run = start_run(RunConfig(run_dir=sys.argv[1]), stage="sft", seed=1)
for step in range(3):
    run.log({"loss": 1.0}, step=step)
print("logged", flush=True)
time.sleep(60)
"""


def test_sigterm_keeps_the_rows(directory):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(directory)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert any("logged" in line for line in process.stdout)
        began = time.time()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143 and time.time() - began < 30
    finally:
        process.kill()
    assert len(rows(directory)) == 3
    assert len([r for r in records(directory) if r.get("type") == "history"]) == 3
    assert not (directory / "summary.json").exists()
