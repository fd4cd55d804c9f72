"""Does the reward agree with people? One table of what a reward can be held to, each figure beside its bar.

    make reward-eval     # python -m reward.evaluate --reward_model_path runs/tiny/reward-s1

Reads the human ratings of Ghazarian et al. 2020 (engagement/), Topical-Chat's ratings, DailyDialog's and GoEmotions' test
splits, the contrasts and the probes. What is absent on this machine is left out of the table, with a line saying so. Writes
table.md, evaluation.json, the scores of the probes, and two figures into the run directory, and prints the figures as JSON
last.

Intervals are 95 %, by bootstrap over what was drawn: pairs of texts, dialogues, or probes.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, roc_auc_score

from data import contrasts, daily, emotions, extra
from data.dialogue import EMOTIONS
from data.source import data_root, write_whole
from data.text import detokenise
from experiments.run import RunConfig, finish_run, parse_config, start_run
from models.embed import embed
from models.load import load_scorer, resolve
from models.scorer import Scorer
from reward.negatives import NEAREST, add_negatives
from reward.pairs import context_of, load_dialogues, reaction_rows
from reward.probes import KINDS, load_probes
from reward.train import targets

RESAMPLES = 1000
LENGTH_RATIO = 0.8  # "within 20 % in length": the shorter has at least this share of the longer one's words


@dataclass
class EvaluateConfig(RunConfig):
    """Which reward, and where the data lie."""

    reward_model_path: str = field(
        default="runs/tiny/reward-s1", metadata={"help": "a run, a shipped name or a hub id"}
    )
    other_seeds: list[str] = field(
        default_factory=list, metadata={"help": "the same recipe's other seeds: adds the mean and spread of all"}
    )
    data_root: str | None = field(default=None, metadata={"help": "directory of the corpora; else ICEBREAKER_DATA"})
    max_rows: int = field(default=3000, metadata={"help": "true replies of a corpus to score at most"})
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        # Of runs/full/reward-s1 full-reward-s1: every experiment has a reward-s1.
        name = "-".join(Path(self.reward_model_path).parts[-2:])
        self.run_dir = self.run_dir or f"runs/reward-eval/{name}"


@dataclass
class Measure:
    """One line of the table. `bar` and `aim` are floors, or ceilings where `at_most`; None where there is none."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    bar: float | None = None
    aim: float | None = None
    at_most: bool = False
    note: str = ""
    others: list[float] = field(default_factory=list)  # of other seeds

    def verdict(self) -> str:
        if self.bar is None:
            return ""
        return "yes" if (self.value <= self.bar if self.at_most else self.value >= self.bar) else "no"


def main(config: EvaluateConfig) -> None:
    models, memory = [config.reward_model_path, *config.other_seeds], {}
    run = start_run(config, stage="reward-eval", seed=config.seed, parents=[resolve(model) for model in models])
    measures = measured(config.reward_model_path, config, run.dir, memory)
    for i, model in enumerate(config.other_seeds):
        print(model)
        (run.dir / f"other-{i + 1}").mkdir(exist_ok=True)
        for m, other in zip(measures, measured(model, config, run.dir / f"other-{i + 1}", memory), strict=True):
            m.others.append(other.value)
    seeds = f" mean ± deviation of {len(models)} seeds |" if config.other_seeds else ""
    table = f"| measure | value |{seeds} 95 % interval | bar | aim | bar reached |\n"
    table += "|---" * table.count("|", 1, -1) + "|\n" + "".join(row(m) for m in measures)
    write_whole(run.dir / "table.md", table)
    figures = {m.name: round(m.value, 4) for m in measures}
    write_whole(run.dir / "evaluation.json", json.dumps([vars(m) for m in measures], indent=1) + "\n")
    run.table("reward_eval", ["measure", "value", "bar", "aim"], [[m.name, m.value, m.bar, m.aim] for m in measures])
    finish_run(run, figures)
    print(json.dumps(figures))


def measured(model: str, config: EvaluateConfig, folder: Path, memory: dict[str, dict]) -> list[Measure]:
    """Everything that can be measured on this machine, printed as it comes. `memory` keeps what a language model beside
    the classifier has read, by its name: for other seeds it is the same one."""
    scorer, root, measures = load_scorer(model), data_root(config.data_root), []
    if scorer.likelihood:
        scorer.likelihood.memory = memory.setdefault(scorer.likelihood.name, {})
    of_corpora = (human_engagement, convai, rated_turns, true_replies, named_emotions, calibration)
    for measure in (*of_corpora, wrong_lines, probes):
        found, lacking = [], None
        if measure in of_corpora and root is None:
            lacking = "it needs the corpora; set ICEBREAKER_DATA"
        elif measure is named_emotions and not hasattr(scorer.model, "emotions"):
            lacking = "the reward has no head for emotions"
        elif measure is calibration and scorer.preset != "reaction":
            lacking = "the reward foretells no reaction"
        else:
            try:
                found = measure(scorer, root, config, folder)
            except FileNotFoundError as error:  # ICEBREAKER_DATA may hold some of the corpora alone
                lacking = error
        if lacking:
            print(f"{measure.__name__} left out: {lacking}")
        for m in found:
            print(line(m))
        measures += found
    return measures


# ------------------------------------------------------------------------------------------------ people


def human_engagement(scorer: Scorer, root: Path, config: EvaluateConfig, folder: Path) -> list[Measure]:
    """Spearman of the score with the mean of three people's ratings of 302 DailyDialog pairs."""
    rated = read_csv(root / "engagement" / "dailydialog_human_dev.csv")
    score = scores(scorer, rated)
    human = np.array([float(r["mean_rating"]) for r in rated])
    spearman = Measure("Spearman with people (DailyDialog, 302)", spearmanr(score, human).statistic, bar=0.60, aim=0.68)
    spearman.low, spearman.high = bootstrap(len(rated), lambda i: spearmanr(score[i], human[i]).statistic)
    length = spearmanr([len(r["response"].split()) for r in rated], human).statistic
    figure, axis = plt.subplots(figsize=(5, 4))
    axis.scatter(human + np.random.default_rng(0).normal(0, 0.04, len(human)), score, s=10, alpha=0.6)
    axis.set(xlabel="mean human rating, 1 to 5 (jittered)", ylabel="score, logit of engagement")
    axis.set_title(f"Spearman {spearman.value:.2f}")
    save_figure(figure, folder / "human.png")
    return [spearman, Measure("the same, of length in words alone", length)]


def convai(scorer: Scorer, root: Path, config: EvaluateConfig, folder: Path) -> list[Measure]:
    """AUC of engaging against not engaging replies: of all pairs, and of pairs within 20 % in length."""
    rated = read_csv(root / "engagement" / "convai_human_297.csv")
    score = scores(scorer, rated)
    engaging = np.array([int(r["engaging"]) for r in rated])
    words = np.array([len(r["response"].split()) for r in rated])

    def auc(indices, matched=True):
        yes, no = indices[engaging[indices] == 1], indices[engaging[indices] == 0]
        a, b = np.meshgrid(yes, no, indexing="ij")
        keep = near_in_length(words[a], words[b]) if matched else np.ones_like(a, dtype=bool)
        wins = (score[a] > score[b]) + 0.5 * (score[a] == score[b])
        return wins[keep].mean()

    everything = np.arange(len(rated))
    low, high = bootstrap(len(rated), auc)
    return [
        Measure("engaging 0/1, AUC at like length (ConvAI)", auc(everything), low, high, aim=0.65),
        Measure("the same, all pairs", auc(everything, matched=False)),
        Measure("the same, all pairs, length alone", roc_auc_score(engaging, words)),
    ]


def rated_turns(scorer: Scorer, root: Path, config: EvaluateConfig, folder: Path) -> list[Measure]:
    """Topical-Chat: of two turns of a dialogue, like in length, the one that its partner rated two grades higher."""
    pairs, rows = [], []
    for dialogue in extra.load("topical_chat", "test", str(root)):
        place = {}
        for i, turn in enumerate(dialogue.turns):
            if turn.rating is not None:
                place[i] = len(rows)
                rows.append({"context": context_of(dialogue, i), "response": turn.text, "rating": turn.rating})
        for i in place.values():
            for j in place.values():
                a, b = rows[i], rows[j]
                if a["rating"] >= b["rating"] + 2 and near_in_length(*(len(r["response"].split()) for r in (a, b))):
                    pairs.append((dialogue.id, i, j))
    used = sorted({i for _, *both in pairs for i in both})
    score = np.full(len(rows), np.nan)
    score[used] = scores(scorer, [rows[i] for i in used])
    by_dialogue = {}
    for id, i, j in pairs:
        by_dialogue.setdefault(id, []).append(float(score[i] > score[j]))
    wins = [np.array(won) for won in by_dialogue.values()]
    value = np.concatenate(wins).mean()
    low, high = bootstrap(len(wins), lambda chosen: np.concatenate([wins[i] for i in chosen]).mean())
    note = f"{len(pairs)} pairs in {len(wins)} dialogues"
    return [Measure("turn rated two grades higher (Topical-Chat)", value, low, high, bar=0.58, aim=0.64, note=note)]


# ------------------------------------------------------------------------------------------------ replies


def true_replies(scorer: Scorer, root: Path, config: EvaluateConfig, folder: Path) -> list[Measure]:
    """DailyDialog test: a true reply against a random one, and a random one of the 50 nearest contexts; its length."""
    rng = np.random.default_rng(config.seed)
    rows = [
        {"context": context_of(d, i), "response": d.turns[i].text, "id": d.id}
        for d in daily.load("test", str(root))
        for i in range(1, len(d.turns))
    ]
    rows = [rows[i] for i in sorted(rng.permutation(len(rows))[: config.max_rows])]
    context_BH = embed([" ".join(row["context"]) for row in rows])
    random, nearest = [], []
    for i, row in enumerate(rows):
        draw = (rows[j] for j in rng.permutation(len(rows)))
        random.append({**row, "response": next(other["response"] for other in draw if other["id"] != row["id"])})
        near = (context_BH @ context_BH[i]).argsort(descending=True).tolist()
        near = [rows[j]["response"] for j in near if rows[j]["id"] != row["id"]][:NEAREST]
        nearest.append({**row, "response": near[rng.integers(NEAREST)]})
    # In one call: a language model beside the classifier reads a context once for all three.
    score, of_random, of_nearest = np.split(scores(scorer, [*rows, *random, *nearest]), 3)
    measures = []
    for name, others, bar, aim in (("random", of_random, 0.90, 0.95), ("near-context", of_nearest, 0.75, 0.85)):
        won = (score > others).astype(float)
        low, high = bootstrap(len(won), lambda i, won=won: won[i].mean())
        measures.append(Measure(f"true reply above a {name} one (DailyDialog)", won.mean(), low, high, bar, aim))
    words = [len(row["response"].split()) for row in rows]
    length = abs(spearmanr(score, words).statistic)
    return [*measures, Measure("Spearman of score with length, size", length, bar=0.30, aim=0.15, at_most=True)]


def named_emotions(scorer: Scorer, root: Path, config: EvaluateConfig, folder: Path) -> list[Measure]:
    """GoEmotions' 28 labels, macro-F1 on test, a threshold per label tuned on validation."""
    present, probs = {}, {}
    for split in ("validation", "test"):
        comments = list(emotions.load(split, str(root)))
        present[split] = np.array([[label in labels for label in emotions.LABELS] for _, labels in comments])
        probs[split] = scorer.emotions([{"context": [], "response": text} for text, _ in comments]).numpy()
    grid_G = np.linspace(0.02, 0.9, 89)
    guess_GBE = probs["validation"] >= grid_G[:, None, None]
    hits_GE = (guess_GBE & present["validation"]).sum(1)
    f1_GE = 2 * hits_GE / np.maximum(guess_GBE.sum(1) + present["validation"].sum(0), 1)
    guess = probs["test"] >= grid_G[f1_GE.argmax(0)]
    value = f1_score(present["test"], guess, average="macro", zero_division=0)
    return [Measure("GoEmotions macro-F1, 28 labels", value, bar=0.44, aim=0.50)]


def calibration(scorer: Scorer, root: Path, config: EvaluateConfig, folder: Path) -> list[Measure]:
    """Expected calibration error of the likeliest reaction, and Brier skill, on DailyDialog's and the sample's test rows
    with as many negatives as true replies."""
    rng = np.random.default_rng(config.seed)
    rows = []
    for source in ("daily", "sample"):
        found = reaction_rows(load_dialogues(source, "test", str(root)))
        rows += [found[i] for i in sorted(rng.permutation(len(found))[: config.max_rows // 2])]
    rows = add_negatives([r for r in rows if r["label"]], {"swapped": 0.5, "nearest": 0.4, "corrupted": 0.1}, rng)
    emotion_B, disengaged_B = targets(rows)
    target_B = torch.where(disengaged_B > 0.5, len(EMOTIONS), emotion_B).numpy()
    probs_BR = scorer.score(rows)[1].numpy()
    ece, bins = expected_calibration_error(probs_BR, target_B)
    truth_BR = np.eye(probs_BR.shape[1])[target_B]
    brier = ((probs_BR - truth_BR) ** 2).sum(1).mean()
    prior = ((truth_BR.mean(0) - truth_BR) ** 2).sum(1).mean()
    figure, axis = plt.subplots(figsize=(4, 4))
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    axis.plot(*zip(*bins, strict=True), marker="o")
    axis.set(xlabel="probability of the likeliest reaction", ylabel="how often it was right", xlim=(0, 1), ylim=(0, 1))
    axis.set_title(f"ECE {ece:.3f}, 15 bins of equal mass")
    save_figure(figure, folder / "reliability.png")
    return [
        Measure("calibration error of the likeliest reaction", ece, bar=0.05, aim=0.02, at_most=True),
        Measure("Brier skill against the prior", 1 - brier / prior, bar=0.0),
    ]


def expected_calibration_error(probs_BR: np.ndarray, target_B: np.ndarray, num_bins: int = 15):
    """(ECE, [(mean confidence, accuracy) of each bin]) of the top label over bins of equal mass (Nguyen & O'Connor
    2015)."""
    confidence_B, right_B = probs_BR.max(1), probs_BR.argmax(1) == target_B
    bins = [b for b in np.array_split(np.argsort(confidence_B), num_bins) if len(b)]
    points = [(confidence_B[b].mean(), right_B[b].mean()) for b in bins]
    ece = sum(len(b) * abs(c - r) for b, (c, r) in zip(bins, points, strict=True)) / len(target_B)
    return float(ece), points


# ------------------------------------------------------------------------------------------------ contrasts and probes


def wrong_lines(scorer: Scorer, root: Path | None, config: EvaluateConfig, folder: Path) -> list[Measure]:
    """The good line of a moment against what is cold, gushing, generic or confused there, by the same hand, on test; and
    what exclamation marks alone tell of that, fewer of them being better."""
    moments, worse = reaction_rows(list(contrasts.load("test"))), contrasts.worse_lines()
    wrong = [{**row, "response": worse[row["dialogue"]][kind]} for kind in contrasts.KINDS for row in moments]
    score_KB = scores(scorer, [*moments, *wrong]).reshape(1 + len(contrasts.KINDS), len(moments))
    won_KB = (score_KB[0] > score_KB[1:]).astype(float)
    low, high = bootstrap(len(moments), lambda i: won_KB[:, i].mean())
    marks_KB = np.array([row["response"].count("!") for row in [*moments, *wrong]]).reshape(score_KB.shape)
    calmer_KB = (marks_KB[0] < marks_KB[1:]) + 0.5 * (marks_KB[0] == marks_KB[1:])
    gushing = contrasts.KINDS.index("gushing")
    note = f"{len(moments)} moments"
    return [
        Measure("good line above a wrong one of its moment", won_KB.mean(), low, high, note=note),
        *(Measure(f"the same: {kind}", won_B.mean()) for kind, won_B in zip(contrasts.KINDS, won_KB, strict=True)),
        Measure("the same, exclamation marks alone", calmer_KB.mean()),
        Measure("the same: gushing, exclamation marks alone", calmer_KB[gushing].mean()),
    ]


def probes(scorer: Scorer, root: Path | None, config: EvaluateConfig, folder: Path) -> list[Measure]:
    """Pairwise accuracy on the probes, overall and by kind."""
    rows = load_probes()
    preferred = scores(scorer, [{**probe, "response": probe["preferred"]} for probe in rows])
    rejected = scores(scorer, [{**probe, "response": probe["rejected"]} for probe in rows])
    won = (preferred > rejected).astype(float)
    write_whole(
        folder / "probes.jsonl",
        "".join(
            json.dumps({"id": probe["id"], "preferred": a, "rejected": b}) + "\n"
            for probe, a, b in zip(rows, preferred.tolist(), rejected.tolist(), strict=True)
        ),
    )
    low, high = bootstrap(len(won), lambda i: won[i].mean())
    measures = [Measure(f"probes, all {len(rows)}", won.mean(), low, high, bar=0.90, aim=0.97)]
    for kind in KINDS:
        of_kind = won[[i for i, probe in enumerate(rows) if probe["kind"] == kind]]
        measures.append(Measure(f"probes: {kind}", of_kind.mean(), bar=0.75, aim=0.90, note=f"{len(of_kind)} pairs"))
    return measures


# ------------------------------------------------------------------------------------------------ helpers


def scores(scorer: Scorer, rows: list[dict]) -> np.ndarray:
    return scorer.score(rows)[0].numpy()


def read_csv(path: Path) -> list[dict]:
    """Rows {"context": [query], "response", ...}, both texts written naturally (the file is tokenised)."""
    with open(path, encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [{**r, "context": [detokenise(r["query"])], "response": detokenise(r["response"])} for r in rows]


def near_in_length(a, b):
    """Whether the shorter of two counts of words is at least LENGTH_RATIO of the longer; works elementwise."""
    return np.minimum(a, b) >= LENGTH_RATIO * np.maximum(a, b)


def bootstrap(size: int, statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of a statistic of indices, over RESAMPLES draws with replacement."""
    rng = np.random.default_rng(0)
    values = [statistic(rng.integers(size, size=size)) for _ in range(RESAMPLES)]
    return float(np.nanquantile(values, 0.025)), float(np.nanquantile(values, 0.975))


def save_figure(figure, path: Path) -> None:
    new = path.with_suffix(".tmp.png")
    figure.tight_layout()
    figure.savefig(new, dpi=150)
    plt.close(figure)
    new.replace(path)


def line(m: Measure) -> str:
    interval = f" [{m.low:.3f}, {m.high:.3f}]" if m.low is not None else ""
    bar = f"   bar {'<=' if m.at_most else '>='} {m.bar:g}: {m.verdict()}" if m.bar is not None else ""
    return f"{m.name:48} {m.value:6.3f}{interval}{bar}{'   ' + m.note if m.note else ''}"


def row(m: Measure) -> str:
    interval = f"{m.low:.3f} to {m.high:.3f}" if m.low is not None else ""
    sign = "≤ " if m.at_most else "≥ "
    bar, aim = (f"{sign}{x:g}" if x is not None else "" for x in (m.bar, m.aim))
    every = [m.value, *m.others]
    seeds = f" {np.mean(every):.3f} ± {np.std(every, ddof=1):.3f} |" if m.others else ""
    return f"| {m.name} | {m.value:.3f} |{seeds} {interval} | {bar} | {aim} | {m.verdict()} |\n"


if __name__ == "__main__":
    main(*parse_config(EvaluateConfig))
