"""Several processes: SFT and PPO under torchrun with gloo, and accelerate's configuration files.

Not covered: FSDP and DeepSpeed need GPUs; their files are only loaded by accelerate's own reader.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

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
        batch = {
            "use_cpu": True,
            "bf16": False,
            "model_dtype": "float32",
            "per_device_train_batch_size": 8 // n,
        }
        found["sft", n] = run(
            n, "sft.train", "smollm2/sft.yaml", run_dir=friend, model_name_or_path=base, sources="sample",
            max_steps=2, max_eval_dialogues=21, per_device_eval_batch_size=4, max_new_tokens=4, lora_dropout=0.0,
            logging_steps=1, **batch,
        )  # fmt: skip
        found["ppo", n] = run(
            n, "rl.train", "smollm2/ppo.yaml", run_dir=opener, sft_model_path=tmp_path / "1" / "sft",
            reward_model_path=scorer, scene_sources="sample", max_scenes=20, total_episodes=32, num_mini_batches=2,
            gradient_accumulation_steps=2, response_length=6, test_samples=1, warmup_steps=0, **batch,
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
