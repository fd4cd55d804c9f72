"""Every corpus of dialogues by name, and the rule that no training dialogue repeats a held-out one."""

import re
from collections.abc import Iterable

from data import contrasts, daily, empathetic, extra, openers, sample
from data.dialogue import SPLITS, Dialogue

#: corpus -> load(split, root), root None for the hub or the project's own sample.
LOADERS = {
    "sample": lambda split, root: sample.load(split),
    "openers": lambda split, root: openers.load(split),
    "more_openers": lambda split, root: openers.load_more(split),
    "rated": lambda split, root: openers.load_rated(split),
    "contrasts": lambda split, root: contrasts.load(split),
    "empathetic": empathetic.load,
    "daily": daily.load,
    **{corpus: lambda split, root, corpus=corpus: extra.load(corpus, split, root) for corpus in extra.FILES},
}


def load_without_leaks(corpus: str, split: str, root: str | None = None) -> list[Dialogue]:
    """A corpus's dialogues; those of train that repeat one of its held-out splits (310 of DailyDialog's) left out."""
    dialogues = list(LOADERS[corpus](split, root))
    if split != "train":
        return dialogues
    return without_leaks({corpus: dialogues}, (d for other in SPLITS[1:] for d in LOADERS[corpus](other, root)))[corpus]


def without_leaks(train: dict[str, list[Dialogue]], held_out: Iterable[Dialogue]) -> dict[str, list[Dialogue]]:
    """The training dialogues of each corpus that repeat none of the held-out ones, of whichever corpus (`same_words`)."""
    seen = {same_words(dialogue) for dialogue in held_out}
    return {name: [d for d in dialogues if same_words(d) not in seen] for name, dialogues in train.items()}


def same_words(dialogue: Dialogue) -> str:
    """The letters and digits of all turns: equal for dialogues that repeat each other word for word.

    Case, punctuation, spaces and the cut into turns do not count: corpora repeat a dialogue tokenised another way.
    """
    return re.sub(r"[\W_]+", "", "".join(turn.text for turn in dialogue.turns).lower())
