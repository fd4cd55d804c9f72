"""models/mood.py: its arithmetic, its table, and what friend-reward hears in twenty messages. Not covered: long talks."""

import pytest
import yaml

from data.emotions import LABELS
from models.load import load_scorer
from models.mood import MOODS, NAMES, load_moods, reader

TOLD = {"sad": {"sadness": 0.6, "grief": 0.6}, "glad": {"joy": 0.8}, "flat": {"neutral": 0.9, "approval": 0.7}}
#: What friend-reward makes of each, by itself.
MESSAGES = {
    "comfort": """
        My grandmother died last night. | I feel so alone these days. | I'm scared about my exam tomorrow. |
        He yelled at me in front of everyone. I'm furious. | I broke up with my boyfriend | I'm so stressed at
        work | I failed my driving test again | My dog is sick and I don't know what to do.
    """,
    "playful": """
        I got the job! I can't believe it, I'm so happy! | haha that's hilarious | Thanks, that's so kind of
        you | I love baking bread on sundays | Wow, really? I did not know that! | We went to the beach and it
        was amazing, the kids laughed
    """,
    "general": """
        Hi there! | ok | The train leaves at nine. | Yes, I live in Leeds with my sister. | What do you do for
        a living? | No, I don't think so.
    """,
}


@pytest.fixture
def moods():
    return load_moods(TOLD.__getitem__)


def test_the_mean_weighs_each_message_less_than_the_next_by_hand(moods):
    mood = moods.of(["sad", "glad", "flat"])
    total = 1 + 0.7 + 0.49
    assert mood["negative"] == pytest.approx(0.49 * 1.0 / total)  # two emotions of 0.6 make 1 at most
    assert mood["positive"] == pytest.approx(0.7 * 0.8 / total)
    assert moods.of([]) == {"name": "general", "negative": 0.0, "positive": 0.0}


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (["sad"], "comfort"), (["sad", "flat"], "comfort"), (["sad", "flat", "flat", "flat"], "general"),
        (["glad"], "playful"), (["glad", "sad"], "comfort"), (["flat"], "general"), (["sad"] + ["glad"] * 4, "playful"),
    ],
)  # fmt: skip
def test_moods_come_and_go(moods, said, name):
    assert moods.of(said)["name"] == name


def test_the_thresholds_themselves_are_not_passed():
    assert load_moods(lambda _: {"sadness": 0.3}).of(["x"])["name"] == "general"
    assert load_moods(lambda _: {"joy": 0.5}).of(["x"])["name"] == "general"


def test_a_general_mood_changes_no_instruction_and_the_others_add_to_it(moods):
    assert moods.instruction("general", "Be kind.") == "Be kind."
    assert moods.instruction("comfort", "Be kind.").startswith("Be kind. They are having a hard time.")
    assert "never flirtatious" in moods.instruction("playful", "Be kind.")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("decay"), "decay"),
        (lambda t: t.update(more=1), "no other"),
        (lambda t: t["thresholds"].update(comfort=3), "comfort is 3"),
        (lambda t: t["prompts"].pop("playful"), "prompts must name"),
        (lambda t: t["prompts"].update(comfort=None), "prompts, comfort"),
        (lambda t: t.update(negative=[]), "negative must be a list"),
    ],
)
def test_a_wrong_table_is_named(tmp_path, change, named):
    table = yaml.safe_load(MOODS.read_text())
    change(table)
    (tmp_path / "mood.yaml").write_text(yaml.safe_dump(table))
    with pytest.raises(ValueError, match=f"mood.yaml: .*{named}"):
        load_moods(TOLD.__getitem__, tmp_path / "mood.yaml")


@pytest.fixture(scope="module")
def heard():
    return load_moods(reader(load_scorer("friend-reward"), LABELS))


def test_every_emotion_of_the_table_is_one_that_some_reader_tells(heard):
    plain = {"anger", "disgust", "fear", "joy", "happiness", "neutral", "sadness", "surprise"}
    assert {*heard.negative, *heard.positive} <= {*LABELS, *plain} and not {*heard.negative} & {*heard.positive}


@pytest.mark.parametrize("name", NAMES)
def test_friend_reward_hears_twenty_messages(heard, name):
    messages = [" ".join(text.split()) for text in MESSAGES[name].split("|")]
    assert {text: heard.of([text])["name"] for text in messages} == dict.fromkeys(messages, name)


def test_a_plain_emotion_classifier_reads_too(tiny_scorer):
    emotions = reader(load_scorer(tiny_scorer), LABELS)("hello")
    assert sum(emotions.values()) == pytest.approx(1, abs=1e-5) and "joy" in emotions
