"""chat/care.py against tests/care_phrases.jsonl: what must be seen and what must not. Not covered: irony, hints, silence.

The list was written against phrases like these and mended by them, so their 0 misses are no rate of misses in the world.
"""

import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat import care
from data.source import read_jsonl

ROWS = list(read_jsonl(Path(__file__).parent / "care_phrases.jsonl"))
CRISES = [row for row in ROWS if row["sign"]]
HARMLESS = [row for row in ROWS if not row["sign"]]
QUESTIONS = [row for row in ROWS if "asks" in row]


def test_the_phrases_are_many_and_each_is_there_once():
    assert len(CRISES) >= 60 and len(HARMLESS) >= 60
    assert len({row["text"].lower() for row in ROWS}) == len(ROWS)
    assert min(sum(row["sign"] == sign for row in CRISES) for sign in care.ANSWERS) >= 20


@pytest.mark.parametrize("row", CRISES, ids=lambda row: row["text"])
def test_no_sign_is_missed(row):
    kind, answer = care.fixed([row["text"]])
    assert kind == "care" and answer in care.ANSWERS.values()


def test_the_sign_is_the_right_one_but_for_what_may_be_either():
    assert sum(care.crisis(row["text"]) != row["sign"] for row in CRISES) <= 2


@pytest.mark.parametrize("row", HARMLESS, ids=lambda row: row["text"])
def test_no_false_alarm(row):
    assert care.crisis(row["text"]) is None


@pytest.mark.parametrize("row", QUESTIONS, ids=lambda row: row["text"])
def test_whether_it_is_a_program_is_heard_as_such_and_nothing_else_is(row):
    assert care.asks_what_this_is(row["text"]) == row["asks"]


@pytest.mark.parametrize(
    "text", ["I WANT TO DIE", "i want  to\ndie", "I want to *die*", "I want to kiiiill myself", "k1ll mys3lf"]
)
def test_dress_hides_nothing(text):
    assert care.crisis(text) == "self-harm"


def test_a_sign_beside_an_idiom_is_seen():
    assert care.crisis("This deadline is killing me and honestly I want to kill myself") == "self-harm"
    assert care.crisis("Kill the lights. I want to die.") == "self-harm"


def test_care_goes_before_honesty_and_every_message_is_read():
    assert care.fixed(["are you a bot?", "I want to die", "sorry"])[0] == "care"
    assert care.fixed(["are you a bot?", "well?"]) == ("honesty", care.HONESTY)
    assert care.fixed(["are you a bot?"], honesty=False) is None and care.fixed([]) is None


def test_the_answers_name_help_and_say_what_is_speaking():
    for answer in care.ANSWERS.values():
        assert "emergency number" in answer and "someone near you" in answer and "program" in answer
    assert "program, not a person" in care.HONESTY


def test_long_nasty_texts_take_no_time():
    words = (
        "i he my mom want to will kill me and hits is are you a just die myself cut in on ~ pills took not be".split()
    )
    draw = random.Random(0)
    texts = [" ".join(draw.choices(draw.sample(words, n), k=1000)) for n in (1, 2, 3, 5, 20) for _ in range(4)]
    start = time.process_time()
    for text in [*texts, "and " * 1000, "he is and " * 400, "a" * 4096, "1a" * 2048]:
        care.crisis(text), care.asks_what_this_is(text)
    assert time.process_time() - start < 5


@given(st.text())
def test_no_text_breaks_it(text):
    assert care.crisis(text) in (None, *care.SIGNS) and care.asks_what_this_is(text) in (True, False)
