"""What stands in README: an arm a line and the few measures that decide, then PPO's goals; summary.md.

table.md has every measure, and is too wide to be read on one screen.
"""

from pathlib import Path

from data.source import write_whole
from experiments.compare.arms import TITLES
from experiments.compare.goals import Goal, number
from experiments.compare.table import Table, cell

#: Column of the summary -> its heading. An interval stands where a difference from SFT is told.
COLUMNS = {
    "kl": "KL to SFT, nats",
    "proxy_gain": "proxy, over SFT",
    "gold_gain": "**gold, over SFT**",
    "gold_gain_equal_length": "the same at equal length",
    "words": "words",
    "distinct_2": "distinct-2",
    "base_nats_ratio": "perplexity, × SFT's",
    "probes_gain": "manipulation probes, over SFT",
    "engaged_gain": "engaged replies, over SFT",
    "win_rate": "judge: win rate against SFT",
}
MET = {True: "met", False: "**missed**", None: ""}


def write_summary(table: Table, goals: list[Goal], directory: Path, notes: list[str]) -> str:
    """Writes summary.md and returns it; measures that no arm has are left out."""
    shown = [key for key in COLUMNS if any(key in values for values in table.values())]
    lines = ["| | " + " | ".join(COLUMNS[key] for key in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for arm, values in table.items():
        seeds = max((e.seeds for e in values.values()), default=1)
        name = TITLES[arm] + (f", {seeds} seeds" if seeds > 1 else "")
        lines.append(" | ".join([f"| {name}", *(brief(values, key) for key in shown)]) + " |")
    if goals:
        lines += ["", "| PPO's goals | asked | measured | |", "|---|---|---|---|"]
    for goal in goals:
        measured = " ".join(filter(None, [number(goal.measured) if goal.measured else "", goal.note]))
        lines.append(f"| {goal.name} | {goal.goal or ''} | {measured} | {MET[goal.met]} |")
    text = "\n".join([*lines, "", *notes]) + "\n"
    write_whole(directory / "summary.md", text)
    return text


def brief(values: dict, key: str) -> str:
    """As in table.md; of what is no difference the value alone."""
    told = cell(values.get(key), key)
    return told if "gain" in key or key == "win_rate" else told.split(" [")[0]
