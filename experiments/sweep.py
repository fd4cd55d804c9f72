"""A search over keys of PPO's recipe: every trial is a run of PPO, judged by its best checkpoint on validation scenes.

    make sweep           # python -m experiments.sweep --config experiments/tiny/sweep.yaml

A trial's score is what PPO chooses its checkpoint by: the proxy on validation scenes, within max_kl. Neither test scenes
nor the gold judge are asked. Offline, trial 0 is the recipe as it is, and optuna's TPE (Bergstra et al. 2011) proposes the
others; with WANDB_MODE=online a wandb sweep proposes all. In runs/<experiment>/sweep/: question.json (what is searched),
study.db (optuna's), ppo-<trial>/ (a run each, in wandb's group "sweep"), table.md, sweep.png.

A killed sweep goes on: what is finished stays, and offline the trial under way resumes from its checkpoint (wandb takes it
for failed, and it counts among the trials). Another question moves what is found there to sweep.old; more `trials` are the
same question.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import wandb
import yaml
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial
from trl import TrlParser
from trl.experimental.ppo import PPOConfig

from data.source import write_whole
from experiments.run import PROJECT, RunConfig, finish_run, parse_config, scorer_hash, start_run, weights_hash
from models.load import load_tokenizer, resolve
from rl.evaluate import judges, splits
from rl.train import policy_with_reference
from rl.trainer import OpenerConfig, OpenerPPOTrainer, check

LOG = "log_uniform_values"  # wandb's name of it


@dataclass
class SweepConfig(RunConfig):
    """What is searched. A range is written as in a wandb sweep: {values: [...]}, or {min, max} and, where ratios count,
    distribution: log_uniform_values. Two whole numbers as ends give whole numbers."""

    ppo_recipe: str = field(default="experiments/tiny/ppo.yaml", metadata={"help": "what the trials differ from"})
    parameters: dict = field(default_factory=dict, metadata={"help": "key of that recipe -> its range"})
    trials: int = field(default=16, metadata={"help": "in all, those that are finished included"})
    seed: int = field(default=1, metadata={"help": "of the proposals; the runs have the recipe's"})

    def __post_init__(self):
        super().__post_init__()
        if not Path(self.ppo_recipe).is_file():
            raise FileNotFoundError(f"ppo_recipe: there is no file {self.ppo_recipe}")
        if self.trials < 1:
            raise ValueError(f"trials is {self.trials}: it must be 1 or more")
        if not self.parameters:
            raise ValueError("parameters is empty: name keys of the recipe, each with its range")
        for key, spec in self.parameters.items():
            check_range(key, spec)


def main(config: SweepConfig) -> list[dict]:
    """Searches, and returns the trials, best first: {"trial", each key, "score", "kl", "update"}."""
    experiment = Path(config.ppo_recipe).resolve().parent.name
    directory = Path(config.run_dir or Path("runs") / experiment / "sweep")
    check_ends(config)
    prepare(directory, question(config))

    if os.environ.get("WANDB_MODE") == "online":
        search_online(config, directory)
    else:
        search_offline(config, directory)

    rows = trials_of(directory, list(config.parameters))
    text = table(rows) + "\n" + advice(rows, config) + "\n"
    write_whole(directory / "table.md", text)
    plot(rows, config.parameters, directory / "sweep.png")
    print(f"\n{text}\ndone: {directory}")
    return rows


def trial(config: OpenerConfig, args: PPOConfig) -> None:
    """A run of PPO as rl.train's, but for its end: the test scenes and the gold judge are kept for what was chosen."""
    config.gold_model_path = None
    run = start_run(config, args, stage="sweep", seed=args.seed, parents=[args.sft_model_path, args.reward_model_path])
    tokenizer = load_tokenizer(args.sft_model_path)
    policy = policy_with_reference(args.sft_model_path, config)
    scorer, _ = judges(config, args.reward_model_path, args.device)
    train, validation, _ = splits(config)

    trainer = OpenerPPOTrainer(config, args, run, tokenizer, policy, scorer, train, validation)
    trainer.train()
    finish_run(run, {"best": trainer.best, "best_score": trainer.best["score"]})  # wandb optimises no nested number


# ------------------------------------------------------------------------------------------ the question


def check_range(key: str, spec) -> None:
    """Refuses a key that PPO's recipes do not have, and a range that is empty or none."""
    if key not in {*OpenerConfig.__dataclass_fields__, *PPOConfig.__dataclass_fields__} - {"run_dir"}:
        raise ValueError(f"parameters: {key!r} is no key of PPO's recipes")
    keys = set(spec) if isinstance(spec, dict) else set()
    if keys == {"values"} and isinstance(spec["values"], list) and spec["values"]:
        return
    if keys - {"distribution"} != {"min", "max"} or spec.get("distribution", LOG) != LOG:
        raise ValueError(
            f"parameters: {key} is {spec}; write {{values: [...]}} with one or more, or {{min: ..., max: ...}}, "
            f"and there, where ratios count, distribution: {LOG}"
        )
    for end in (spec["min"], spec["max"]):
        if isinstance(end, bool) or not isinstance(end, int | float):
            raise ValueError(f"parameters: {key}: {end!r} is no number (YAML wants 5.0e-7 for 5e-7)")
    if not spec["min"] < spec["max"] or ("distribution" in spec and spec["min"] <= 0):
        raise ValueError(f"parameters: {key} is {spec}: min must be below max, and above 0 for {LOG}")


def check_ends(config: SweepConfig) -> None:
    """Refuses values that no run could have, before any trial is made."""
    scenes, _, _ = splits(settings(config.ppo_recipe)[0])
    for key, spec in config.parameters.items():
        for value in spec.get("values") or (spec["min"], spec["max"]):
            check(*settings(config.ppo_recipe, **{key: value}), scenes, processes=1)


def settings(recipe: str, **values) -> tuple[OpenerConfig, PPOConfig]:
    """The recipe's settings, with other values of some keys."""
    argv = ["--config", recipe, *(f"--{key}={value}" for key, value in values.items())]
    config, args = TrlParser((OpenerConfig, PPOConfig)).parse_args_and_config(argv)
    config.recipe = recipe
    return config, args


def question(config: SweepConfig) -> dict:
    """All that the scores depend on."""
    _, args = settings(config.ppo_recipe)
    parents = [resolve(name) for name in (args.sft_model_path, args.reward_model_path)]
    return {
        "recipe": yaml.safe_load(Path(config.ppo_recipe).read_text()),
        "parameters": config.parameters,
        "seed": config.seed,
        "parents": [[weights_hash(path), scorer_hash(path)] for path in parents],
    }


def prepare(directory: Path, asked: dict) -> None:
    """The sweep's directory, ready for this question: trials of another one move to <directory>.old."""
    file = directory / "question.json"
    if file.exists() and json.loads(file.read_text()) != asked:
        old = directory.with_name(directory.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
        print(f"{directory}: what is there answers another question; it is now {old}")
    write_whole(file, json.dumps(asked, indent=1) + "\n")


# ------------------------------------------------------------------------------------------ the search


def search_offline(config: SweepConfig, directory: Path) -> None:
    """Trials one after the other in this process; the finished ones, failed ones among them, stand in study.db."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {key: distribution(spec) for key, spec in config.parameters.items()}
    study = optuna.create_study(
        storage=f"sqlite:///{directory}/study.db", study_name="sweep", direction="maximize", load_if_exists=True
    )
    for number in range(len(study.trials), config.trials):
        values = proposed(config, study.trials, space, number)
        ppo, args = settings(config.ppo_recipe, **values)
        run = directory / f"ppo-t{number}"
        ppo.run_dir = str(run)
        print(f"trial {number} of {config.trials}: {in_yaml(values)}")
        try:
            if not (run / "summary.json").exists():  # else it was killed between there and study.db
                trial(ppo, args)
            told = {"value": best_of(run)["score"]}
        except FloatingPointError as error:
            wandb.finish(exit_code=1)
            print(f"trial {number} failed: {error}")
            told = {"state": TrialState.FAIL}
        study.add_trial(create_trial(params=values, distributions=space, **told))


def distribution(spec: dict) -> BaseDistribution:
    """optuna's word for a range."""
    if "values" in spec:
        return CategoricalDistribution(spec["values"])
    whole = isinstance(spec["min"], int) and isinstance(spec["max"], int)
    return (IntDistribution if whole else FloatDistribution)(spec["min"], spec["max"], log="distribution" in spec)


def proposed(config: SweepConfig, told: list, space: dict[str, BaseDistribution], number: int) -> dict:
    """The values of a trial: a function of the seed, its number and the trials before it, and so the same once more after
    a kill. The first are the recipe's own, where the ranges hold them."""
    own = own_values(config)
    if number == 0 and all(holds(spec, own[key]) for key, spec in config.parameters.items()):
        return own
    sampler = TPESampler(seed=config.seed * 1000 + number, n_startup_trials=5)
    study = optuna.create_study(sampler=sampler, direction="maximize")  # in memory: nothing is left half-told by a kill
    study.add_trials(told)
    return study.ask(space).params


def own_values(config: SweepConfig) -> dict:
    """What the recipe itself has for the keys that are searched."""
    ppo, args = settings(config.ppo_recipe)
    return {key: {**vars(ppo), **vars(args)}[key] for key in config.parameters}


def holds(spec: dict, value) -> bool:
    if "values" in spec:
        return value in spec["values"]
    return isinstance(value, int | float) and spec["min"] <= value <= spec["max"]


def search_online(config: SweepConfig, directory: Path) -> None:
    """wandb proposes and keeps the book; its agent starts this module once a trial (see the end of the file), since a run
    notes signals, which only a main thread may."""
    project, file = os.environ.get("WANDB_PROJECT", PROJECT), directory / "wandb_sweep.txt"
    if not file.exists():
        command = [
            sys.executable,
            "-m",
            "experiments.sweep",
            "--config",
            config.ppo_recipe,
            "--run_dir",
            str(directory),
        ]
        sweep = {
            "name": f"{directory.parent.name}/{directory.name}",
            "method": "bayes",
            "metric": {"name": "best_score", "goal": "maximize"},
            "parameters": config.parameters,
            "program": "experiments/sweep.py",
            "command": [*command, "${args}"],
        }
        write_whole(file, wandb.sweep(sweep, project=project) + "\n")
    left = config.trials - len(trials_of(directory, list(config.parameters)))
    if left > 0:
        wandb.agent(file.read_text().strip(), project=project, count=left)


def agents_trial(config: OpenerConfig, args: PPOConfig) -> None:
    """The trial that wandb's agent asks for, in a run directory of wandb's name for it."""
    config.run_dir = f"{config.run_dir}/ppo-{os.environ['WANDB_RUN_ID']}"
    trial(config, args)


# ------------------------------------------------------------------------------------------ what came out


def trials_of(directory: Path, keys: list[str]) -> list[dict]:
    """A row for every run that was begun, best first; those that did not finish come last, without a score."""
    rows = []
    for file in sorted(directory.glob("ppo-*/config.json")):
        run, values = file.parent, json.loads(file.read_text())
        if run.suffix == ".old":
            continue
        best = best_of(run) if (run / "summary.json").exists() else {}
        rows.append(
            {"trial": run.name.removeprefix("ppo-"), **{key: values[key] for key in keys}}
            | {key: best.get(key) for key in ("score", "kl", "update")}
        )
    return sorted(rows, key=lambda row: (row["score"] is None, -(row["score"] or 0)))


def best_of(run: Path) -> dict:
    """{"score", "kl", "update"} of the checkpoint that PPO chose."""
    return json.loads((run / "summary.json").read_text())["best"]


def table(rows: list[dict]) -> str:
    """Markdown, a line a trial."""
    heads = {"score": "score, validation", "kl": "KL to SFT, nats"}
    lines = ["| " + " | ".join(heads.get(key, key) for key in rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        shown = [f"{row[key]:.3f}" if key in heads and row[key] is not None else short(row[key]) for key in row]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def short(value) -> str:
    return "failed" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def in_yaml(values: dict) -> str:
    return ", ".join(f"{key}: {short(value)}" for key, value in values.items())


def advice(rows: list[dict], config: SweepConfig) -> str:
    """What to put into the recipe, and how far to believe it."""
    best, own = rows[0], own_values(config)
    finished = [row for row in rows if row["score"] is not None]
    if not finished:
        return "No trial finished: choose lower values, of learning_rate above all."
    if best["update"] == 0:
        return (
            f"In none of {len(finished)} trials did PPO rise above the SFT policy within max_kl: choose other ranges."
        )
    values = {key: best[key] for key in own}
    recipe = next((row for row in finished if all(row[key] == own[key] for key in own)), None)
    if recipe is best:
        return f"Leave {config.ppo_recipe} as it is: none of {len(finished) - 1} other trials scored higher."
    line = f"Into {config.ppo_recipe}: {in_yaml(values)} (score {best['score']:.3f} at {best['kl']:.2f} nats"
    line += f"; as it is, {recipe['score']:.3f} at {recipe['kl']:.2f})." if recipe else ")."
    return (
        f"{line} The best of {len(finished)} trials on the same scenes with one training seed: part of its lead is luck, "
        "so train it with other seeds before you believe it."
    )


def plot(rows: list[dict], parameters: dict, path: Path) -> None:
    """Score against KL, the same points in each panel, coloured by one key's value. Nothing where no trial finished."""
    finished = [row for row in rows if row["score"] is not None]
    if not finished:
        return
    figure = Figure(figsize=(5 * len(parameters), 4), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(parameters), squeeze=False)[0], parameters, strict=True):
        names = sorted({row[key] for row in finished})
        as_names = "values" in parameters[key]
        points = axes.scatter(
            [row["kl"] for row in finished],
            [row["score"] for row in finished],
            c=[names.index(row[key]) if as_names else row[key] for row in finished],
            norm="log" if "distribution" in parameters[key] else None,
        )
        bar = figure.colorbar(points, ax=axes)
        if as_names:
            bar.set_ticks(range(len(names)), labels=[short(name) for name in names])
        for row in finished:
            axes.annotate(
                row["trial"], (row["kl"], row["score"]), fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
        axes.set(title=key, xlabel="KL to SFT (nats a response)", ylabel="score on validation scenes")
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=130)
    temporary.replace(path)


if __name__ == "__main__":
    if "WANDB_SWEEP_ID" in os.environ:  # wandb's agent wants a trial
        agents_trial(*parse_config(OpenerConfig, PPOConfig))
    else:
        main(*parse_config(SweepConfig))
