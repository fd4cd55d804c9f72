"""Corpora with a stated licence beside the two main ones, as JSON lines: material for the embedded base model, and
Topical-Chat's emotions and ratings for the reward.

self_dialogue (BSD-3-Clause), topical_chat (CDLA-Sharing-1.0), persuasion_for_good (Apache-2.0) and meena_human
(CC BY 4.0).
"""

import hashlib
from collections.abc import Iterator

from data.dialogue import Dialogue, Turn, merge_runs
from data.source import data_root, read_jsonl
from data.text import normalise

#: corpus -> file per split; a corpus without a split of its own is split by the hash of the dialogue's id.
FILES = {
    "self_dialogue": {"all": "all"},
    "topical_chat": {"train": "train_partial", "validation": "valid_freq", "test": "test_freq"},
    "persuasion_for_good": {"all": "all"},
    "meena_human": {"all": "all"},
}

#: Topical-Chat's words for what the writer felt; "curious" is surprise, as in GoEmotions' own grouping.
EMOTIONS = {
    "Angry": "anger",
    "Disgusted": "disgust",
    "Fearful": "fear",
    "Sad": "sadness",
    "Happy": "happiness",
    "Surprised": "surprise",
    "Curious to dive deeper": "surprise",
    "Neutral": "neutral",
}
#: Its partner's grade of the turn; an empty one is none.
RATINGS = {"Poor": 1, "Not Good": 2, "Passable": 3, "Good": 4, "Excellent": 5}


def hash_split(id: str, held_out: float = 0.02) -> str:
    """train, validation or test by the id alone, so that it depends neither on order nor on the other rows."""
    u = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8]) / 2**64
    return "validation" if u < held_out else "test" if u < 2 * held_out else "train"


def load(corpus: str, split: str, root: str | None = None) -> Iterator[Dialogue]:
    """Dialogues of one corpus and split, the first speaker as the person, successive turns of one speaker joined."""
    local = data_root(root)
    if local is None:
        raise FileNotFoundError(f"{corpus} is read from ROOT/extra/{corpus}/*.jsonl.xz: set ICEBREAKER_DATA")
    files = FILES[corpus]
    for row in read_jsonl(local / "extra" / corpus / f"{files.get(split) or files['all']}.jsonl.xz"):
        if "all" in files and hash_split(row["id"]) != split:
            continue
        person = row["turns"][0]["speaker"]
        turns = [
            Turn(
                "person" if t["speaker"] == person else "friend",
                text,
                EMOTIONS.get(t.get("emotion")),
                rating=RATINGS.get(t.get("turn_rating")),
            )
            for t in row["turns"]
            if (text := normalise(t["text"]))
        ]
        yield Dialogue(row["id"], corpus, split, merge_runs(turns), topic=row.get("topic"))
