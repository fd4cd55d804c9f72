"""A comparison as a run of its own in wandb: its table, figures and openers side by side, its parents the compared runs.

Its directory is runs/<experiment>/compare-s<seed>, beside what the comparison wrote (compare/). A comparison that is made
again and says the same adds nothing. One that says something else is a new run in wandb, and the directory of the last
one becomes compare-s<seed>.old, as with every stage: what wandb has of it stays.
"""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import wandb

from experiments.compare.arms import TITLES, TRAINED
from experiments.compare.report import SCENES, side_by_side
from experiments.run import finish_run, start_run
from models.load import resolve

if TYPE_CHECKING:
    from experiments.compare.__main__ import Comparison


def track(found: "Comparison") -> Path:
    """Logs a comparison whose files are written; returns the run's directory. Offline unless WANDB_MODE=online."""
    config = found.config
    written = Path(config.run_dir or Path(config.runs_dir) / "compare")
    tables = {"estimates": estimates(found), "side_by_side": openers(found)}
    said = [tables, found.verdict, [(written / name).read_bytes().hex() for name in figures(written)]]
    content = hashlib.sha256(json.dumps(said).encode()).hexdigest()

    own = replace(config, run_dir=str(written.with_name(f"{written.name}-s{config.seed}")))
    own.recipe = config.recipe
    summary = Path(own.run_dir) / "summary.json"
    if summary.exists() and json.loads(summary.read_text())["content"] == content:
        print(f"wandb: says what {own.run_dir} said; no new run")
        return Path(own.run_dir)

    run = start_run(own, stage="compare", seed=config.seed, parents=compared(found))
    run.wandb.notes = found.verdict
    for name, (columns, rows) in tables.items():
        run.table(name, columns, rows)
    run.wandb.log({Path(name).stem: wandb.Image(str(written / name)) for name in figures(written)})
    finish_run(run, {"content": content, **headlines(found)})
    return run.dir


def compared(found: "Comparison") -> list[str]:
    """The runs and models that the numbers come from."""
    config = found.config
    judges = [config.reward_model_path]
    if any(row.get("gold") is not None for row in found.rows):
        judges.append(config.gold_model_path)
    trained = sorted({(row["arm"], row["seed"]) for row in found.rows if row["arm"] in TRAINED})
    runs = [f"{config.runs_dir}/{arm}-s{seed}" for arm, seed in trained]
    talked = [config.person_model_path, config.emotion_model_path] if found.talks else []
    named = (config.sft_model_path, *judges, *talked)  # runs, or models that ship
    return [name if (Path(name) / "lineage.json").exists() else resolve(name) for name in named] + runs


def estimates(found: "Comparison") -> tuple[list[str], list[list]]:
    """table.csv's columns and rows: one for each arm and measure."""
    rows = [
        [TITLES[arm], key, *map(finite, (e.value, e.low, e.high)), e.seeds]
        for arm, values in found.table.items()
        for key, e in values.items()
    ]
    return ["arm", "measure", "value", "low", "high", "seeds"], rows


def openers(found: "Comparison") -> tuple[list[str], list[list]]:
    """A row for each of the scenes that the report shows: what every arm wrote for it, with its scores."""
    scenes, arms = found.scenes[:SCENES], list(found.table)
    scores = ["proxy"] + ["gold"] * any(row.get("gold") is not None for row in found.rows)
    columns = [
        "scene",
        "profile",
        "greeting",
        *(f"{arm}{part}" for arm in arms for part in ("", *(f" {s}" for s in scores))),
    ]
    rows = []
    for scene, shown in zip(scenes, side_by_side(found.rows, arms, [s.id for s in scenes]), strict=True):
        cells = [shown.get(arm, {}).get(key) for arm in arms for key in ("opener", *scores)]
        rows.append([scene.id, "; ".join(scene.profile), scene.greeting or "", *cells])
    return columns, rows


def headlines(found: "Comparison") -> dict:
    """arm -> measure -> value, which wandb's own pages plot and sort by: "ppo.gold_gain"."""
    return {arm: {key: finite(e.value) for key, e in values.items()} for arm, values in found.table.items()}


def figures(written: Path) -> list[str]:
    return sorted(path.name for path in written.glob("*.png"))


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
