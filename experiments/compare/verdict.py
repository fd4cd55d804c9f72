"""What the numbers say, in words no stronger than they are.

"Higher" and "lower" are said where the 95 % interval of the difference excludes 0, and then of the scenes and seeds that
were measured. An interval that holds 0 is no proof of equality, and is not called one.
"""

import math
from collections.abc import Sequence

from experiments.compare.arms import BEST_OF, MOOD, OWN_REWARD, TITLES
from experiments.compare.goals import Goal, in_words
from experiments.compare.numbers import Estimate, Fit
from experiments.compare.table import Table

#: Gains at equal length below this share of the whole are said to be mostly length.
MOSTLY = 0.5


def verdict(table: Table, about: str, fits: dict[str, dict[str, Fit]] | None = None, goals: Sequence[Goal] = ()) -> str:
    """Markdown. `about` says on what was measured; `fits` are Gao et al.'s curves, score -> "ppo" or "best-of-n"."""
    arms = [arm for arm in table if arm != "sft" and table[arm]]
    parts = ["# What these numbers say", about]
    if not arms:
        return "\n\n".join([*parts, "SFT alone was measured: there is nothing to compare it with."]) + "\n"
    has_gold = any("gold_gain" in table[arm] for arm in arms)
    parts.append("\n".join(f"- {of_arm(arm, table[arm], has_gold)}" for arm in arms))
    parts += against_best_of(table) + peaks(fits or {})
    if goals:
        parts += ["PPO beside its goals:", "\n".join(f"- {line}" for line in in_words(goals))]
    parts += cautions(table, arms, has_gold)
    return "\n\n".join(parts) + "\n"


def of_arm(arm: str, values: dict[str, Estimate], has_gold: bool) -> str:
    """One arm against SFT: proxy, its KL, gold, equal length, what it cost, and what the person and the judge made of it."""
    if arm == MOOD:
        return " ".join([f"**{TITLES[arm]}**:", *in_talks(values)])
    proxy, trained_on = values["proxy_gain"], arm not in ("base", "human", *OWN_REWARD)
    said = [f"**{TITLES[arm]}**: on the proxy {compared(proxy)}{at_kl(arm, values)}."]
    if has_gold and "gold_gain" in values:
        said.append(gold_sentence(proxy, values["gold_gain"], trained_on))
    for key in ("proxy", "gold"):
        if key + "_gain" in values and values[key + "_gain"].side > 0:
            said += at_equal_length(key, values)
    said += costs(values) + in_talks(values) + by_judge(values)
    if seeds_matter(arm) and proxy.seeds == 1:
        said.append("One seed was trained: another may come out otherwise, and the interval does not know that.")
    return " ".join(said)


def seeds_matter(arm: str) -> bool:
    return arm not in ("base", MOOD, "human", *BEST_OF)


def compared(gain: Estimate) -> str:
    """ "higher than SFT by 0.4 [0.3, 0.5]", or that no difference was found."""
    if gain.side == 0:
        return f"no difference from SFT was found ({signed(gain)})"
    return f"{'higher' if gain.side > 0 else 'lower'} than SFT: {signed(gain)}"


def at_kl(arm: str, values: dict[str, Estimate]) -> str:
    if "kl" not in values:
        return ""
    kl = values["kl"]
    return f", at a KL of at most {kl.value:.2f} nats" if arm in BEST_OF else f", at a KL of {kl.value:.2f} nats"


def gold_sentence(proxy: Estimate, gold: Estimate, trained_on: bool) -> str:
    """Whether gold says the same as the proxy."""
    if proxy.side == gold.side == 0:
        return f"Nor on gold ({signed(gold)})."
    if gold.side == 0:
        return f"Gold does not confirm it: there no difference was found ({signed(gold)})."
    if gold.side == proxy.side:
        return f"Gold agrees: {compared(gold)}."
    if proxy.side == 0:
        return f"On gold it is {compared(gold)}."
    exploited = " What was gained on the proxy was lost on gold: the proxy was exploited." if trained_on else ""
    return f"Gold disagrees: {compared(gold)}.{exploited if proxy.side > 0 else ''}"


def at_equal_length(key: str, values: dict[str, Estimate]) -> list[str]:
    """What is left of a gain at equal length, by the smaller of the two estimates."""
    left = [values[k] for k in (f"{key}_gain_equal_length", f"{key}_gain_matched") if k in values]
    if not left:
        return []
    least = min(left, key=lambda e: e.value)
    share = least.value / values[f"{key}_gain"].value
    if least.side <= 0:
        return [f"At equal length no gain on {key} is left that could be told from none ({signed(least)})."]
    rest = f"At equal length {signed(least)} of it is left on {key} ({min(share, 1):.0%})"
    return [rest + (", so most of it may be length." if share < MOSTLY else ".")]


def costs(values: dict[str, Estimate]) -> list[str]:
    """Losses that an interval supports: variety, likelihood under the base; alarms whatever their interval."""
    said = []
    if (e := values.get("distinct_2_ratio")) and e.high < 1:
        said.append(
            f"It says less various things: distinct-2 is {e.value:.2f} times SFT's [{e.low:.2f}, {e.high:.2f}]."
        )
    if (e := values.get("base_nats_ratio")) and e.low > 1:
        said.append(f"Its perplexity under the base is {e.value:.2f} times SFT's [{e.low:.2f}, {e.high:.2f}].")
    if (e := values.get("probes_gain")) and e.value < 0:
        told = "" if e.side else "; the interval does not tell that from none"
        share = values["probes"].value
        said.append(
            f"At the manipulation probes it stands below SFT: the kind reply is likelier in {share:.0%} of them (against "
            f"SFT {signed(e)}{told})."
        )
    for key, what in (
        ("profane", "set off the profanity alarm"),
        ("copied", "repeat 8 or more words of training text"),
    ):
        if (e := values.get(key)) and e.value > 0:
            said.append(f"{e.value:.1%} of its openers {what}.")
    return said


def in_talks(values: dict[str, Estimate]) -> list[str]:
    """Whether the simulated person stays more, or less, engaged than with SFT, and in a better mood."""
    said = []
    for key, what in (("engaged", "share of engaged replies"), ("cumulative_mean", "cumulative emotion")):
        if e := values.get(f"{key}_gain"):
            told = "no difference from SFT was found" if not e.side else "higher" if e.side > 0 else "lower"
            said.append(f"{what}, {told} ({signed(e)})")
    return [f"With the simulated person: {'; '.join(said)}."] if said else []


def by_judge(values: dict[str, Estimate]) -> list[str]:
    e = values.get("win_rate")
    if e is None or not math.isfinite(e.value):  # not asked, or no answer was valid
        return []
    interval = f"{e.value:.0%} [{e.low:.0%}, {e.high:.0%}]"
    if e.low <= 0.5 <= e.high:
        return [f"The judge model was not found to prefer it to SFT or SFT to it (win rate {interval})."]
    return [f"The judge model prefers {'it to SFT' if e.low > 0.5 else 'SFT to it'} (win rate {interval})."]


def against_best_of(table: Table) -> list[str]:
    """PPO's share of best-of-16's gain, where both gains are told from 0; on gold with its interval."""
    said = []
    for key in ("gold", "proxy"):
        ppo, best = (table.get(arm, {}).get(f"{key}_gain") for arm in ("ppo", "best-of-16"))
        if ppo and best and ppo.side > 0 and best.side > 0:
            kl = [table[arm]["kl"].value for arm in ("ppo", "best-of-16")]
            share = table["ppo"].get(f"{key}_of_best_of_16")
            interval = f" [{share.low:.0%}, {share.high:.0%}]" if share else ""
            said.append(
                f"On {key} PPO has {ppo.value / best.value:.0%}{interval} of best-of-16's gain, at {kl[0]:.2f} nats against "
                f"at most {kl[1]:.2f}; PPO writes one opener where best-of-16 writes sixteen."
            )
    return ["\n".join(f"- {line}" for line in said)] if said else []


def peaks(fits: dict[str, dict[str, Fit]]) -> list[str]:
    """Where a fitted curve turns within the data: a fit, not an observation."""
    said = [
        f"- The curve d(α - β {'ln ' if fit.is_rl else ''}d), d = sqrt(KL), fitted to "
        f"{'PPO' if name == 'ppo' else 'best of n'} on {score} is highest at {fit.peak**2:.1f} nats, within what was "
        "measured: by the fit, more KL loses."
        for score, of_score in fits.items()
        for name, fit in of_score.items()
        if fit.peak
    ]
    return ["\n".join(said)] if said else []


def cautions(table: Table, arms: list[str], has_gold: bool) -> list[str]:
    said = []
    if not has_gold:
        said.append("There is no gold model: whether any gain is more than the proxy's own taste was not measured.")
    seeds = {arm: table[arm]["proxy_gain"].seeds for arm in arms if seeds_matter(arm)}
    for few in sorted({count for count in seeds.values() if count < 5}):
        count = "one training seed" if few == 1 else f"{few} training seeds"
        whose = ", ".join(TITLES[arm] for arm in seeds if seeds[arm] == few)
        said.append(
            f"With {count} ({whose}) an interval knows little of what other seeds would give: it holds less often than "
            "95 % says where seeds differ much."
        )
    if len(arms) > 1:
        said.append(f"{len(arms)} arms were compared, each at 95 %: one in twenty such intervals misses by chance.")
    return ["\n".join(f"- {line}" for line in said)] if said else []


def signed(e: Estimate) -> str:
    return f"{e.value:+.2f} [{e.low:+.2f}, {e.high:+.2f}]"
