"""frontier.png: what each score gains for the KL it costs. seeds.png: learning curves."""

import json
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np

from experiments.compare.arms import BEST_OF, TITLES, TRAINED, Speaker
from experiments.compare.numbers import Fit, fit_gain
from experiments.compare.table import SCORES, Table

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

#: One colour an arm in all figures.
COLOURS = {arm: f"C{i}" for i, arm in enumerate((*TRAINED, "sft", "base", "human", "best-of-n"))}
#: Evaluations on validation scenes, which every arm logs under these names, and their titles.
CURVES = {
    "eval/score": "its own reward",
    "eval/gold": "gold",
    "eval/kl": "KL to SFT, nats",
    "eval/tokens": "tokens",
    "eval/distinct_2": "distinct-2",
}


def learning_curves(who: list[Speaker]) -> dict[str, list[list[dict]]]:
    """arm -> for each seed the evaluations on validation scenes that its run logged, in order."""
    curves = defaultdict(list)
    for speaker in who:
        if speaker.arm in TRAINED:
            lines = (Path(speaker.model) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            curves[speaker.arm].append([row for row in map(json.loads, lines) if "eval/score" in row])
    return dict(curves)


def checkpoints(runs: list[list[dict]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """d_SC = sqrt(KL) and gain_SC over the run's first evaluation, which is of the SFT policy, of S seeds' C checkpoints
    that all seeds have; empty where the score was not logged."""
    size = min(map(len, runs), default=0)
    if not size or not all(key in row for run in runs for row in run[:size]):
        return np.zeros((0, 0)), np.zeros((0, 0))
    d = np.array([[max(row["eval/kl"], 0.0) ** 0.5 for row in run[:size]] for run in runs])
    score = np.array([[row[key] for row in run[:size]] for run in runs])
    return d, score - score[:, :1]


def fits(table: Table, curves: dict[str, list[list[dict]]], score: str) -> dict[str, Fit]:
    """Gao et al.'s curve through PPO's checkpoints ("ppo", all seeds) and through best-of-n's points ("best-of-n"), each
    where it has points enough."""
    d, gain = checkpoints(curves.get("ppo", []), "eval/score" if score == "proxy" else "eval/gold")
    points = [
        (v["kl"].value ** 0.5, v[f"{score}_gain"].value)
        for a, v in table.items()
        if a in BEST_OF and f"{score}_gain" in v
    ]
    found = {
        "ppo": fit_gain(d.ravel(), gain.ravel(), is_rl=True),
        "best-of-n": fit_gain(*np.array(points or [(0, 0)]).T, is_rl=False),
    }
    return {name: fit for name, fit in found.items() if fit}


def frontier(table: Table, curves: dict[str, list[list[dict]]], path: Path) -> None:
    """Gain over SFT against sqrt(KL), a panel a score: the arms on test scenes with their intervals, PPO's checkpoints on
    validation scenes as a curve for each seed and a band over them, the fits dashed with their peak marked. Nothing is
    written where SFT is alone."""
    shown = [score for score in SCORES if any(f"{score}_gain" in values for values in table.values())]
    if not shown:
        return
    figure, panels = plt.subplots(1, len(shown), figsize=(6.4 * len(shown), 4.8), squeeze=False)
    for axes, score in zip(panels[0], shown, strict=True):
        draw_checkpoints(axes, curves, "eval/score" if score == "proxy" else "eval/gold")
        draw_arms(axes, table, f"{score}_gain")
        for name, fit in fits(table, curves, score).items():
            d = np.linspace(0.02, axes.get_xlim()[1], 200)
            axes.plot(d, fit(d), "--", color=COLOURS[name], lw=1, alpha=0.7)
            if fit.peak:
                axes.axvline(fit.peak, color=COLOURS[name], lw=0.8, ls=":")
                axes.annotate(f"peak {fit.peak**2:.1f} nats", (fit.peak, fit(np.array(fit.peak))), fontsize=8)
        axes.axhline(0, color="0.7", lw=0.8, zorder=0)
        axes.plot(0, 0, "o", ms=5, color=COLOURS["sft"], label=TITLES["sft"])
        axes.set(xlabel="square root of KL to SFT (nats a response)", ylabel=f"{score}: gain over SFT", title=score)
    handles = {label: h for axes in panels[0] for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[0][-1].legend(handles.values(), handles.keys(), fontsize=8)
    save(figure, path)


def draw_checkpoints(axes, curves: dict[str, list[list[dict]]], key: str) -> None:
    d, gain = checkpoints(curves.get("ppo", []), key)
    for d_C, gain_C in zip(d, gain, strict=True):
        axes.plot(d_C, gain_C, color=COLOURS["ppo"], lw=0.8, alpha=0.5)
    if len(d) > 1:
        grid = np.linspace(0, d.max(1).min(), 50)  # as far as all seeds went
        on_grid = np.array(
            [np.interp(grid, d_C[np.argsort(d_C)], g[np.argsort(d_C)]) for d_C, g in zip(d, gain, strict=True)]
        )
        axes.fill_between(grid, on_grid.min(0), on_grid.max(0), color=COLOURS["ppo"], alpha=0.15, lw=0)
    if len(d):
        axes.plot(d.mean(0), gain.mean(0), ".-", color=COLOURS["ppo"], lw=1.5, label="PPO's checkpoints (validation)")


def draw_arms(axes, table: Table, key: str) -> None:
    """Each arm's point; best-of-n's are joined, each at the bound of its KL; people's is a line, they have no KL. The base
    stands in the table alone: its KL would squeeze all others into a corner."""
    points = {arm: (v["kl"], v[key]) for arm, v in table.items() if key in v and "kl" in v and arm != "base"}
    if key in table.get("human", {}):
        axes.axhline(table["human"][key].value, color=COLOURS["human"], lw=0.8, ls="-.", label=TITLES["human"])
    for arm, (kl, gain) in points.items():
        colour = COLOURS["best-of-n" if arm in BEST_OF else arm]
        d, low, high = (max(x, 0.0) ** 0.5 for x in (kl.value, kl.low, kl.high))
        axes.errorbar(
            d, gain.value, yerr=bars(gain.value, gain.low, gain.high), xerr=bars(d, low, high), fmt="o", ms=5, color=colour,
            capsize=2, lw=1, label=None if arm in BEST_OF else TITLES[arm],
        )  # fmt: skip
    best = [(kl.value**0.5, gain.value) for arm, (kl, gain) in points.items() if arm in BEST_OF]
    if best:
        axes.plot(*zip(*best, strict=True), color=COLOURS["best-of-n"], lw=1, label="best of n (KL: its bound)")


def bars(value: float, low: float, high: float) -> list[list[float]]:
    """Error bars; a percentile interval need not hold the value."""
    return [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def learning(curves: dict[str, list[list[dict]]], path: Path) -> None:
    """Evaluations on validation scenes against the share of the run: the mean over seeds, and a band from the lowest seed
    to the highest. Nothing is written where no arm was trained."""
    keys = [key for key in CURVES if any(key in row for runs in curves.values() for run in runs for row in run)]
    if not keys:
        return
    figure, panels = plt.subplots(1, len(keys), figsize=(3.6 * len(keys), 3.4), squeeze=False)
    for axes, key in zip(panels[0], keys, strict=True):
        for arm, runs in curves.items():
            size = min(map(len, runs))
            if not size or not all(key in row for run in runs for row in run[:size]):
                continue
            values = np.array([[row[key] for row in run[:size]] for run in runs])
            share = np.array([row["step"] for row in runs[0][:size]]) / max(runs[0][size - 1]["step"], 1)
            axes.plot(share, values.mean(0), color=COLOURS[arm], label=f"{TITLES[arm]} ({len(runs)})")
            axes.fill_between(share, values.min(0), values.max(0), color=COLOURS[arm], alpha=0.15, lw=0)
        axes.set(title=CURVES[key], xlabel="share of the run")
    panels[0][0].legend(fontsize=7, title="arm (seeds)", title_fontsize=7)
    save(figure, path)


def save(figure, path: Path) -> None:
    figure.tight_layout()
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=130)
    temporary.replace(path)
    plt.close(figure)
