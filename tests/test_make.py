"""The Makefile's order of the stages, read off `make -n` in a copy of what it looks at: nothing is trained here."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path):
    """Makefile, pyproject and recipes, with an installed environment pretended."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("tiny", "small"):
        shutil.copytree(ROOT / "experiments" / name, tmp_path / "experiments" / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "installed").touch()
    return tmp_path


def make(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(["make", "-n", *arguments], cwd=checkout, capture_output=True, text=True)
    return done.stdout + done.stderr


def stages(output: str) -> list[str]:
    return [stage for stage in ("sft.train", "reward.train", "rl.train", "rl.grpo", "rl.dpo") if stage in output]


def finish(checkout: Path, *runs: str) -> None:
    for run in runs:
        (checkout / "runs" / "tiny" / run).mkdir(parents=True, exist_ok=True)
        (checkout / "runs" / "tiny" / run / "summary.json").touch()


def test_ppo_takes_all_three_stages_on_a_fresh_clone(checkout):
    assert stages(make(checkout, "ppo")) == ["sft.train", "reward.train", "rl.train"]


@pytest.mark.parametrize(("experiment", "needs_it"), [("small", "sft.train"), ("tiny", "reward.train")])
def test_what_comes_in_a_package_is_made_first_and_once(checkout, experiment, needs_it):
    output = make(checkout, "ppo", f"EXP={experiment}")
    assert stages(output) == ["sft.train", "reward.train", "rl.train"]
    assert output.count("models.packaged") == 1 and output.index("models.packaged") < output.index(needs_it)
    bring_smollm2(checkout)
    assert "models.packaged" not in make(checkout, "ppo", f"EXP={experiment}")


def test_a_recipe_that_reads_with_no_language_model_needs_no_package(checkout):
    recipe = checkout / "experiments" / "tiny" / "reward.yaml"
    recipe.write_text(recipe.read_text().replace("likelihood_model: friend-small-sft", "likelihood_model: null"))
    assert "models.packaged" not in make(checkout, "ppo")


def bring_smollm2(checkout: Path) -> None:
    (checkout / "models" / "pretrained" / "smollm2").mkdir(parents=True)
    (checkout / "models" / "pretrained" / "smollm2" / "config.json").touch()


def test_a_second_make_does_nothing(checkout):
    make(checkout, "ppo")  # lays the recipes' copies
    bring_smollm2(checkout)
    finish(checkout, "sft-s1", "reward-s1", "ppo-s1")
    output = make(checkout, "ppo")
    assert stages(output) == []
    assert "Nothing to be done for 'ppo'" in output


def test_a_changed_ppo_recipe_reruns_ppo_alone(checkout):
    make(checkout, "ppo")
    finish(checkout, "sft-s1", "reward-s1", "ppo-s1")
    with open(checkout / "experiments" / "tiny" / "ppo.yaml", "a") as recipe:
        recipe.write("kl_target: 3.0\n")
    assert stages(make(checkout, "ppo")) == ["rl.train"]


def test_a_touched_recipe_or_another_comment_reruns_nothing(checkout):
    make(checkout, "ppo")
    finish(checkout, "sft-s1", "reward-s1", "ppo-s1")
    recipe = checkout / "experiments" / "tiny" / "sft.yaml"
    recipe.touch()
    assert stages(make(checkout, "ppo")) == []
    recipe.write_text("# another comment\n\n" + recipe.read_text().replace("seed: 1", "seed: 1 # and one here"))
    assert stages(make(checkout, "ppo")) == []
    recipe.write_text(recipe.read_text().replace("seed: 1", "seed: 11"))
    assert stages(make(checkout, "ppo")) == ["sft.train", "rl.train"]


def test_an_unfinished_stage_runs_again_alone_with_what_follows(checkout):
    make(checkout, "ppo")
    finish(checkout, "sft-s1")
    assert stages(make(checkout, "ppo")) == ["reward.train", "rl.train"]
    assert stages(make(checkout, "sft")) == []


def test_another_ppo_seed_starts_from_the_same_sft_and_reward(checkout):
    make(checkout, "ppo")
    finish(checkout, "sft-s1", "reward-s1", "ppo-s1")
    output = make(checkout, "ppo", "SEED=2")
    assert stages(output) == ["rl.train"]
    assert "--seed 2 --run_dir runs/tiny/ppo-s2" in output


@pytest.mark.parametrize("method", ["grpo", "dpo"])
def test_grpo_and_dpo_start_from_what_ppo_starts_from_and_nothing_is_removed(checkout, method):
    output = make(checkout, method, "SEED=2")
    assert stages(output) == ["sft.train", "reward.train", f"rl.{method}"]
    assert f"--seed 2 --run_dir runs/tiny/{method}-s2" in output and "rm " not in output
    finish(checkout, "sft-s1", "reward-s1", "ppo-s1")
    assert stages(make(checkout, method)) == [f"rl.{method}"]


def test_compare_trains_what_is_missing_and_then_compares(checkout):
    arguments = ("compare", "ARMS=sft best-of-n ppo ppo-length expert", "SEEDS=1 2", "CONTROL_SEEDS=1 3")
    output = make(checkout, *arguments)
    assert stages(output) == ["sft.train", "reward.train", "rl.train", "rl.dpo"]
    trained = [line.split("--run_dir ")[1] for line in output.splitlines() if "--run_dir" in line]
    seeds = {"ppo": (1, 2), "ppo-length": (1, 3), "expert": (1, 3)}
    arms = [f"runs/tiny/{arm}-s{seed}" for arm, those in seeds.items() for seed in those]
    assert trained == ["runs/tiny/sft-s1", "runs/tiny/reward-s1", *arms, "runs/tiny/person-s1"]
    assert "tiny/ppo-length.yaml --seed 3 --run_dir runs/tiny/ppo-length-s3" in output and "rm " not in output
    assert "compare.yaml --arms sft best-of-n ppo ppo-length expert --seeds 1 2 --control_seeds 1 3" in output
    finish(checkout, "sft-s1", "reward-s1", "person-s1", *(arm.split("/")[-1] for arm in arms[:-1]))
    assert [
        line.split("--run_dir ")[1] for line in make(checkout, *arguments).splitlines() if "--run_dir" in line
    ] == arms[-1:]
    assert stages(make(checkout, "ppo-length", "SEED=4")) == ["rl.train"]
    (checkout / "experiments" / "tiny" / "grpo.yaml").unlink()
    assert "no recipe experiments/tiny/grpo.yaml" in make(checkout, "compare")


def test_a_recipe_that_is_not_there_is_named(checkout):
    (checkout / "experiments" / "tiny" / "dpo.yaml").unlink()
    assert "no recipe experiments/tiny/dpo.yaml" in make(checkout, "dpo")


def test_an_unknown_experiment_is_named(checkout):
    assert "no folder experiments/nowhere" in make(checkout, "ppo", "EXP=nowhere")


def test_help_explains_every_target(checkout):
    shown = subprocess.run(["make", "help"], cwd=checkout, capture_output=True, text=True).stdout
    text = (ROOT / "Makefile").read_text()
    phony = text.split(".PHONY:")[1].splitlines()[0].split()
    assert [target for target in phony if f"make {target} " not in shown] == []
