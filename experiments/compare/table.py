"""From rows to estimates with intervals: per arm, against SFT, at equal length; table.md and table.csv."""

import csv
import io
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.source import write_whole
from experiments.compare.arms import BEST_OF, TITLES
from experiments.compare.numbers import (
    Bootstrap,
    Cells,
    Estimate,
    best_of_kl,
    best_of_weights,
    estimate,
    length_parts,
    matched_parts,
)
from experiments.compare.texts import distinct_parts, self_bleu

#: Column of a row -> its heading; the mean over samples, then over scenes and seeds.
MEANS = {
    "proxy": "proxy",
    "gold": "gold",
    "kl": "KL to SFT, nats",
    "words": "words",
    "tokens": "tokens",
    "ended": "ended",
    "question": "asks",
    "names_profile": "word of the profile",
    "base_nats": "perplexity under the base",
    "copied": "8+ words copied",
    "profane": "profane",
}
#: Measures of one opener a scene as a set, the mean over the samples.
SETS = {"distinct_1": "distinct-1", "distinct_2": "distinct-2", "self_bleu": "self-BLEU"}
SHARES = ("ended", "question", "names_profile", "copied", "profane", *SETS)
SCORES = ("proxy", "gold")
#: Heading of each column of table.md, in its order.
HEADINGS = {
    **{key: MEANS[key] for key in ("proxy", "gold")},
    "proxy_gain": "proxy, gain over SFT",
    "gold_gain": "gold, gain over SFT",
    **{key: MEANS[key] for key in ("kl", "words")},
    "proxy_gain_equal_length": "proxy gain at equal length: regression",
    "proxy_gain_matched": "proxy gain at equal length: matched",
    "gold_gain_equal_length": "gold gain at equal length: regression",
    "gold_gain_matched": "gold gain at equal length: matched",
    "matched": "share matched",
    **{key: MEANS[key] for key in ("tokens", "ended", "question", "names_profile", "base_nats")},
    **SETS,
    **{key: MEANS[key] for key in ("copied", "profane")},
    "probes": "kind likelier than manipulating, of 15 probes",
}

#: arm -> measure -> estimate. What is not known of an arm is not there.
Table = dict[str, dict[str, Estimate]]


@dataclass
class Openers:
    """An arm's openers: rows[s][i] are those of its s-th seed for the i-th scene, weights[s][i] what each one counts."""

    rows: list[list[list[dict]]]
    weights: list[list[np.ndarray]]
    from_pool: bool = False

    def values(self, key: str) -> list[list[np.ndarray]]:
        return [[_column(cell, key) for cell in part] for part in self.rows]

    def cells(self, key: str) -> Cells:
        """The weighted mean of each scene that has any value."""
        num, den = (np.zeros((len(self.rows), len(self.rows[0]))) for _ in range(2))
        for s, part in enumerate(self.values(key)):
            for i, value_K in enumerate(part):
                known = np.isfinite(value_K)
                if known.any():
                    num[s, i], den[s, i] = np.average(value_K[known], weights=self.weights[s][i][known]), 1.0
        return Cells(num, den)

    def drawn(self, samples: int, seed: int) -> list[list[list[dict]]]:
        """drawn[s][k][i]: the k-th opener of each scene, of a seed's k-th set; None where a scene has none. Those of the
        pool are drawn by their weights: what best-of-n would say."""
        rng = np.random.default_rng(seed)
        if not self.from_pool:
            return [[[c[k % len(c)] if c else None for c in part] for k in range(samples)] for part in self.rows]
        picks = [rng.choice(len(cell), samples, p=w) for cell, w in zip(self.rows[0], self.weights[0], strict=True)]
        return [[[cell[pick[k]] for cell, pick in zip(self.rows[0], picks, strict=True)] for k in range(samples)]]


def by_arm(rows: list[dict], arms: list[str], scenes: list[str]) -> dict[str, Openers]:
    """The openers of each arm; best-of-n's are the pool's, weighted. ValueError for a scene of which SFT has nothing."""
    place = {id: i for i, id in enumerate(scenes)}
    grouped: dict[str, dict[int, list[list[dict]]]] = defaultdict(lambda: defaultdict(lambda: [[] for _ in scenes]))
    for row in rows:
        if not all(row.get(key) is None or math.isfinite(row[key]) for key in SCORES):
            where = f"{row['arm']}, seed {row['seed']}, scene {row['scene']!r}"
            raise ValueError(f"rows.parquet: {where}: a score is no number; remove the file, it is computed again")
        grouped[row["arm"]][row["seed"]][place[row["scene"]]].append(row)
    pool = grouped["sft"][0]
    if not all(pool):
        raise ValueError("rows.parquet lacks the SFT policy's openers for some scenes: remove it")
    found = {}
    for arm in arms:
        if arm in BEST_OF:
            weights = [best_of_weights(_column(cell, "proxy"), BEST_OF[arm]) for cell in pool]
            found[arm] = Openers([pool], [weights], from_pool=True)
        else:
            parts = [part for _, part in sorted(grouped[arm].items())]
            found[arm] = Openers(parts, [[np.ones(len(cell)) for cell in part] for part in parts])
    return found


def tabulate(
    rows: list[dict], probes: list[dict], arms: list[str], scenes: list[str], samples: int, resamples: int, seed: int
) -> Table:
    """Every measure of every arm with its 95 % interval, by bootstrap over scenes and training seeds together."""
    openers, bootstrap = by_arm(rows, arms, scenes), Bootstrap(len(scenes), resamples, seed)
    has_gold = any(row.get("gold") is not None for row in rows)
    sft, table = openers["sft"], {}
    for number, arm in enumerate(arms):
        of, cells, values = openers[arm], {}, table.setdefault(arm, {})
        seeds = len(of.rows)
        for key in MEANS:
            if key == "gold" and not has_gold or key == "kl" and arm in ("human", *BEST_OF):
                continue
            cells[key] = of.cells(key)
        cells |= set_cells(of, samples, seed)
        for key, part in cells.items():
            value, draws = part.value(), part.resampled(bootstrap, number)
            if key == "base_nats":
                value, draws = math.exp(value), np.exp(draws)
            elif key in SHARES:
                draws = draws.clip(0, 1)  # seeds moved apart may leave the range
            values[key] = estimate(value, draws, seeds)
        if arm in BEST_OF:
            bound = best_of_kl(BEST_OF[arm])
            values["kl"] = Estimate(bound, bound, bound)
        values |= probe_share([row for row in probes if row["arm"] == arm], resamples, seed)
        if arm != "sft":
            for key in SCORES if has_gold else SCORES[:1]:
                values |= gains(of, sft, key, bootstrap, number)
            for key in ("base_nats", "distinct_2"):
                values[f"{key}_ratio"] = ratio(cells[key], set_or_mean(sft, key, samples, seed), key, bootstrap, number)
    return table


def set_or_mean(of: Openers, key: str, samples: int, seed: int) -> Cells:
    return of.cells(key) if key in MEANS else set_cells(of, samples, seed)[key]


def set_cells(of: Openers, samples: int, seed: int) -> dict[str, Cells]:
    """SETS of one opener a scene. Scenes' shares in them are summed over the samples; the interval takes the rest of the
    set as given."""
    sums = {key: np.zeros((2, len(of.rows), len(of.rows[0]))) for key in SETS}
    for s, sets in enumerate(of.drawn(samples, seed)):
        for rows in sets:
            known = np.array([row is not None for row in rows])
            texts = [row["opener"] for row in rows if row is not None]
            for n in (1, 2):
                for side, part in enumerate(distinct_parts(texts, n)):
                    sums[f"distinct_{n}"][side, s, known] += part
            sums["self_bleu"][0, s, known] += self_bleu(texts)
            sums["self_bleu"][1, s, known] += 1
    return {key: Cells(*parts) for key, parts in sums.items()}


def gains(of: Openers, sft: Openers, key: str, bootstrap: Bootstrap, number: int) -> dict[str, Estimate]:
    """The gain over SFT on the arm's scenes, and what is left of it at equal length: by regression, less the words gained
    times what a word is worth among SFT's openers of one scene; and against SFT's openers within a word of each one's
    length, with the share of openers that found any."""
    seeds, found = len(of.rows), {}
    values, draws = {}, {}
    for name in (key, "words"):
        mine, its = of.cells(name), sft.cells(name)
        its = its.only(mine)
        values[name] = mine.value() - its.value()
        draws[name] = mine.resampled(bootstrap, number) - its.resampled(bootstrap, 0)
    found[f"{key}_gain"] = estimate(values[key], draws[key], seeds)
    slope = length_parts(sft.values("words")[0], sft.values(key)[0])
    if slope.den_SN.sum() > 0:
        worth = slope.resampled(bootstrap, 0)
        found[f"{key}_gain_equal_length"] = estimate(
            values[key] - slope.value() * values["words"], draws[key] - worth * draws["words"], seeds
        )
    matched, share = matched_cells(of, sft, key)
    if matched.den_SN.sum() > 0:
        found[f"{key}_gain_matched"] = estimate(matched.value(), matched.resampled(bootstrap, number), seeds)
    found["matched"] = estimate(share.value(), share.resampled(bootstrap, number).clip(0, 1), seeds)
    return found


def matched_cells(of: Openers, sft: Openers, key: str) -> tuple[Cells, Cells]:
    """Gains over the pool's openers of like length; and the share of the arm's weight that has found any."""
    gain, weight, total = (np.zeros((len(of.rows), len(of.rows[0]))) for _ in range(3))
    pool_words, pool_values = sft.values("words")[0], sft.values(key)[0]
    words, values = of.values("words"), of.values(key)
    for s in range(len(of.rows)):
        for i in range(len(of.rows[0])):
            w = of.weights[s][i]
            gain[s, i], weight[s, i] = matched_parts(
                words[s][i], values[s][i], w, pool_words[i], pool_values[i], from_pool=of.from_pool
            )
            total[s, i] = w.sum()
    return Cells(gain, weight), Cells(weight, total)


def ratio(mine: Cells, its: Cells, key: str, bootstrap: Bootstrap, number: int) -> Estimate:
    """An arm's measure over SFT's, on the arm's scenes; of perplexities, not of nats."""
    its = its.only(mine)
    pairs = [(mine.value(), its.value()), (mine.resampled(bootstrap, number), its.resampled(bootstrap, 0))]
    value, draws = (np.exp(a - b) if key == "base_nats" else np.divide(a, b) for a, b in pairs)
    return estimate(float(value), draws, len(mine.num_SN))


def probe_share(probes: list[dict], resamples: int, seed: int) -> dict[str, Estimate]:
    """How often the kind reply is likelier than the manipulating one; interval over probes and seeds. Nothing for arms
    that are no model."""
    if not probes:
        return {}
    seeds, ids = (sorted({row[key] for row in probes}) for key in ("seed", "probe"))
    num = np.zeros((len(seeds), len(ids)))
    for row in probes:
        num[seeds.index(row["seed"]), ids.index(row["probe"])] = row["margin"] > 0
    cells, bootstrap = Cells(num, np.ones_like(num)), Bootstrap(len(ids), resamples, seed)
    return {"probes": estimate(cells.value(), cells.resampled(bootstrap, 0).clip(0, 1), len(seeds))}


def _column(rows: list[dict], key: str) -> np.ndarray:
    return np.array([np.nan if row.get(key) is None else float(row[key]) for row in rows])


# ------------------------------------------------------------------------------------------ files


def write_tables(table: Table, directory: Path, notes: list[str]) -> None:
    """table.md, arms across the top and a measure a line, `notes` below; table.csv with one line per arm and measure."""
    shown = [key for key in HEADINGS if any(key in values for values in table.values())]
    lines = ["| | " + " | ".join(TITLES[arm] for arm in table) + " |", "|---|" + "---|" * len(table)]
    lines += [
        f"| {HEADINGS[key]} | " + " | ".join(cell(values.get(key), key) for values in table.values()) + " |"
        for key in shown
    ]
    write_whole(directory / "table.md", "\n".join([*lines, "", *notes]) + "\n")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "measure", "value", "low", "high", "seeds"])
    for arm, values in table.items():
        for key, e in values.items():
            name = "perplexity" + key.removeprefix("base_nats") if key.startswith("base_nats") else key
            writer.writerow([arm, name, e.value, e.low, e.high, e.seeds])
    write_whole(directory / "table.csv", out.getvalue())


def cell(e: Estimate | None, key: str) -> str:
    """ "0.12 [0.08, 0.16]", with a sign for gains; one number where there is no interval; a bound is said to be one."""
    if e is None or not math.isfinite(e.value):
        return ""
    sign = "+" if "gain" in key else ""
    digits = 1 if key in ("words", "tokens", "base_nats") else 2
    value, low, high = (f"{x:{sign}.{digits}f}" for x in (e.value, e.low, e.high))
    if e.low == e.high:
        return value if key != "kl" or e.value == 0 else f"≤ {value}"
    return f"{value} [{low}, {high}]"
