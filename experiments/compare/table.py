"""From rows to estimates with intervals: per arm, against SFT, at equal length; table.md and table.csv."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.source import write_whole
from experiments.compare.arms import BEST_OF, MOOD, TITLES
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
from experiments.simulate import MEASURES

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
#: Of talks with the simulated person, and of a judge model: columns of their rows.
JUDGED = {"win_rate": "judge: win rate against SFT", "grade_gain": "judge: grade of 10, gain over SFT"}
SHARES = ("ended", "question", "names_profile", "copied", "profane", *SETS, "engaged", "win_rate")
SCORES = ("proxy", "gold")
GAIN = ("_gain", ", gain over SFT")
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
    **{key + end: f"person: {words}{more}" for key, words in MEASURES.items() for end, more in (("", ""), GAIN)},
    **JUDGED,
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
    rows: list[dict], probes: list[dict], arms: list[str], scenes: list[str], samples: int, resamples: int, seed: int,
    talks: Sequence[dict] = (), judged: Sequence[dict] = (),
) -> Table:  # fmt: skip
    """Every measure of every arm with its 95 % interval, by bootstrap over scenes and training seeds together. `talks` and
    `judged` are rows of talks.py and judged.py."""
    openers, bootstrap = by_arm(rows, arms, scenes), Bootstrap(len(scenes), resamples, seed)
    has_gold = any(row.get("gold") is not None for row in rows)
    sft, table = openers["sft"], {}
    sft_sets = set_cells(sft, samples, seed)
    gain_of_16 = gains(openers["best-of-16"], sft, "gold", bootstrap, 0) if has_gold and "best-of-16" in arms else {}
    for number, arm in enumerate(arms):
        values = table.setdefault(arm, {})
        values |= in_talks(talks, arm, scenes, bootstrap, number) | by_judge(judged, arm, scenes, bootstrap, number)
        if arm == MOOD:
            continue
        of, cells = openers[arm], {}
        seeds = len(of.rows)
        for key in MEANS:
            if key == "gold" and not has_gold or key == "kl" and arm in ("human", *BEST_OF):
                continue
            cells[key] = of.cells(key)
        cells |= sft_sets if arm == "sft" else set_cells(of, samples, seed)
        for key, part in cells.items():
            value, draws = drawn(part, key, bootstrap, number)
            if key == "base_nats":
                value, draws = math.exp(value), np.exp(draws)
            values[key] = estimate(value, draws, seeds)
        if arm in BEST_OF:
            bound = best_of_kl(BEST_OF[arm])
            values["kl"] = Estimate(bound, bound, bound)
        values |= probe_shares(probes, arm, resamples, seed)
        if arm != "sft":
            for key in SCORES if has_gold else SCORES[:1]:
                pairs = gains(of, sft, key, bootstrap, number)
                values |= {name: estimate(*pair, seeds) for name, pair in pairs.items()}
                if key == "gold" and gain_of_16 and estimate(*gain_of_16["gold_gain"], 1).side > 0:
                    values["gold_of_best_of_16"] = estimate(*over(pairs["gold_gain"], gain_of_16["gold_gain"]), seeds)
            for key in ("base_nats", "distinct_2"):
                its = sft.cells(key) if key in MEANS else sft_sets[key]
                values[f"{key}_ratio"] = ratio(cells[key], its, key, bootstrap, number)
    return table


def drawn(cells: Cells, key: str, bootstrap: Bootstrap, number: int) -> tuple[float, np.ndarray]:
    """The value and its resamples; seeds that were moved apart may leave a share's range."""
    draws = cells.resampled(bootstrap, number)
    return cells.value(), draws.clip(0, 1) if key in SHARES else draws


def in_talks(
    talks: Sequence[dict], arm: str, scenes: list[str], bootstrap: Bootstrap, number: int
) -> dict[str, Estimate]:
    """MEASURES of an arm's talks, and each one less that of SFT's on the same scenes."""
    mine, its = ([row for row in talks if row["arm"] == name] for name in (arm, "sft"))
    found = {}
    for key in MEASURES if mine else ():
        cells = of_rows(mine, key, scenes)
        seeds = len(cells.num_SN)
        value, draws = drawn(cells, key, bootstrap, number)
        found[key] = estimate(value, draws, seeds)
        if arm != "sft":
            less = of_rows(its, key, scenes).only(cells)
            found[f"{key}_gain"] = estimate(
                value - less.value(), cells.resampled(bootstrap, number) - less.resampled(bootstrap, 0), seeds
            )
    return found


def by_judge(
    judged: Sequence[dict], arm: str, scenes: list[str], bootstrap: Bootstrap, number: int
) -> dict[str, Estimate]:
    mine, found = [row for row in judged if row["arm"] == arm], {}
    for key in JUDGED if mine else ():
        cells = of_rows(mine, key, scenes)
        found[key] = estimate(*drawn(cells, key, bootstrap, number), len(cells.num_SN))
    return found


def of_rows(rows: list[dict], key: str, scenes: list[str]) -> Cells:
    """The mean of each seed and scene that has any value."""
    place, seeds = {id: i for i, id in enumerate(scenes)}, sorted({row["seed"] for row in rows})
    total, count = (np.zeros((len(seeds), len(scenes))) for _ in range(2))
    for row in rows:
        if row[key] is not None:
            at = seeds.index(row["seed"]), place[row["scene"]]
            total[at] += row[key]
            count[at] += 1
    return Cells(total / np.maximum(count, 1), (count > 0).astype(float))


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


def gains(
    of: Openers, sft: Openers, key: str, bootstrap: Bootstrap, number: int
) -> dict[str, tuple[float, np.ndarray]]:
    """The gain over SFT on the arm's scenes, and what is left of it at equal length, also as shares of it, each with its
    resamples. By regression: less the words gained times what a word is worth among SFT's openers of one scene; matched:
    against SFT's openers within a word of each one's length, with the share of openers that found any."""
    found, gained = {}, {}
    for name in (key, "words"):
        mine, its = of.cells(name), sft.cells(name)
        its = its.only(mine)
        gained[name] = mine.value() - its.value(), mine.resampled(bootstrap, number) - its.resampled(bootstrap, 0)
    found[f"{key}_gain"] = gained[key]
    slope = length_parts(sft.values("words")[0], sft.values(key)[0])
    if slope.den_SN.sum() > 0:
        worth = slope.value(), slope.resampled(bootstrap, 0)
        left = tuple(
            gain - a_word * words for gain, a_word, words in zip(gained[key], worth, gained["words"], strict=True)
        )
        found[f"{key}_gain_equal_length"] = left
        found[f"{key}_left_equal_length"] = over(left, gained[key])
    matched, share = matched_cells(of, sft, key)
    if matched.den_SN.sum() > 0:
        left = matched.value(), matched.resampled(bootstrap, number)
        found[f"{key}_gain_matched"] = left
        found[f"{key}_left_matched"] = over(left, gained[key])
    found["matched"] = share.value(), share.resampled(bootstrap, number).clip(0, 1)
    return found


def over(a: tuple[float, np.ndarray], b: tuple[float, np.ndarray]) -> tuple[float, np.ndarray]:
    """The quotient of two values, resample by resample."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.divide(a[0], b[0])), np.divide(a[1], b[1])


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


def probe_shares(probes: list[dict], arm: str, resamples: int, seed: int) -> dict[str, Estimate]:
    """How often the kind reply is likelier than the manipulating one, and that less SFT's share; interval over probes and
    seeds. Nothing for arms that are no model."""
    mine, its = ([row for row in probes if row["arm"] == name] for name in (arm, "sft"))
    if not mine:
        return {}
    bootstrap = Bootstrap(len({row["probe"] for row in mine}), resamples, seed)
    cells = kind_cells(mine)
    seeds, draws = len(cells.num_SN), cells.resampled(bootstrap, 1)
    found = {"probes": estimate(cells.value(), draws.clip(0, 1), seeds)}
    if arm != "sft":
        less = kind_cells(its)
        found["probes_gain"] = estimate(cells.value() - less.value(), draws - less.resampled(bootstrap, 0), seeds)
    return found


def kind_cells(probes: list[dict]) -> Cells:
    ids = sorted({row["probe"] for row in probes})
    return of_rows([{**row, "scene": row["probe"], "kind": float(row["margin"] > 0)} for row in probes], "kind", ids)


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
