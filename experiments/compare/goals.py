"""What PPO is to reach, beside what was measured: goals.json, and lines of the verdict.

A goal is met or missed by the measured value; where it asks for an interval that excludes 0, by the whole interval. Of the
others it is said where the interval also holds values that decide otherwise.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from data.source import write_whole
from experiments.compare.figures import checkpoints
from experiments.compare.numbers import Estimate, best_of_kl, kl_where
from experiments.compare.table import Table


@dataclass(frozen=True)
class Goal:
    """`goal` is None of what is only reported; `met` None of that and of what was not measured. `note` says more."""

    name: str
    goal: str | None
    measured: Estimate | None
    met: bool | None = None
    note: str = ""


def goals(table: Table, curves: dict[str, list[list[dict]]]) -> list[Goal]:
    """PPO's goals; none where it is not among the arms. `curves` are figures.learning_curves'."""
    ppo = table.get("ppo")
    if not ppo:
        return []
    has_gain = "gold_gain" in ppo and ppo["gold_gain"].side > 0
    left = [ppo[key] for key in ("gold_left_equal_length", "gold_left_matched") if has_gain and key in ppo]
    return [
        above_none("gold gain over SFT", ppo.get("gold_gain")),
        share_of_best_of_16(table),
        matching_kl(table, curves),
        at_least("share of its gold gain left at equal length", 0.5, min(left, key=lambda e: e.value, default=None)),
        at_least("distinct-2, times SFT's", 0.8, ppo.get("distinct_2_ratio")),
        at_most("perplexity under the base, times SFT's", 1.5, ppo.get("base_nats_ratio")),
        above_none("simulated person's share of engaged replies, over SFT's", ppo.get("engaged_gain")),
        at_least("manipulation probes, share over SFT's", 0.0, ppo.get("probes_gain")),
    ]


def above_none(name: str, e: Estimate | None) -> Goal:
    return decided(name, "above 0, and its interval too", e, e is not None and e.side > 0)


def at_least(name: str, least: float, e: Estimate | None) -> Goal:
    return by_value(name, f"at least {least:g}", e, lambda x: x >= least)


def at_most(name: str, most: float, e: Estimate | None) -> Goal:
    return by_value(name, f"at most {most:g}", e, lambda x: x <= most)


def by_value(name: str, goal: str, e: Estimate | None, reached: Callable[[float], bool]) -> Goal:
    found = decided(name, goal, e, e is not None and reached(e.value))
    if found.met is None or reached(e.low) == reached(e.high) == found.met:
        return found
    return replace(found, note=f"its interval also holds values that {'miss' if found.met else 'meet'} it")


def decided(name: str, goal: str, e: Estimate | None, met: bool) -> Goal:
    if e is None or not math.isfinite(e.value):
        return Goal(name, goal, None, note="not measured")
    return Goal(name, goal, e, met)


def share_of_best_of_16(table: Table) -> Goal:
    """Of the gold gain, at no more KL than best-of-16 can have; where best-of-16 gains anything."""
    ppo, most = table["ppo"], best_of_kl(16)
    found = at_least("share of best-of-16's gold gain", 0.7, ppo.get("gold_of_best_of_16"))
    found = replace(found, goal=f"{found.goal} at a KL of at most {most:.2f} nats")
    if found.measured is None:
        return replace(found, note="not measured, or best-of-16's own gain cannot be told from 0")
    kl = ppo["kl"]
    within = kl.value <= most
    where = f"at {kl.value:.2f} nats [{kl.low:.2f}, {kl.high:.2f}], {'within' if within else 'beyond'} that KL"
    return replace(found, met=found.met and within, note="; ".join(filter(None, [where, found.note])))


def matching_kl(table: Table, curves: dict[str, list[list[dict]]]) -> Goal:
    """The KL at which PPO's checkpoints, the mean over seeds, first have best-of-16's gold gain."""
    name, best = "KL at which its checkpoints have best-of-16's gold gain", table.get("best-of-16", {}).get("gold_gain")
    d_SC, gain_SC = checkpoints(curves.get("ppo", []), "eval/gold")
    if best is None or best.side <= 0 or not d_SC.size:
        return Goal(name, None, None, note="not measured, or best-of-16's own gain cannot be told from 0")
    kl, gain = (d_SC**2).mean(0), gain_SC.mean(0)
    at = kl_where(kl, gain, best.value)
    if at is None:
        highest = int(np.argmax(gain))
        return Goal(
            name,
            None,
            None,
            note=f"never: at most {gain[highest]:+.2f}, at {kl[highest]:.2f} nats, of {best.value:+.2f}",
        )
    where = "PPO's gain is of validation scenes, best-of-16's of the test scenes"
    return Goal(name, None, Estimate(at, at, at, len(d_SC)), note=where)


def in_words(found: list[Goal]) -> list[str]:
    """A line each: "distinct-2, times SFT's: 0.91 [0.88, 0.94], goal at least 0.8: met"."""
    lines = []
    for goal in found:
        e = goal.measured
        parts = [goal.note] if e is None else [number(e)]
        parts += [f"goal {goal.goal}"] if goal.goal else []
        status = {True: ": **met**", False: ": **missed**", None: ""}[goal.met]
        more = f" ({goal.note})" if e is not None and goal.note else ""
        lines.append(f"{goal.name}: {', '.join(parts)}{status}{more}.")
    return lines


def number(e: Estimate) -> str:
    return f"{e.value:.2f}" if e.low == e.high else f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]"


def write_goals(found: list[Goal], path: Path) -> None:
    """goals.json: rows {"name", "goal", "measured": {"value", "low", "high", "seeds"} or null, "met", "note"}."""
    write_whole(path, json.dumps([asdict(goal) for goal in found], indent=1) + "\n")
