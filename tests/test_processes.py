"""Several processes: SFT and PPO under torchrun with gloo, and accelerate's configuration files.

SFT's batch is a process's, as transformers has it: the test divides it. PPO's is the whole batch, and nothing is divided.
Not covered: FSDP and DeepSpeed need GPUs; their files are only loaded by accelerate's own reader.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from tests.tiny_models import save_emotion_classifier, save_smollm2

ROOT = Path(__file__).parent.parent
CONFIGS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


def run(processes: int, module: str, recipe: str, **overrides) -> dict:
    """Runs a stage under torchrun; its summary."""
    flags = [str(text) for key, value in overrides.items() for text in (f"--{key}", value)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
         "-m", module, "--config", f"experiments/{recipe}", *flags],
        cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads((Path(overrides["run_dir"]) / "summary.json").read_text())


def metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Same global batch on one process and on two: one run directory, and the same numbers."""
    base, scorer = save_smollm2(tmp_path / "base"), save_emotion_classifier(tmp_path / "classifier")
    found = {}
    for n in (1, 2):
        friend, opener = tmp_path / f"{n}" / "sft", tmp_path / f"{n}" / "ppo"
        cpu = {"use_cpu": True, "bf16": False, "model_dtype": "float32"}
        found["sft", n] = run(
            n, "sft.train", "smollm2/sft.yaml", run_dir=friend, model_name_or_path=base, sources="sample",
            max_steps=2, max_eval_dialogues=21, per_device_eval_batch_size=4, max_new_tokens=4, lora_dropout=0.0,
            logging_steps=1, per_device_train_batch_size=8 // n, **cpu,
        )  # fmt: skip
        found["ppo", n] = run(
            n, "rl.train", "smollm2/ppo.yaml", run_dir=opener, sft_model_path=tmp_path / "1" / "sft",
            reward_model_path=scorer, scene_sources="sample", max_scenes=20, total_episodes=32, num_mini_batches=2,
            gradient_accumulation_steps=2, response_length=6, test_samples=1, warmup_steps=0,
            per_device_train_batch_size=8, **cpu,
        )  # fmt: skip
        assert {path.name for path in friend.parent.iterdir()} == {"sft", "ppo"}, "one directory a run"
        assert len(list((friend / "wandb").glob("offline-run-*"))) == 1
        assert len([row for row in metrics(friend) if "train/loss" in row]) == 2
    for stage in ("sft", "ppo"):
        assert [found[stage, n]["processes"] for n in (1, 2)] == [1, 2]

    one, two = found["sft", 1], found["sft", 2]
    assert two["before"] == pytest.approx(one["before"], rel=1e-5)  # 21 dialogues: the odd one is counted once
    assert two["after"]["eval_loss"] < two["before"]["eval_loss"]

    one, two = ([row for row in metrics(tmp_path / str(n) / "ppo") if "objective/score" in row] for n in (1, 2))
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        same = [key for key in a if not key.startswith("time/")]
        assert {key: b[key] for key in same} == pytest.approx({key: a[key] for key in same}, rel=1e-3, abs=1e-5)


#: PPO on responses that are a function of their episode alone. The first argument: leave when this update is saved.
REPLAY = """
import sys
import numpy as np, torch
from trl.experimental.ppo import PPOConfig
from experiments.run import parse_config
from models.sampling import Samples
from rl import evaluate, train, trainer

def replayed(model, prompts, *, keys, max_new_tokens, eos_token_id, pad_token_id, **settings):
    ids = torch.tensor([np.random.default_rng(key).integers(100, 400, max_new_tokens).tolist() for key in keys])
    size = torch.tensor([2 + key % 3 + 2 * (key // 8 % 2) for key in keys])[:, None]  # each process has its own longest
    place = torch.arange(max_new_tokens)[None]
    ids = torch.where(place < size - 1, ids, torch.where(place == size - 1, eos_token_id, pad_token_id))
    return Samples(ids, place < size, torch.ones(len(ids), dtype=torch.bool))

def saved(self, update, save=trainer.OpenerPPOTrainer._save, leave=int(sys.argv.pop(1))):
    save(self, update)
    if update == leave:
        raise SystemExit

trainer.sample = evaluate.sample = replayed
trainer.OpenerPPOTrainer._save = saved
train.main(*parse_config(trainer.OpenerConfig, PPOConfig))
"""


def replay(processes: int, directory: Path, friend: str, scorer: str, leave: int = 0) -> None:
    """Three updates with 16 episodes each, as experiments/tiny/ppo.yaml has it but for sizes and in float32."""
    overrides = {
        "run_dir": directory, "sft_model_path": friend, "reward_model_path": scorer, "max_scenes": 20,
        "total_episodes": 48, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "num_mini_batches": 2,
        "response_length": 6, "test_samples": 1, "save_steps": 1, "eval_steps": 100, "learning_rate": 1e-3,
        "adam_epsilon": 1e-5, "bf16": False, "reward_dtype": "float32",
    }  # fmt: skip
    flags = [str(text) for key, value in overrides.items() for text in (f"--{key}", value)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*([*torchrun, "--no-python"] if processes > 1 else []), sys.executable, "-c", REPLAY, str(leave),
         "--config", "experiments/tiny/ppo.yaml", *flags],
        cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert (directory / "summary.json").exists() == (leave == 0)


@pytest.mark.slow
def test_replayed_updates_are_the_same_on_one_process_on_two_and_on_one_after_two(
    friend_adapter, tiny_scorer, tmp_path
):
    """The same command, whatever the number of processes: the same batch, and a checkpoint of one is good for another."""
    replay(1, tmp_path / "one", friend_adapter, tiny_scorer)
    replay(2, tmp_path / "two", friend_adapter, tiny_scorer)
    replay(2, tmp_path / "both", friend_adapter, tiny_scorer, leave=1)
    assert not (tmp_path / "both" / "checkpoint-2").exists()
    replay(1, tmp_path / "both", friend_adapter, tiny_scorer)
    assert not (tmp_path / "both.old").exists()  # it did go on

    expected = metrics(tmp_path / "one")
    same = [[key for key in row if not key.startswith("time/")] for row in expected]
    for name in ("two", "both"):
        found = metrics(tmp_path / name)
        assert len(found) == len(expected) == 5  # three updates, before and after
        for row, other, keys in zip(found, expected, same, strict=True):
            assert {key: row[key] for key in keys} == pytest.approx({key: other[key] for key in keys}, abs=1e-4)
        for file in ("adapter.safetensors", "value_head.safetensors"):
            other = load_file(tmp_path / "one" / "checkpoint-3" / file)
            for key, weight in load_file(tmp_path / name / "checkpoint-3" / file).items():
                assert torch.allclose(weight, other[key], atol=1e-4), (name, key)
    first, last = (load_file(tmp_path / "one" / f"checkpoint-{n}" / "adapter.safetensors") for n in (2, 3))
    assert max((last[key] - first[key]).abs().max() for key in last) > 1e-4  # there was something to agree on


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_reads_its_configuration(name):
    config = load_config_from_file(
        str(ROOT / "experiments" / "accelerate" / f"{name}.yaml")
    )  # unknown keys: ValueError
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == CONFIGS[name]
    assert config.num_processes > 1 and not config.use_cpu
    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert {*config.fsdp_config, *config.deepspeed_config} <= known.keys()
    assert config.deepspeed_config.get("zero_stage") == {"zero2": 2, "zero3": 3}.get(name)


def test_every_configuration_is_tested():
    assert {path.stem for path in (ROOT / "experiments" / "accelerate").glob("*.yaml")} == set(CONFIGS)
