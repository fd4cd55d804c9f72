"""The project's own sample: dialogues and scenes written for it (Apache-2.0). README.md in this folder is its card."""

from collections.abc import Iterator
from pathlib import Path

from data.dialogue import Dialogue, from_json
from data.source import read_jsonl

FOLDER = Path(__file__).parent


def load(split: str) -> Iterator[Dialogue]:
    """Dialogues of train, validation or test; no profile is in two of them."""
    yield from read_jsonl(FOLDER / f"{split}.jsonl", parse=from_json)
