"""The arithmetic: best-of-n out of one pool, intervals over scenes and seeds together, equal length, over-optimisation.

Axes: S training seeds, N scenes, R resamples, K openers of a pool.
"""

from dataclasses import dataclass
from math import lgamma

import numpy as np

# ------------------------------------------------------------------------------------------ best of n


def best_of_weights(score_K: np.ndarray, n: int) -> np.ndarray:
    """The probability [K] of each of K openers to be the best of n drawn from them without replacement.

    The mean of any measure under these weights is its mean over all C(K, n) subsets' winners: unbiased for best-of-n
    with fresh samples, as every subset is. The i-th best (i = 1 ... K) wins where it is drawn and the i - 1 better ones
    are not: C(K - i, n - 1) / C(K, n) of the subsets. Among equal scores each is as likely.
    """
    K = len(score_K)
    if not 1 <= n <= K:
        raise ValueError(f"best of {n} needs a pool of {n} or more openers a scene, it has {K}")
    by_rank = np.array([np.exp(_log_choose(K - i, n - 1) - _log_choose(K, n)) for i in range(1, K + 1)])
    _, group, size = np.unique(-np.asarray(score_K, dtype=float), return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    return (np.bincount(group[order], by_rank) / size)[group]


def best_of_kl(n: int) -> float:
    """ln n - (n - 1) / n nats: the most that best-of-n's KL to the policy can be (Beirami et al. 2024)."""
    return float(np.log(n) - (n - 1) / n)


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) if n >= k else -np.inf


# ------------------------------------------------------------------------------------------ intervals


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval (both ends the value itself where it is not an estimate), over so many seeds."""

    value: float
    low: float
    high: float
    seeds: int = 1

    @property
    def side(self) -> int:
        """1 above 0, -1 below, 0 where the interval holds 0 or is unknown."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


@dataclass(frozen=True)
class Cells:
    """A measure of one arm as a ratio of sums over seeds and scenes; both are 0 where a scene has nothing."""

    num_SN: np.ndarray
    den_SN: np.ndarray

    def value(self) -> float:
        return float(_divide(self.num_SN.sum(), self.den_SN.sum()))

    def only(self, other: "Cells") -> "Cells":
        """Without the scenes of which `other` knows nothing."""
        keep_N = other.den_SN.sum(0) > 0
        return Cells(self.num_SN * keep_N, self.den_SN * keep_N)

    def resampled(self, bootstrap: "Bootstrap", arm: int) -> np.ndarray:
        """The value in each resample [R]."""
        seeds_RS = bootstrap.seeds(len(self.num_SN), arm)
        num, den = (_spread_out(cells) for cells in (self.num_SN, self.den_SN))
        return _divide(((seeds_RS @ num) * bootstrap.scenes_RN).sum(1), ((seeds_RS @ den) * bootstrap.scenes_RN).sum(1))


class Bootstrap:
    """How often each scene counts in each resample, the same for all arms, so that differences are paired by scene; and
    each arm's seeds, drawn by themselves."""

    def __init__(self, num_scenes: int, resamples: int, seed: int):
        self.resamples, self.seed = resamples, seed
        rng = np.random.default_rng(seed)
        self.scenes_RN = rng.multinomial(num_scenes, np.full(num_scenes, 1 / num_scenes), resamples).astype(float)

    def seeds(self, num_seeds: int, arm: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, arm])
        return rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), self.resamples).astype(float)


def estimate(value: float, draws_R: np.ndarray, seeds: int) -> Estimate:
    """The value with the 2.5th and 97.5th percentile of its resamples."""
    draws_R = draws_R[np.isfinite(draws_R)]
    if not np.isfinite(value) or not len(draws_R):
        return Estimate(float("nan"), float("nan"), float("nan"), seeds)
    low, high = np.percentile(draws_R, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high), seeds)


def _spread_out(cells_SN: np.ndarray) -> np.ndarray:
    """Seeds drawn from S vary by (S - 1) / S of what seeds do: here they are moved apart by that much."""
    S = len(cells_SN)
    mean = cells_SN.mean(0)
    return mean + (cells_SN - mean) * np.sqrt(S / (S - 1)) if S > 1 else cells_SN


def _divide(a, b):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(a, b)


# ------------------------------------------------------------------------------------------ equal length


def length_parts(words_NK: list[np.ndarray], value_NK: list[np.ndarray]) -> Cells:
    """Cells whose ratio is the slope of a value on words within scenes, by least squares with a mean for each scene."""
    sxy = [np.sum((w - w.mean()) * (v - v.mean())) if len(w) else 0.0 for w, v in zip(words_NK, value_NK, strict=True)]
    sxx = [np.sum((w - w.mean()) ** 2) if len(w) else 0.0 for w in words_NK]
    return Cells(np.array([sxy]), np.array([sxx]))


def matched_parts(
    words_K: np.ndarray, value_K: np.ndarray, weight_K: np.ndarray, pool_words: np.ndarray, pool_value: np.ndarray,
    within: int = 1, from_pool: bool = False,
) -> tuple[float, float]:  # fmt: skip
    """One scene's sum of weighted gains over the pool's openers of like length (`within` words), and the weight that has
    found any. With `from_pool` the openers are the pool's own, and none is compared with itself."""
    near = np.abs(words_K[:, None] - pool_words[None]) <= within
    if from_pool:
        np.fill_diagonal(near, False)
    count = near.sum(1)
    found = count > 0
    gain = value_K[found] - (near[found] @ pool_value) / count[found]
    return float(weight_K[found] @ gain), float(weight_K[found].sum())


# ------------------------------------------------------------------------------------------ over-optimisation


@dataclass(frozen=True)
class Fit:
    """gain(d) = d (alpha - beta ln d) of RL, or d (alpha - beta d) of best-of-n, d = sqrt(KL) (Gao et al. 2023, eq. 1);
    `peak` is where it is highest, None unless that lies within the data."""

    alpha: float
    beta: float
    is_rl: bool
    peak: float | None

    def __call__(self, d: np.ndarray) -> np.ndarray:
        d = np.maximum(d, 1e-9)
        return d * (self.alpha - self.beta * (np.log(d) if self.is_rl else d))


def fit_gain(d: np.ndarray, gain: np.ndarray, is_rl: bool) -> Fit | None:
    """Least squares over the points with d > 0; None with fewer than three different d: two parameters need more."""
    keep = d > 0
    d, gain = d[keep], gain[keep]
    if len(np.unique(d)) < 3:
        return None
    (alpha, minus_beta), *_ = np.linalg.lstsq(np.stack([d, d * (np.log(d) if is_rl else d)], 1), gain, rcond=None)
    beta, peak = -float(minus_beta), None
    if beta > 0:
        at = np.exp(np.clip(alpha / beta - 1, -50, 50)) if is_rl else alpha / (2 * beta)
        peak = float(at) if d.min() <= at <= d.max() else None
    return Fit(float(alpha), beta, is_rl, peak)


def kl_where(kl_C: np.ndarray, gain_C: np.ndarray, target: float) -> float | None:
    """The KL at which the checkpoints, in their order, first have the gain, on a line between two of them; None if none
    has."""
    reached = np.flatnonzero(gain_C >= target)
    if not len(reached):
        return None
    c = int(reached[0])
    if c == 0:
        return float(kl_C[0])
    share = (target - gain_C[c - 1]) / (gain_C[c] - gain_C[c - 1])
    return float(kl_C[c - 1] + share * (kl_C[c] - kl_C[c - 1]))
