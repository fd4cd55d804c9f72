"""DailyDialog (Li et al. 2017, CC BY-NC-SA 4.0): everyday dialogues with an emotion and an act for every turn."""

from collections.abc import Iterator

from data.dialogue import ACTS, EMOTIONS, Dialogue, Turn
from data.source import read_table
from data.text import detokenise

REPO = "li2017dailydialog/daily_dialog"
COLUMNS = ("dialog", "act", "emotion")


def load(split: str, root: str | None = None) -> Iterator[Dialogue]:
    """Dialogues of a split, the first speaker as the person.

    A row with more utterances than labels (train row 7851) keeps its text; the turns beyond the labels carry None.
    """
    for number, row in enumerate(read_table(REPO, split, COLUMNS, root)):
        turns = []
        for i, utterance in enumerate(row["dialog"]):
            text = detokenise(utterance)
            emotion = EMOTIONS[row["emotion"][i]] if i < len(row["emotion"]) else None
            act = ACTS[row["act"][i] - 1] if i < len(row["act"]) else None
            turns.append(Turn("friend" if i % 2 else "person", text or "...", emotion, act))
        yield Dialogue(f"daily-{split}-{number}", "daily", split, tuple(turns))
