"""Numbers about sets of openers."""

import re
from collections.abc import Iterable

import numpy as np
from scipy.stats import bootstrap


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def distinct(texts: Iterable[str], n: int) -> float:
    """Different n-grams of words over all n-grams (Li et al. 2016), within texts. 0 where there are none."""
    grams = [gram for text in texts for gram in ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def copied(texts: list[str], training_texts: Iterable[str], n: int = 8) -> float:
    """Share of texts with a run of n or more words that stands in the training texts."""
    return float(np.mean(copies(texts, training_texts, n)))


def copies(texts: list[str], training_texts: Iterable[str], n: int = 8) -> list[bool]:
    """Whether each text has a run of n or more words that stands in the training texts."""
    grams = [set(ngrams(words(text), n)) for text in texts]
    wanted = set().union(*grams)  # of the few, so that a large corpus is read once and not kept
    seen = {gram for text in training_texts for gram in ngrams(words(text), n) if gram in wanted}
    return [bool(of_text & seen) for of_text in grams]


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean by bootstrap (BCa, Efron 1987). `values` are per scene: scenes are the clusters."""
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = bootstrap((values,), np.mean, method="BCa", n_resamples=9999, rng=np.random.default_rng(seed))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
