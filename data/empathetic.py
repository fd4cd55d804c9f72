"""EmpatheticDialogues (Rashkin et al. 2019, CC BY-NC 4.0): the speaker is the person, the listener is the friend."""

from collections.abc import Iterator

from data.dialogue import Dialogue, Turn, merge_runs
from data.profile import facts_of
from data.source import read_table
from data.text import from_empathetic

REPO = "facebook/empathetic_dialogues"
COLUMNS = ("conv_id", "utterance_idx", "context", "prompt", "speaker_idx", "utterance")

#: The situations that the original recipe kept.
KEPT_SITUATIONS = frozenset(
    "joyful sad lonely embarrassed surprised excited sentimental faithful proud trusting hopeful confident "
    "grateful".split()
)


def load(split: str, root: str | None = None) -> Iterator[Dialogue]:
    """Dialogues of a split in file order. `topic` is the situation's emotion word, `profile` the situation's facts."""
    turns, row = [], None
    for row_next in read_table(REPO, split, COLUMNS, root):
        if row is not None and row_next["conv_id"] != row["conv_id"]:
            yield _dialogue(row, turns, split)
            turns = []
        row = row_next
        text = from_empathetic(row["utterance"])
        if text:
            # Utterances count from 1 and the speaker begins. speaker_idx is no help: on the hub it numbers the workers.
            turns.append(Turn("person" if row["utterance_idx"] % 2 else "friend", text))
    if row is not None:
        yield _dialogue(row, turns, split)


def _dialogue(row: dict, turns: list[Turn], split: str) -> Dialogue:
    profile = tuple(facts_of(from_empathetic(row["prompt"])))
    return Dialogue(row["conv_id"], "empathetic", split, merge_runs(turns), profile, row["context"])
