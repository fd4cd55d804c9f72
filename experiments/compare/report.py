"""report.html: the comparison as one page for people who read nothing else, with openers of the same scenes side by side.

The page holds all it needs (report.html is its template, with report.css and report.js put into it, and the figures as
data) and its Content-Security-Policy lets it ask nobody and run no other script. Jinja escapes whatever models wrote.

The expected reactions are the proxy's. They are kept in reactions.parquet, {"key", "proxy_key", "scene", "sample",
"reactions": label -> probability}, so that a second page of the same rows loads no model.
"""

import base64
import hashlib
import math
import os
import platform
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data.source import write_whole
from experiments.compare.arms import BEST_OF, TITLES, TRAINED
from experiments.compare.figures import CURVES
from experiments.compare.openers import read, write
from experiments.compare.table import HEADINGS, cell
from experiments.run import git
from models.load import load_scorer

if TYPE_CHECKING:
    from experiments.compare.__main__ import Comparison

HERE = Path(__file__).parent
SCENES = 50  # whose openers are shown: the first ones, no choice is made
#: Arms whose openers are shown before the reader chooses.
FIRST_SHOWN = ("sft", "best-of-16", "ppo", "human")
#: Columns that are shown before the reader asks for all.
MAIN = (
    "gold_gain", "proxy_gain", "kl", "words", "gold_gain_equal_length", "proxy_gain_equal_length", "distinct_2",
    "base_nats", "probes", "engaged", "win_rate",
)  # fmt: skip
#: What PPO changed, at a glance.
AT_A_GLANCE = {
    "gold_gain": "gold, gain over SFT",
    "proxy_gain": "proxy, gain over SFT",
    "kl": "KL to SFT, nats an opener",
    "gold_gain_equal_length": "gold gain at equal length",
    "engaged_gain": "engaged replies, share over SFT’s",
    "distinct_2_ratio": "times SFT’s distinct-2",
    "base_nats_ratio": "times SFT’s perplexity",
}


def write_report(
    comparison: "Comparison", curves: dict[str, list[list[dict]]], directory: Path, notes: list[str]
) -> None:
    """Writes directory/report.html of a comparison whose figures are there; `curves` are figures.learning_curves'."""
    table, scenes = comparison.table, comparison.scenes[:SCENES]
    shown = side_by_side(comparison.rows, list(table), [scene.id for scene in scenes])
    reactions = reactions_of(shown, comparison, directory / "reactions.parquet")
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    page = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html")
    html = page.render(
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        experiment=Path(comparison.config.runs_dir).name,
        facts=facts(comparison),
        glance=[(AT_A_GLANCE[k], cell(table["ppo"][k], k)) for k in AT_A_GLANCE if k in table.get("ppo", {})],
        verdict=comparison.verdict,
        columns={key: HEADINGS[key] for key in HEADINGS if any(key in values for values in table.values())},
        main=MAIN,
        table=table,
        cell=cell,
        isfinite=math.isfinite,
        notes=notes,
        figures={name: data_uri(directory / f"{name}.png") for name in ("frontier", "seeds")},
        curves=in_words(curves),
        titles=TITLES,
        first_shown=FIRST_SHOWN,
        arms=[arm for arm in table if any(arm in openers for openers in shown)],
        side_by_side=list(zip(scenes, shown, strict=True)),
        reactions=reactions,
        place=place,
    )
    write_whole(directory / "report.html", html)


# ------------------------------------------------------------------------------------------ openers


def side_by_side(rows: list[dict], arms: list[str], scenes: list[str]) -> list[dict[str, dict]]:
    """For each scene one row of each arm that wrote for it. Of an arm's training seeds the scenes take turns."""
    grouped = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["seed"], row["sample"])):
        grouped[row["arm"], row["scene"]].append(row)
    shown = []
    for turn, scene in enumerate(scenes):
        found = {arm: chosen(arm, grouped["sft" if arm in BEST_OF else arm, scene], turn) for arm in arms}
        shown.append({arm: row for arm, row in found.items() if row})
    return shown


def chosen(arm: str, rows: list[dict], turn: int) -> dict | None:
    """An arm's first sample, of the seed whose turn it is; of best-of-n the best of SFT's first n."""
    if arm in BEST_OF:
        return max(rows[: BEST_OF[arm]], key=lambda row: row["proxy"])
    firsts = [row for row in rows if row["sample"] == 0]
    return firsts[turn % len(firsts)] if firsts else None


def reactions_of(shown: list[dict[str, dict]], comparison: "Comparison", path: Path) -> dict[tuple, dict[str, float]]:
    """place(row) -> label -> the proxy's probability of it, of every row that is shown; only what `path` lacks is
    computed."""
    rows = {place(row): row for part in shown for row in part.values()}
    kept = {place(row): row["reactions"] for row in read(path)}
    if missing := [at for at in rows if at not in kept]:
        scenes = {scene.id: scene for scene in comparison.scenes}
        config, device = comparison.config, "cuda" if torch.cuda.is_available() else "cpu"
        scorer = load_scorer(config.reward_model_path, device, dtype=config.reward_dtype)
        of = [(scenes[rows[at]["scene"]], rows[at]["opener"]) for at in missing]
        probs_BR = scorer.score(
            [{"context": [s.greeting] if s.greeting else [], "response": o, "profile": list(s.profile)} for s, o in of]
        )[1]
        for at, probs_R in zip(missing, probs_BR.tolist(), strict=True):
            kept[at] = dict(zip(scorer.labels, probs_R, strict=True))
        names = ("key", "proxy_key", "scene", "sample")
        write(path, [{**dict(zip(names, at, strict=True)), "reactions": kept[at]} for at in rows])
    return kept


def place(row: dict) -> tuple[str, str | None, str, int]:
    return row["key"], row.get("proxy_key"), row["scene"], row["sample"]


# ------------------------------------------------------------------------------------------ the page's head and figures


def facts(comparison: "Comparison") -> dict[str, str]:
    """Where and of what the page was made."""
    config = comparison.config
    trained = sorted({(row["arm"], row["seed"], row["run_id"]) for row in comparison.rows if row["arm"] in TRAINED})
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "Date": date.today().isoformat(),
        "Commit": commit(),
        "Hardware": ", ".join(gpus) or f"{os.cpu_count()} CPU cores ({platform.machine()})",
        "Training seeds": config.training_seeds if trained else "nothing was trained",
        "Scenes": f"{len(comparison.scenes)} held out, {config.samples} openers each",
        "Runs": ", ".join(f"{arm}-s{seed} ({id})" for arm, seed, id in trained) or "none",
    }


def commit() -> str:
    """Of the code, with "-dirty" where it was changed since."""
    return git("describe", "--always", "--dirty", "--exclude=*", "--abbrev=12").strip() or "unknown"


def data_uri(path: Path) -> str | None:
    if not path.exists():  # SFT alone has no figures
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def in_words(curves: dict[str, list[list[dict]]]) -> dict[str, str]:
    """What seeds.png shows, arm by arm: "its own reward 0.10 to 0.40, KL to SFT, nats 0.00 to 2.10", means over seeds."""
    said = {}
    for arm, runs in curves.items():
        keys = [key for key in CURVES if runs and all(run and key in run[0] and key in run[-1] for run in runs)]
        first, last = ({key: sum(run[end][key] for run in runs) / len(runs) for key in keys} for end in (0, -1))
        said[arm] = "; ".join(f"{CURVES[key]} {first[key]:.2f} to {last[key]:.2f}" for key in keys)
    return said
