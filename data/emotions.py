"""GoEmotions (Demszky et al. 2020, CC BY 4.0), "simplified": Reddit comments, each with 1 or more of 28 labels."""

from collections.abc import Iterator

from data.source import read_table
from data.text import normalise

REPO = "google-research-datasets/go_emotions"
COLUMNS = ("text", "labels", "id")

#: In the hub's index order: 27 emotions and neutral.
LABELS = tuple(
    "admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval "
    "disgust embarrassment excitement fear gratitude grief joy love nervousness optimism pride realization relief "
    "remorse sadness surprise neutral".split()
)


def load(split: str, root: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """(text, names of its labels) of each comment. Names of people are [NAME] in the source.

    Raises ValueError naming the row whose label is none of the 28: the "raw" configuration, or another order.
    """
    for row in read_table(REPO, split, COLUMNS, root, config="simplified"):
        if not all(0 <= label < len(LABELS) for label in row["labels"]):
            raise ValueError(
                f"{REPO} {split}, row {row['id']!r}: labels are {row['labels']}, not indices below {len(LABELS)}"
            )
        yield normalise(row["text"]), [LABELS[label] for label in row["labels"]]
