"""The friend's training mixture: which dialogues of which source it learns from, and how many fall out and why.

Preset `clean`, the default. EmpatheticDialogues of the kept situations (the listener is the friend; where facts allow it,
a second example begins with the listener's answer to them: `opener_readings`) and DailyDialog dialogues whose every
utterance is neutral, happy or surprised (nobody is the friend there, so each gives two examples, one per side, and the
friend opens in half of them); the project's sample as it was written. No dialogue is there twice: one that repeats a
dialogue of a later split (train < validation < test) or an earlier one of its own split is dropped.

Preset `original` is the rules of the recipe that this project started from, for comparison only: the test split is
glued to training, the even turns (0, 2, ...) are the person's, nothing is removed as a repetition, and there are no
profiles.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

from data import empathetic
from data.corpora import LOADERS, same_words
from data.dialogue import SPLITS, Dialogue, swap
from data.profile import derive_profile, opener_readings

PRESETS = ("clean", "original")
MIXTURE = ("sample", "openers", "empathetic", "daily")  # what it is made of where a recipe says nothing else
SOURCES = (*MIXTURE, "more_openers")
OWN = ("sample", "openers", "more_openers")  # the project's own text
KEPT_EMOTIONS = frozenset(("neutral", "happiness", "surprise"))

#: Why a row is dropped, in the order in which the rules are asked: the first that applies is counted.
REASONS = ("labels", "held out", "filter", "short", "repeated")


@dataclass
class Count:
    """What became of one source's rows of one split: rows_in = kept + the sum of dropped, by REASONS."""

    source: str
    split: str
    rows_in: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: int = 0


def mixture(
    preset: str = "clean", sources: tuple[str, ...] = MIXTURE, root: str | None = None
) -> tuple[dict[str, list[Dialogue]], list[Count]]:
    """Examples by split, in the sources' order (not shuffled), and a Count for each source and split of the files.

    `clean` gives train, validation and test; `original` train and validation. Raises ValueError for an unknown preset
    or source, and for a split that ends up empty.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}, not one of {PRESETS}")
    if unknown := [source for source in sources if source not in SOURCES]:
        raise ValueError(f"source {unknown[0]!r} is not one of {SOURCES}")
    if preset == "original" and set(OWN) & set(sources):
        raise ValueError("preset original knows nothing of the sample and its openers: leave them out of the sources")

    splits, counts, held_out = {}, [], set()
    for split in reversed(SPLITS):
        examples, seen, read = [], set(), set()
        for source in sources:
            count = Count(source, split)
            for dialogue in LOADERS[source](split, root):
                words = same_words(dialogue)
                read.add(words)
                count.rows_in += 1
                reason = clean_reason(dialogue, words, held_out, seen) if preset == "clean" else filter_reason(dialogue)
                if reason:
                    count.dropped[reason] += 1
                    continue
                seen.add(words)
                made = examples_of(dialogue) if preset == "clean" else [replace(dialogue, profile=())]
                examples += [example.check() for example in made]
                count.kept += 1
                count.examples += len(made)
            assert count.rows_in == count.kept + count.dropped.total(), count
            counts.insert(0, count)
        held_out |= read
        splits[split] = examples
    if preset == "original":
        splits["train"] += splits.pop("test")
    for split, examples in splits.items():
        if not examples:
            told = [f"{c.source} {c.rows_in} rows, dropped {dict(c.dropped)}" for c in counts if c.split == split]
            raise ValueError(f"the {split} split is empty: {'; '.join(told) or 'no sources'}")
    return {split: splits[split] for split in SPLITS if split in splits}, sorted(
        counts, key=lambda c: sources.index(c.source)
    )


def clean_reason(dialogue: Dialogue, words: str, held_out: set[str], seen: set[str]) -> str | None:
    """Why preset clean drops the dialogue, one of REASONS, or None.

    `words` is its `same_words`; `held_out` holds those of the later splits, `seen` those already kept in this one.
    """
    if dialogue.source == "daily" and any(turn.emotion is None for turn in dialogue.turns):
        return "labels"  # more utterances than labels
    if words in held_out:
        return "held out"
    if reason := filter_reason(dialogue):
        return reason
    if len(dialogue.turns) < 2 and dialogue.source not in ("openers", "more_openers"):
        return "short"
    return "repeated" if words in seen else None


def filter_reason(dialogue: Dialogue) -> str | None:
    """The original recipe's filter: the situation in EmpatheticDialogues, every utterance's emotion in DailyDialog."""
    if dialogue.source == "empathetic" and dialogue.topic not in empathetic.KEPT_SITUATIONS:
        return "filter"
    # None is an utterance beyond the labels, at which the recipe never looked.
    emotions = {turn.emotion for turn in dialogue.turns} - {None}
    return "filter" if dialogue.source == "daily" and not emotions <= KEPT_EMOTIONS else None


def examples_of(dialogue: Dialogue) -> list[Dialogue]:
    """One example where the source has roles; else one per side, each profile derived from its person's own words. In
    EmpatheticDialogues, where the person always opens, also the first reading in which the friend does."""
    if dialogue.source == "empathetic":
        return [dialogue, *opener_readings(dialogue)[:1]]
    if dialogue.source != "daily":
        return [dialogue]
    return [replace(side, profile=derive_profile(side)) for side in (dialogue, swap(dialogue))]
