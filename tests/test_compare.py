"""experiments/compare: its arithmetic against brute force and made-up numbers, and the whole of it on the tiny friend.

Not covered: that the arms of the embedded default differ; `make compare` prints that.
"""

import csv
import itertools
import json
import math
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.scenes import scenes_of
from experiments import simulate
from experiments.compare import __main__ as compare
from experiments.compare import openers
from experiments.compare.arms import ARMS, Speaker, check_held_out, chosen
from experiments.compare.goals import goals, in_words
from experiments.compare.numbers import (
    Bootstrap,
    Cells,
    Estimate,
    best_of_kl,
    best_of_weights,
    estimate,
    fit_gain,
    kl_where,
)
from experiments.compare.summary import write_summary
from experiments.compare.table import by_arm, cell, tabulate
from experiments.compare.texts import distinct_parts, names_profile, profane, self_bleu
from experiments.compare.verdict import verdict
from experiments.run import weights_hash
from models.load import load_scorer, resolve
from models.scorer import LengthScorer
from rl.metrics import distinct
from tests.fake_judge import FakeJudge

# ------------------------------------------------------------------------------------------ best of n


@pytest.mark.parametrize("scores", [[3.0, 1.0, 2.0, 9.0, 5.0, 4.0], [1.0, 2.0, 2.0, 0.0, 2.0, 1.0], [7.0] * 6])
@pytest.mark.parametrize("n", range(1, 7))
def test_best_of_n_is_the_mean_over_all_subsets(scores, n):
    wins = np.zeros(6)
    subsets = list(itertools.combinations(range(6), n))
    for subset in subsets:
        best = [i for i in subset if scores[i] == max(scores[j] for j in subset)]
        wins[best] += 1 / len(best)  # any of the equals
    assert best_of_weights(np.array(scores), n) == pytest.approx(wins / len(subsets))


def test_best_of_n_from_a_pool_is_unbiased():
    """The mean over pools is the mean of the highest of n uniform numbers, n / (n + 1)."""
    pools = np.random.default_rng(0).random((4000, 16))
    found = np.mean([best_of_weights(pool, 4) @ pool for pool in pools])
    assert found == pytest.approx(4 / 5, abs=0.005)


def test_best_of_n_needs_a_pool_and_its_kl_is_bounded():
    with pytest.raises(ValueError, match="best of 64 needs a pool of 64"):
        best_of_weights(np.arange(8.0), 64)
    assert best_of_weights(np.random.default_rng(1).random(128), 64).sum() == pytest.approx(1)
    assert [round(best_of_kl(n), 3) for n in (1, 4, 16)] == [0, 0.636, 1.835]  # Beirami et al. 2024


# ------------------------------------------------------------------------------------------ intervals


def cells(values):
    return Cells(np.array(values, dtype=float), np.ones((len(values), len(values[0]))))


def width(e):
    return e.high - e.low


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(size=(1, 400))
    part = cells(values)
    e = estimate(part.value(), part.resampled(Bootstrap(400, 4000, 1), 1), 1)
    assert e.value == pytest.approx(values.mean()) and e.low < e.value < e.high
    assert width(e) == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


def test_seeds_widen_the_interval_and_pairs_narrow_it():
    rng, bootstrap = np.random.default_rng(0), Bootstrap(100, 2000, 1)
    hard = rng.normal(size=100)  # how hard a scene is, for both
    sft, same, apart = cells([hard]), cells([hard + 0.1] * 3), cells([hard, hard + 0.1, hard + 0.2])
    gain = [
        estimate(arm.value() - sft.value(), arm.resampled(bootstrap, 1) - sft.resampled(bootstrap, 0), 3)
        for arm in (same, apart)
    ]
    assert [e.value for e in gain] == pytest.approx([0.1, 0.1])
    assert width(gain[0]) == pytest.approx(0, abs=1e-9)  # the scenes' own differences are gone
    # Three seeds 0.1 apart: the standard error of their mean is 0.1 / sqrt(3), not what drawing from three would give.
    draws = apart.resampled(bootstrap, 1) - sft.resampled(bootstrap, 0)
    assert draws.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.05)


def test_a_scene_without_openers_counts_for_neither_side():
    some = Cells(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]]))
    assert some.value() == 1.0 and cells([[3.0, 9.0]]).only(some).value() == 3.0


# ------------------------------------------------------------------------------------------ equal length


def row(arm, scene, sample, opener, proxy, seed=0, **more):
    return {
        "arm": arm, "seed": seed, "scene": scene, "sample": sample, "opener": opener, "ended": True, "tokens": 5,
        "words": len(opener.split()), "proxy": proxy, "kl": 0.0 if arm == "sft" else 1.0, "base_nats": 2.0,
        "question": False, "names_profile": 1.0, "copied": False, "profane": False, **more,
    }  # fmt: skip


def made_up(worth, gain, more_words, num_scenes=30, seeds=(1, 2)):
    """Openers whose proxy is `worth` a word, and `gain` more in the arm "ppo", whose openers are longer."""
    rng, rows = np.random.default_rng(0), []
    for scene in map(str, range(num_scenes)):
        base = rng.normal()
        for arm, seed, count in [("sft", 0, 32), *(("ppo", seed, 4) for seed in seeds)]:
            for sample in range(count):
                words = int(rng.integers(4, 12)) + more_words * (arm == "ppo")
                proxy = base + worth * words + gain * (arm == "ppo") + 0.01 * rng.normal()
                text = " ".join(f"w{rng.integers(50)}" for _ in range(words))
                rows.append(row(arm, scene, sample, text, proxy, seed))
    return rows, [str(i) for i in range(num_scenes)]


@pytest.mark.parametrize(("worth", "gain"), [(0.1, 0.0), (0.1, 0.3), (0.0, 0.3)])
def test_a_gain_is_split_into_length_and_the_rest(worth, gain):
    rows, scenes = made_up(worth, gain, more_words=3)
    found = tabulate(rows, [], ["sft", "best-of-4", "ppo"], scenes, 4, 300, 1)["ppo"]
    assert found["proxy_gain"].value == pytest.approx(gain + 3 * worth, abs=0.08)
    assert found["proxy_gain_equal_length"].value == pytest.approx(gain, abs=0.02)
    assert found["proxy_gain_matched"].value == pytest.approx(gain, abs=0.06)  # within a word is not the same word
    assert 0.5 < found["matched"].value < 0.95  # openers of 13 and 14 words find none of SFT's
    assert found["proxy_gain"].seeds == 2 and "gold" not in found


def test_the_table_of_best_of_n_is_of_what_wins():
    rows, scenes = made_up(worth=0.1, gain=0.0, more_words=0)
    table = tabulate(rows, [], ["sft", "best-of-2", "best-of-16"], scenes, 4, 200, 1)
    words = [table[arm]["words"].value for arm in table]
    assert words[0] < words[1] < words[2] <= 11  # length is what the made-up proxy likes
    assert table["best-of-16"]["kl"] == Estimate(best_of_kl(16), best_of_kl(16), best_of_kl(16))
    assert cell(table["best-of-16"]["kl"], "kl") == "≤ 1.84" and cell(table["sft"]["kl"], "kl") == "0.00"
    assert abs(table["best-of-16"]["proxy_gain_matched"].value) < table["best-of-16"]["proxy_gain"].value / 2


def test_nan_among_kept_scores_is_named():
    rows = [row("sft", "a", 0, "hello", math.nan)]
    with pytest.raises(ValueError, match="sft, seed 0, scene 'a': a score is no number"):
        by_arm(rows, ["sft"], ["a"])


# ------------------------------------------------------------------------------------------ over-optimisation


@pytest.mark.parametrize("is_rl", [True, False])
def test_a_curve_of_known_form_is_found_again_with_its_peak(is_rl):
    d = np.linspace(0, 6, 13)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.nan_to_num(d * (1.0 - 0.5 * (np.log(d) if is_rl else d / 2)))
    fit = fit_gain(d, gain, is_rl)
    assert (fit.alpha, fit.beta) == pytest.approx((1.0, 0.5 if is_rl else 0.25))
    assert fit.peak == pytest.approx(math.e if is_rl else 2.0)
    assert fit(np.array([fit.peak * 0.9, fit.peak * 1.1])).max() < fit(np.array(fit.peak))
    before = d < 0.8 * fit.peak
    assert fit_gain(d[before], gain[before], is_rl).peak is None  # beyond the data nothing is claimed
    assert fit_gain(d[:3], gain[:3], is_rl) is None


# ------------------------------------------------------------------------------------------ texts


def test_distinct_is_the_ratio_of_its_parts():
    texts = ["the cat sat", "the cat ran away", "", "the cat the cat"]
    for n in (1, 2):
        num, den = distinct_parts(texts, n)
        assert num.sum() / den.sum() == pytest.approx(distinct(texts, n)) and len(num) == 4


def bleu(text, others):
    """BLEU-4 against several references, written out."""
    logs, words, others = [], text.split(), [other.split() for other in others]
    for n in range(1, 5):
        count = Counter(zip(*(words[i:] for i in range(n)), strict=False))
        if count:
            of = [Counter(zip(*(other[i:] for i in range(n)), strict=False)) for other in others]
            hits = sum(min(times, max(other[gram] for other in of)) for gram, times in count.items())
            logs.append(math.log(max(hits, 0.5) / count.total()))
    closest = min((len(other) for other in others), key=lambda length: (abs(length - len(words)), length))
    return math.exp(np.mean(logs) + min(0.0, 1 - closest / len(words)))


def test_self_bleu_against_each_text_by_itself():
    texts = [
        "how is the cat today", "how is the dog today my friend", "what a day", "a day a day a day", "how is the cat today",
        "is the cat the cat of the cat",
    ]  # fmt: skip
    expected = [bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(expected)
    assert self_bleu(texts)[0] == 1.0 and self_bleu(["a b c d", "e f g h"]).max() < 0.3


def test_words_of_a_profile_and_the_alarm():
    assert names_profile("Are the bees well?", ("keeps bees",)) == 1.0
    assert names_profile("With whom are you about?", ("with others about",)) == 0.0
    assert math.isnan(names_profile("Hello.", ()))
    assert (
        profane("What the FUCK?")
        and profane("bullshit")
        and not profane("A class on Dickens in Scunthorpe, assess it.")
    )


# ------------------------------------------------------------------------------------------ words


def e(value, half=0.1, seeds=3):
    return Estimate(value, value - half, value + half, seeds)


def arm(proxy, gold=None, kl=2.0, left=None, **more):
    values = {"proxy_gain": proxy, "kl": Estimate(kl, kl, kl, proxy.seeds), **more}
    return values | ({"gold_gain": gold} if gold else {}) | ({"proxy_gain_equal_length": left} if left else {})


SAYS = [
    (arm(e(0.05), e(0.02)), ["on the proxy no difference from SFT was found", "Nor on gold"], ["higher", "agrees"]),
    (
        arm(e(0.5), e(0.4)),
        ["higher than SFT: +0.50 [+0.40, +0.60], at a KL of 2.00 nats", "Gold agrees"],
        ["exploited"],
    ),
    (arm(e(-0.5), e(-0.4)), ["lower than SFT: -0.50", "Gold agrees"], ["higher"]),
    (arm(e(0.5), e(0.05)), ["Gold does not confirm it"], ["agrees", "disagrees"]),
    (arm(e(0.5), e(-0.3)), ["Gold disagrees: lower than SFT", "the proxy was exploited"], ["Gold agrees"]),
    (arm(e(0.5)), ["There is no gold model", "was not measured"], ["Gold "]),
    (arm(e(0.5, seeds=1), e(0.4, seeds=1)), ["One seed was trained", "With one training seed"], []),
    (arm(e(0.5), left=e(0.05)), ["At equal length no gain on proxy is left that could be told from none"], ["%)"]),
    (arm(e(0.5), left=e(0.2)), ["(40%), so most of it may be length"], []),
    (arm(e(0.5), left=e(0.4)), ["+0.40 [+0.30, +0.50] of it is left on proxy (80%)."], ["may be length"]),
    (arm(e(0.05), left=e(0.4)), ["no difference"], ["equal length"]),
    (arm(e(0.5), distinct_2_ratio=e(0.7)), ["distinct-2 is 0.70 times SFT's"], []),
    (arm(e(0.5), distinct_2_ratio=e(0.95)), [], ["distinct-2"]),
    (arm(e(0.5), base_nats_ratio=e(1.6), profane=e(0.01)), ["perplexity under the base is 1.60", "1.0% of its"], []),
    (
        arm(e(0.5), probes=e(0.6), probes_gain=e(-0.2), engaged_gain=e(0.2), win_rate=e(0.7)),
        [
            "in 60% of them (against SFT -0.20 [-0.30, -0.10]).",
            "engaged replies, higher",
            "prefers it to SFT (win rate 70%",
        ],
        ["not tell that"],
    ),
    (
        arm(e(0.5), probes=e(0.6), probes_gain=e(-0.05), engaged_gain=e(0.05), win_rate=e(0.45)),
        ["the interval does not tell that from none", "engaged replies, no difference", "was not found to prefer it"],
        ["engaged replies, higher", "prefers it"],
    ),
    (arm(e(0.5), probes=e(0.7), probes_gain=e(0.05)), [], ["probes"]),
]


@pytest.mark.parametrize(("values", "said", "unsaid"), SAYS)
def test_the_verdict_is_no_stronger_than_the_numbers(values, said, unsaid):
    text = verdict({"sft": {}, "ppo": values}, "On made-up numbers.")
    assert [words for words in said if words not in text] == [], text
    assert [words for words in unsaid if words in text] == [], text


def test_the_verdict_sets_ppo_beside_best_of_16_only_where_both_gain():
    best = arm(e(0.5, seeds=1), e(0.4, seeds=1), kl=1.84)
    table = {"sft": {}, "best-of-16": best, "ppo": arm(e(0.5), e(0.3))}
    assert "On gold PPO has 75% of best-of-16's gain, at 2.00 nats against at most 1.84" in verdict(table, "")
    assert "2 arms were compared" in verdict(table, "")
    table["ppo"]["gold_gain"] = e(0.05)
    assert "On gold PPO has" not in verdict(table, "") and "nothing to compare" in verdict({"sft": {}}, "")
    peak = fit_gain(np.linspace(0, 6, 13), np.linspace(0, 6, 13) * (1 - np.linspace(0, 6, 13) / 4), is_rl=False)
    assert "is highest at 4.0 nats" in verdict(table, "", {"gold": {"ppo": peak}})


# ------------------------------------------------------------------------------------------ goals


def reached(curves=None, best=None, **more):
    table = {"sft": {}, "best-of-16": arm(e(0.5), best or e(0.4)), "ppo": arm(e(0.5), **more)}
    return {goal.name.split(",")[0]: goal for goal in goals(table, curves or {})}


def test_goals_are_met_or_missed_by_the_numbers():
    found = reached(
        gold=e(0.3), kl=1.5, gold_of_best_of_16=e(0.75), gold_left_equal_length=e(0.9), gold_left_matched=e(0.3),
        distinct_2_ratio=e(0.95), base_nats_ratio=e(1.2), engaged_gain=e(0.05), probes_gain=e(-0.2),
    )  # fmt: skip
    met = {name: goal.met for name, goal in found.items()}
    assert met == {
        "gold gain over SFT": True,
        "share of best-of-16's gold gain": True,
        "KL at which its checkpoints have best-of-16's gold gain": None,
        "share of its gold gain left at equal length": False,  # by the smaller of the two estimates
        "distinct-2": True,
        "perplexity under the base": True,
        "simulated person's share of engaged replies": False,  # its interval holds 0
        "manipulation probes": False,
    }
    lines = in_words(list(found.values()))
    assert "distinct-2, times SFT's: 0.95 [0.85, 1.05], goal at least 0.8: **met**." in lines
    assert "0.75 [0.65, 0.85]" in lines[1] and "1.50 nats [1.50, 1.50], within" in lines[1]
    assert "also holds values that miss it" in lines[1]  # 0.65


def test_the_summary_shows_what_decides_an_arm_a_line_and_the_goals(tmp_path):
    ppo = {"kl": e(1.5), "proxy": e(0.2), "gold_gain": Estimate(0.3, 0.2, 0.4, 3), "words": e(11)}
    table = {
        "sft": {"kl": e(0, seeds=1), "words": e(12, seeds=1)},
        "best-of-2": {"kl": Estimate(0.19, 0.19, 0.19)},
        "ppo": ppo,
    }
    text = write_summary(table, goals(table, {}), tmp_path, ["Two notes.", "Here."])
    lines = text.splitlines()
    assert lines[0] == "| | KL to SFT, nats | **gold, over SFT** | words |"
    assert lines[2:5] == [
        "| SFT | 0.00 |  | 12.0 |",
        "| best of 2 | ≤ 0.19 |  |  |",
        "| PPO, 3 seeds | 1.50 | +0.30 [+0.20, +0.40] | 11.0 |",
    ]
    assert "| gold gain over SFT | above 0, and its interval too | 0.30 [0.20, 0.40] | met |" in lines
    assert lines[-2:] == ["Two notes.", "Here."] and (tmp_path / "summary.md").read_text() == text
    assert "asked" not in write_summary({"sft": {}}, [], tmp_path, [])


def test_a_share_at_more_kl_or_of_no_gain_is_not_met():
    assert reached(gold=e(0.3), kl=2.0, gold_of_best_of_16=e(0.95))["share of best-of-16's gold gain"].met is False
    nothing = reached(gold=e(0.05), best=e(0.05))
    assert nothing["share of best-of-16's gold gain"].met is None and nothing["gold gain over SFT"].met is False
    assert nothing["share of its gold gain left at equal length"].note == "not measured"
    assert goals({"sft": {}}, {}) == []


def test_the_kl_at_which_ppo_matches_best_of_16_is_on_its_curve():
    kl, gain = np.array([0.0, 1.0, 2.0, 4.0]), np.array([0.0, 0.2, 0.4, 0.3])
    assert kl_where(kl, gain, 0.3) == pytest.approx(1.5) and kl_where(kl, gain, 0.5) is None
    runs = [
        [{"eval/score": 0, "eval/gold": g + seed, "eval/kl": k} for k, g in zip(kl, gain, strict=True)]
        for seed in (0, 1)
    ]
    name = "KL at which its checkpoints have best-of-16's gold gain"
    assert reached({"ppo": runs}, gold=e(0.3), best=e(0.3))[name].measured.value == pytest.approx(1.5)
    never = reached({"ppo": runs}, gold=e(0.3), best=e(0.5))[name]
    assert never.measured is None and never.note == "never: at most +0.40, at 2.00 nats, of +0.50"


def test_shares_of_best_of_16_and_of_length_have_intervals_of_their_own():
    rows, scenes = made_up(worth=0.1, gain=0.6, more_words=1, num_scenes=8)
    rows = [{**r, "gold": r["proxy"]} for r in rows]
    ppo = tabulate(rows, [], ["sft", "best-of-16", "ppo"], scenes, 1, 100, 1)["ppo"]
    share, left = ppo["gold_of_best_of_16"], ppo["gold_left_equal_length"]
    assert left.value == pytest.approx(ppo["gold_gain_equal_length"].value / ppo["gold_gain"].value)
    assert left.low < left.value < left.high and share.low < share.value < share.high


def test_probes_and_talks_are_compared_with_sft():
    rows, scenes = made_up(worth=0.1, gain=0.0, more_words=0, num_scenes=6)
    probes = [{"arm": a, "seed": s, "probe": str(p), "margin": m - p}
              for a, s, m in [("sft", 0, 8.5), ("ppo", 1, 4.5), ("ppo", 2, 4.5)] for p in range(10)]  # fmt: skip
    measures = {"cumulative_mean": 0.1, "cumulative_final": 0.2, "turns_until_disengaged": 3}
    share = {("sft", 0): 0.2, ("sft+mood", 0): 0.1, ("ppo", 1): 0.4, ("ppo", 2): 0.4}
    talks = [{"arm": a, "seed": s, "scene": scenes[i], "sample": 0, "engaged": share[a, s] + i / 10, **measures}
             for a, s in share for i in range(4)]  # fmt: skip
    table = tabulate(rows, probes, ["sft", "sft+mood", "ppo"], scenes, 1, 300, 1, talks)
    ppo = table["ppo"]
    assert (ppo["probes"].value, ppo["probes_gain"].value) == (pytest.approx(0.5), pytest.approx(-0.4))
    assert ppo["probes_gain"].side < 0 and "probes_gain" not in table["sft"]
    assert table["sft"]["engaged"].value == pytest.approx(0.35)  # of the four scenes with talks
    assert (ppo["engaged_gain"].value, ppo["engaged_gain"].low) == (pytest.approx(0.2), pytest.approx(0.2))  # in pairs
    assert table["sft+mood"]["engaged_gain"].side < 0 and "proxy" not in table["sft+mood"]
    assert "lower (-0.10" in verdict(table, "")


# ------------------------------------------------------------------------------------------ arms


def test_arms_by_name():
    assert chosen(["ppo", "best-of-n"]) == ["sft", "best-of-2", "best-of-4", "best-of-16", "best-of-64", "ppo"]
    assert chosen(list(ARMS)) == list(ARMS)
    with pytest.raises(ValueError, match="arm 'pppo' is unknown"):
        chosen(["pppo"])
    with pytest.raises(ValueError, match="pool_size is 8: samples and the largest best-of-n need 16"):
        compare.CompareConfig(arms=["best-of-16"], pool_size=8)


@pytest.fixture
def runs(friend_adapter, tiny_scorer, tmp_path):
    """Makes a finished run `arm`-s`seed`: the adapter, a little changed, and what start_run and the stage leave."""

    def make(arm="ppo", seed=1, sft=friend_adapter, reward=tiny_scorer):
        run = tmp_path / "runs" / "tiny" / f"{arm}-s{seed}"
        shutil.copytree(friend_adapter, run / "model", dirs_exist_ok=True)
        weights = load_file(run / "model" / "adapter_model.safetensors")
        noise = torch.Generator().manual_seed(seed)
        weights = {k: w + 0.03 * torch.randn(w.shape, generator=noise) for k, w in weights.items()}
        save_file(weights, run / "model" / "adapter_model.safetensors", metadata={"format": "pt"})
        parents = [{"path": p, "sha256": weights_hash(resolve(p)) if p != "length" else None} for p in (sft, reward)]
        (run / "lineage.json").write_text(json.dumps({"id": f"{arm}{seed}", "parents": parents}))
        (run / "config.json").write_text(json.dumps({"scene_sources": ["sample"]}))
        (run / "summary.json").write_text("{}")
        evaluations = [{"step": s, "eval/score": 0.1 * s - 0.01 * s * s, "eval/kl": 0.5 * s} for s in range(5)]
        (run / "metrics.jsonl").write_text(
            "".join(json.dumps(r) + "\n" for r in [*evaluations, {"step": 5, "loss": 1}])
        )
        return run

    def config(**more):
        settings = {
            "arms": ["ppo"], "max_scenes": 5, "samples": 2, "pool_size": 4, "response_length": 6, "temperature": 1.0,
            "resamples": 100,
        }  # fmt: skip
        return compare.CompareConfig(
            runs_dir=str(tmp_path / "runs" / "tiny"), sft_model_path=friend_adapter,
            **({"reward_model_path": tiny_scorer} | settings | more),
        )  # fmt: skip

    return make, config


def test_the_whole_of_it_and_then_only_what_is_missing(runs, tmp_path, tiny_scorer, monkeypatch, capsys):
    make, config = runs
    make("ppo", 1), make("ppo", 2), make("ppo-length", 1, reward="length"), make("ppo-length", 2, reward="length")
    arms = ["base", "best-of-2", "best-of-4", "ppo", "ppo-length", "human"]
    found = compare.main(config(arms=arms, seeds=[1, 2], control_seeds=[1, 2]))
    directory = tmp_path / "runs" / "tiny" / "compare"
    rows = pq.read_table(directory / "rows.parquet").to_pylist()
    counts = Counter((row["arm"], row["seed"]) for row in rows)
    assert counts == {("sft", 0): 20, ("base", 0): 10, ("human", 0): 5} | {
        (arm, seed): 10 for arm in ("ppo", "ppo-length") for seed in (1, 2)
    }
    assert list(found.table) == ["base", "sft", "best-of-2", "best-of-4", "ppo", "ppo-length", "human"]
    kl = {arm: [abs(row["kl"]) for row in rows if row["arm"] == arm] for arm in ("ppo", "sft")}
    assert max(kl["ppo"]) > 0.01 and max(kl["sft"]) == 0
    assert found.table["ppo"]["proxy_gain"].seeds == 2 and "kl" not in found.table["human"]
    assert found.table["best-of-4"]["proxy"].value >= found.table["best-of-2"]["proxy"].value
    assert found.table["human"]["ended"].value == 1 and "probes" in found.table["base"]
    assert "There is no gold model" in (directory / "verdict.md").read_text()
    lines = list(csv.DictReader((directory / "table.csv").open()))
    assert {"arm", "measure", "value", "low", "high", "seeds"} == set(lines[0]) and "| PPO |" in (
        directory / "table.md"
    ).read_text()
    for figure in ("frontier.png", "seeds.png"):
        assert (directory / figure).stat().st_size > 10_000

    # A gold model turns up, and an arm is left out: nobody writes anew, gold alone is asked.
    def refuse(*_):
        raise AssertionError("rows that are there were computed again")

    monkeypatch.setattr(openers.Measured, "measured", refuse)
    again = compare.main(config(arms=["ppo"], seeds=[1, 2], gold_model_path=tiny_scorer))
    for key in ("proxy", "kl", "words", "proxy_gain"):
        assert again.table["ppo"][key].value == found.table["ppo"][key].value
    gold = [row["gold"] - row["proxy"] for row in again.rows if row["ended"]]
    assert np.abs(gold).max() < 1e-5 and "gold_gain" in again.table["ppo"]
    kept = pq.read_table(directory / "rows.parquet").to_pylist()
    assert len(kept) == len(rows)  # the other arms' stay for the next time
    # Other probes ask the models these alone.
    probes = openers.load_probes()
    left_out = next(probe for probe in probes if probe["kind"] == "manipulation")
    monkeypatch.setattr(openers, "load_probes", lambda: [probe for probe in probes if probe is not left_out])
    compare.main(config(arms=["ppo"], seeds=[1, 2], gold_model_path=tiny_scorer))
    margins = pq.read_table(directory / "probes.parquet").to_pylist()
    asked = {
        speaker: {row["probe"] for row in margins if (row["arm"], row["seed"]) == speaker} for speaker in who(margins)
    }
    assert set(map(len, asked.values())) == {14} and left_out["id"] not in asked["sft", 0]
    monkeypatch.setattr(openers, "load_probes", lambda: probes)
    # Another proxy reads what is there.
    make("ppo", 1, reward="friend-gold"), make("ppo", 2, reward="friend-gold")
    other = compare.main(config(arms=["best-of-2", "ppo"], seeds=[1, 2], reward_model_path="friend-gold"))
    text = {(r["arm"], r["seed"], r["scene"], r["sample"]): r["opener"] for r in rows}
    assert all(text[r["arm"], r["seed"], r["scene"], r["sample"]] == r["opener"] for r in other.rows)
    assert other.table["ppo"]["proxy"].value != found.table["ppo"]["proxy"].value
    capsys.readouterr()
    make("ppo", 1), make("ppo", 2)
    compare.main(config(arms=["ppo"], seeds=[1, 2], gold_model_path="friend-nowhere"))
    assert "gold is left out" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="computed again"):  # another temperature is another question
        compare.main(config(seeds=[1, 2], temperature=0.7))


def who(rows):
    return {(row["arm"], row["seed"]) for row in rows}


def without_pictures(monkeypatch):
    for module, name in ((compare, "write_report"), (compare.figures, "frontier"), (compare.figures, "learning")):
        monkeypatch.setattr(module, name, lambda *_: None)


def test_the_person_and_the_judge_enter_the_table_and_are_asked_once(runs, tmp_path, friend_base, monkeypatch):
    make, config = runs
    without_pictures(monkeypatch)
    make("ppo", 1), make("ppo", 2)
    settings = config(
        arms=["sft+mood", "best-of-4", "ppo"], seeds=[1, 2], gold_model_path="friend-reward", person_model_path=friend_base,
        max_scenes=3, talk_scenes=2, talk_turns=2, judge_scenes=2,
    )  # fmt: skip
    monkeypatch.setenv("JUDGE_MODEL", "j")
    with FakeJudge(lambda prompt: "[[1]]" if "Message 1" in prompt else "[[7]]") as judge:
        monkeypatch.setenv("JUDGE_BASE_URL", judge.url)
        monkeypatch.setenv("OPENAI_API_KEY", judge.key)
        found = compare.main(settings)
    directory = tmp_path / "runs" / "tiny" / "compare"
    talks = pq.read_table(directory / "talks.parquet").to_pylist()
    talkers = [("sft", 0), ("sft+mood", 0), ("best-of-4", 0), ("ppo", 1), ("ppo", 2)]
    assert Counter((row["arm"], row["seed"]) for row in talks) == dict.fromkeys(talkers, 2)
    assert {len(row["moods"] or []) for row in talks if row["arm"] == "sft+mood"} == {2}
    assert found.table["ppo"]["engaged_gain"].seeds == 2 and set(found.table["sft+mood"]) >= {"engaged", "engaged_gain"}
    assert (
        found.table["ppo"]["win_rate"].value == 0.5 and found.table["ppo"]["grade_gain"].value == 0
    )  # the first place
    assert json.loads((directory / "judge.json").read_text())["ppo"]["pairs"] == 4
    for name, words in (
        ("table.md", "engaged replies"),
        ("summary.md", "| gold gain over SFT | above 0, and its interval too |"),
        ("verdict.md", "PPO beside its goals:"),
        ("goals.json", '"met"'),
    ):
        assert words in (directory / name).read_text()

    def refuse(*_):
        raise AssertionError("talks that are there were simulated again")

    monkeypatch.setattr(simulate, "converse", refuse)  # and the judge is gone
    again = compare.main(settings)
    assert {arm: repr(values) for arm, values in again.table.items()} == {a: repr(v) for a, v in found.table.items()}
    monkeypatch.delenv("JUDGE_MODEL")
    settings.person_model_path = "runs/nowhere/person-s1"
    alone = compare.main(settings)
    assert "sft+mood" not in alone.table and "win_rate" not in alone.table["ppo"]
    assert "Judge: skipped, no endpoint is set (JUDGE_BASE_URL" in (directory / "table.md").read_text()
    assert len(pq.read_table(directory / "talks.parquet")) == len(talks)
    settings.person_model_path, settings.talk_turns = friend_base, 1
    with pytest.raises(AssertionError, match="simulated again"):  # shorter talks are others
        compare.main(settings)


def test_a_judge_that_dies_halfway_leaves_the_rest_of_the_table(runs, tmp_path, monkeypatch):
    make, config = runs
    without_pictures(monkeypatch)
    make()
    answered = []

    def answer(prompt):
        answered.append(prompt)
        return "[[tie]]" if "Message 1" in prompt else "[[5]]" if len(answered) < 10 else 400

    with FakeJudge(answer) as judge:
        for name, value in (("MODEL", "j"), ("BASE_URL", judge.url)):
            monkeypatch.setenv(f"JUDGE_{name}", value)
        monkeypatch.setenv("OPENAI_API_KEY", judge.key)
        found = compare.main(config(arms=["best-of-2", "ppo"], max_scenes=3))
    assert "win_rate" not in found.table["ppo"] and "proxy_gain" in found.table["ppo"]
    assert "what follows: the judge j refuses: HTTP 400" in (tmp_path / "runs/tiny/compare/table.md").read_text()


def test_the_kl_of_a_policy_is_that_of_its_samples(runs):
    """Against the sum over tokens of log p - log q, with nothing padded."""
    make, config = runs
    run = make()
    settings = config(max_scenes=3, temperature=0.8)
    scenes = compare.held_out_scenes(settings)
    measured = openers.Measured(compare.asked(settings, None), scenes, run.parent / "compare")
    rows = measured.measured(Speaker("ppo", 1, str(run), "id", "sha"))
    policy, sft = measured.model(str(run)), measured.model(settings.sft_model_path)
    sampled = [(i, ids[m]) for part, s in measured.written(Speaker("ppo", 1, str(run), "", ""), policy)
               for (i, _), ids, m in zip(part, s.response_BT, s.mask_BT, strict=True)]  # fmt: skip
    for found, (i, response) in zip(rows, sampled, strict=True):
        ids = torch.tensor([[*measured.prompts[i], *response]])
        logp = []
        for model in (policy, sft):
            logits = model(input_ids=ids).logits[0, len(measured.prompts[i]) - 1 : -1] / 0.8
            logp.append(torch.log_softmax(logits, -1)[torch.arange(len(response)), response].sum().item())
        assert found["kl"] == pytest.approx(logp[0] - logp[1], abs=1e-3) and found["tokens"] == len(response)


# ------------------------------------------------------------------------------------------ bad input


def test_runs_that_are_missing_or_unfinished_are_named(runs):
    make, config = runs
    with pytest.raises(FileNotFoundError, match="ppo-s1 is missing: train it with `make ppo EXP=tiny SEED=1`"):
        compare.main(config())
    run = make()
    (run / "summary.json").unlink()
    with pytest.raises(FileNotFoundError, match="ppo-s1 is not finished"):
        compare.main(config())


def test_arms_of_another_base_tokenizer_reward_or_sft_are_refused(runs):
    make, config = runs
    run = make("ppo", 1)
    adapter = run / "model" / "adapter_config.json"
    text = adapter.read_text()
    adapter.write_text(json.dumps({**json.loads(text), "base_model_name_or_path": "another/base"}))
    with pytest.raises(ValueError, match="stands on the base 'another/base'"):
        compare.main(config())
    adapter.write_text(text)
    with open(run / "model" / "tokenizer.json", "a") as tokenizer:
        tokenizer.write(" ")
    with pytest.raises(ValueError, match="has another tokenizer than"):
        compare.main(config())
    other = make("ppo", 2, reward=str(run))  # any other weights
    with pytest.raises(ValueError, match="was trained with the reward .*ppo-s1 of sha256 .*compare arms of one reward"):
        compare.main(config(seeds=[2]))
    lineage = json.loads((other / "lineage.json").read_text())
    lineage["parents"][0]["sha256"] = "0" * 64  # the SFT policy was trained again since
    (other / "lineage.json").write_text(json.dumps(lineage))
    with pytest.raises(ValueError, match="was trained with the SFT policy"):
        compare.main(config(seeds=[2]))


def test_scenes_that_were_trained_on_are_refused(friend_adapter):
    held_out = scenes_of("sample", "test")
    check_held_out(held_out, [], friend_adapter, None)
    trained = scenes_of("sample", "train")[7]
    with pytest.raises(ValueError, match=f"scene '{trained.id}' was trained on"):
        check_held_out([*held_out, trained], [], friend_adapter, None)


def test_a_score_that_is_no_number_names_the_scene_and_keeps_what_was_done(runs, monkeypatch, tmp_path):
    make, config = runs
    make()
    settings = config()
    compare.main(config(arms=["sft"]))
    file = tmp_path / "runs/tiny/compare/rows.parquet"
    before = pq.read_table(file).to_pylist()

    class Broken(LengthScorer):
        def score(self, rows):
            return torch.full((len(rows),), math.nan), None

    with monkeypatch.context() as patch:
        patch.setattr(openers, "load_scorer", lambda *_, **__: Broken())
        with pytest.raises(ValueError, match="the scorer gave nan for scene 'sample-"):
            compare.main(settings)
    after = pq.read_table(file).to_pylist()
    rest = after[len(before) :]
    assert after[: len(before)] == before
    assert {row["arm"] for row in rest} == {"ppo"} and all(row["proxy_key"] == openers.UNASKED for row in rest)

    def refuse(*_):
        raise AssertionError("rows that are there were written again")

    monkeypatch.setattr(openers.Measured, "measured", refuse)
    compare.main(settings)
    read = pq.read_table(file).to_pylist()
    assert [row["opener"] for row in read] == [row["opener"] for row in after]
    assert not any(row["proxy_key"] == openers.UNASKED or row["proxy"] is None for row in read)


def test_judges_whose_weights_are_elsewhere_are_told_apart(tmp_path):
    assert openers.judge_key("someone/emotions", "auto") != openers.judge_key("someone/else", "auto")
    assert openers.judge_key("friend-gold", "auto") == openers.judge_key("friend-gold", "auto")
    assert openers.judge_key("friend-gold", "auto") != openers.judge_key("friend-gold", "float32")
    reader = tmp_path / "reader"
    reader.mkdir()
    for directory in (tmp_path, reader):
        (directory / "config.json").write_text("{}")
        (directory / "model.safetensors").write_bytes(b"one")
    (tmp_path / "scorer.json").write_text(json.dumps({"likelihood": {"model": str(reader)}}))
    before = openers.judge_key(str(tmp_path), "auto")
    (reader / "model.safetensors").write_bytes(b"two")  # a second reader trained anew under its old name
    assert openers.judge_key(str(tmp_path), "auto") != before


# ------------------------------------------------------------------------------------------ what the arms' recipes need


def test_the_length_scorer_counts_words_up_to_its_target():
    scorer = load_scorer("length")
    texts = ["", "a " * 8, "a " * 16, "a " * 20, "a " * 32]
    score_B, _ = scorer.score([{"context": [], "response": text} for text in texts])
    assert score_B.tolist() == [0, 0.5, 1, 0.75, 0]


def test_another_aggregate_needs_members(tiny_scorer):
    with pytest.raises(ValueError, match="reward_aggregate is 'pessimistic', but .* has no members"):
        load_scorer(tiny_scorer, aggregate="pessimistic")
    pessimistic = load_scorer("friend-reward", aggregate="pessimistic")
    rows = [{"context": [], "response": "How are the bees?", "profile": ["keeps bees"]}]
    assert pessimistic.score(rows)[0] < replace(pessimistic, aggregate="mean").score(rows)[0]
