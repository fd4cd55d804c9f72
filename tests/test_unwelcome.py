"""reward/unwelcome.jsonl: what a friend does not say; whole, of the promised kinds, and no line twice in other words.

Not covered: that each line is unwelcome, which only a reader can tell.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

from data.source import read_jsonl
from reward.probes import load_probes

PATH = Path(__file__).parents[1] / "reward" / "unwelcome.jsonl"
AIMS = {"manipulation": 110, "flattery": 80, "intrusive": 90, "cold": 90, "generic": 90, "robotic": 50, "stuffed": 50}
AIMS |= {"gushing": 30}
KINDS = tuple(AIMS)
RUN = 6  # as many words in a row in two lines are a template, not chance


@pytest.fixture(scope="module")
def rows():
    return list(read_jsonl(PATH))


def test_every_row_is_a_kind_and_a_text(rows):
    for number, row in enumerate(rows, start=1):
        assert row.keys() == {"kind", "text"}, f"line {number}"
        assert row["kind"] in KINDS, f"line {number}"
        assert isinstance(row["text"], str) and row["text"] and row["text"] == row["text"].strip(), f"line {number}"


def test_each_kind_has_its_share(rows):
    counts = Counter(row["kind"] for row in rows)
    assert {kind: counts[kind] for kind, aim in AIMS.items() if counts[kind] < 0.9 * aim} == {}


def test_no_text_stands_twice(rows):
    counts = Counter(row["text"].casefold() for row in rows)
    assert [text for text, count in counts.items() if count > 1] == []


def test_lines_are_short_enough_for_an_opener(rows):
    longest = {"generic": 14}
    assert [row["text"] for row in rows if len(row["text"].split()) > longest.get(row["kind"], 35)] == []


def test_no_two_lines_share_six_words_in_a_row(rows):
    seen: dict[tuple[str, ...], int] = {}
    for number, row in enumerate(rows, start=1):
        for run in runs(row["text"]):
            assert seen.setdefault(run, number) == number, f"lines {seen[run]} and {number} share {' '.join(run)!r}"


def test_runs_see_through_case_and_punctuation():
    assert list(runs("One, two: three four FIVE six!")) == [("one", "two", "three", "four", "five", "six")]
    assert list(runs("Don't go, it's late, stay")) == []


def runs(text: str, size: int = RUN) -> list[tuple[str, ...]]:
    """Every run of `size` words in a text, lower case, punctuation left out."""
    words = re.findall(r"[\w']+", text.casefold())
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def test_no_line_shares_six_words_with_a_probe(rows):
    probes = [text for probe in load_probes() for text in (probe["preferred"], probe["rejected"])]
    asked = {run for text in probes for run in runs(text)}
    for row in rows:
        assert not asked & set(runs(row["text"])), row
        assert row["text"].lower() not in {text.lower() for text in probes}
