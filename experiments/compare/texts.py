"""What is measured on an opener alone, and on a set of openers."""

import math
import re
from collections import Counter

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from rl.metrics import ngrams, words

#: An alarm and no more: plain swear words and slurs, at word beginnings. Zero says little, anything else is to be read.
PROFANE = re.compile(
    r"\b(fuck|shit|bitch|bastard|cunt|dick(head)?\b|asshole|arsehole|wank|slut|whore|fag(got)?s?\b|nigg|retard|motherf|"
    r"bullshit|damn|piss|porn|rape)",
    re.IGNORECASE,
)


def profane(text: str) -> bool:
    return PROFANE.search(text) is not None


def names_profile(text: str, profile: tuple[str, ...]) -> float:
    """1.0 where a word of the profile stands in the text, else 0.0; NaN where there is no profile. Words of four letters
    or more that are no function words count, without a final s."""
    return float(bool(_content(text) & _content(" ".join(profile)))) if profile else math.nan


def _content(text: str) -> set[str]:
    return {word.removesuffix("s") for word in words(text) if len(word) >= 4 and word not in ENGLISH_STOP_WORDS}


def distinct_parts(texts: list[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """num_N and den_N whose sums' ratio is distinct-n (Li et al. 2016) of the set: each n-gram gives 1 / its count."""
    grams = [ngrams(words(text), n) for text in texts]
    count = Counter(gram for part in grams for gram in part)
    num = [sum(1 / count[gram] for gram in part) for part in grams]
    return np.array(num, dtype=float), np.array([len(part) for part in grams], dtype=float)


def self_bleu(texts: list[str], most: int = 4) -> np.ndarray:
    """BLEU-4 of each text [N] with all the others as its references (Zhu et al. 2018): 1 where another says the same.

    Counts are clipped at the highest of any other text, no match counts as half a one (else short texts
    would all be 0), orders above the text's length are left out; brevity against the closest length.
    """
    tokens = [words(text) for text in texts]
    lengths = Counter(map(len, tokens))
    logs, orders = np.zeros(len(texts)), np.zeros(len(texts))
    for n in range(1, most + 1):
        counts = [Counter(ngrams(part, n)) for part in tokens]
        top: dict[tuple, list[int]] = {}  # the two highest counts of any text: the other one's where the first is own
        for count in counts:
            for gram, times in count.items():
                top[gram] = sorted([times, *top.get(gram, [0, 0])], reverse=True)[:2]
        for i, count in enumerate(counts):
            total = count.total()
            if not total:
                continue
            hits = sum(
                min(times, top[gram][1] if top[gram][0] == times else top[gram][0]) for gram, times in count.items()
            )
            logs[i] += math.log(max(hits, 0.5) / total)
            orders[i] += 1
    scores = np.zeros(len(texts))
    for i, part in enumerate(tokens):
        if orders[i]:
            others = [length for length in lengths if length != len(part) or lengths[length] > 1]
            closest = min(others, key=lambda length: (abs(length - len(part)), length), default=len(part))
            scores[i] = math.exp(logs[i] / orders[i] + min(0.0, 1 - closest / len(part)))
    return scores
