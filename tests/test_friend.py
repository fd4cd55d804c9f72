"""chat/friend.py: care, honesty, mood, then the engine; on an engine that writes down what it is asked, and on the real one
with a tiny model. Not covered: how well a model of real size comforts."""

import asyncio
import threading

import pytest

from chat import care
from chat.engine import Batch, Engine, Stream, UnknownModel
from chat.friend import MAX_NEW_TOKENS, Friend, unanswered
from models.mood import load_moods

INSTRUCTION = "Be kind."


def told(text):
    return {"sadness": float("sad" in text), "joy": float("glad" in text)}


class Asked:
    """An engine that says "Hello" and the number of the ask, and scores by that number."""

    names = ("a", "b")

    def __init__(self, has_scorer=True):
        self.asks, self.streams, self.has_scorer = [], [], has_scorer

    def ask(self, ask):
        if ask.model not in self.names:
            raise UnknownModel(ask.model)
        self.asks.append(ask)
        self.streams.append(Stream.of(f"Hello {len(self.asks)}"))
        return self.streams[-1]

    def score(self, rows):
        if not self.has_scorer:
            return [{"score": None, "reactions": None} for _ in rows]
        return [{"score": float(row["response"].split()[1]), "reactions": {"happiness": 1.0}} for row in rows]

    def instruction(self, name):
        return INSTRUCTION


@pytest.fixture
def friend():
    return Friend(Asked(), load_moods(told))


def turns(*texts):
    """The person's and the friend's in turn, the last one the person's."""
    roles = ["user" if i % 2 == (len(texts) - 1) % 2 else "assistant" for i in range(len(texts))]
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


def reply(friend, said, **settings):
    async def listen():
        return [piece async for piece in friend.reply("a", ["keeps bees"], said, **settings)]

    return "".join(asyncio.run(listen()))


def test_a_reply_is_the_models_with_instruction_profile_and_turns(friend):
    said = turns("Hi", "Hello you", "what now?")
    assert reply(friend, said, temperature=0.3, seed=5) == "Hello 1"
    [ask] = friend.engine.asks
    assert ask.messages == [{"role": "system", "content": "Be kind.\nAbout them: keeps bees."}, *said]
    assert (ask.model, ask.temperature, ask.seed, ask.max_new_tokens) == ("a", 0.3, 5, MAX_NEW_TOKENS)


@pytest.mark.parametrize("kind", ["care", "honesty"])
def test_care_and_honesty_ask_no_model(friend, kind):
    said = turns("I want to die" if kind == "care" else "are you a bot?")
    text = {"care": care.ANSWERS["self-harm"], "honesty": care.HONESTY}[kind]
    assert reply(friend, said) == text and friend.look(said)["kind"] == kind
    assert friend.prepare("a", (), said).text == text and friend.prepare("a", (), said, instruction="Obey.").ask is None
    [opener] = friend.open("a", [], said[0]["content"], n=4)
    assert opener == {"opener": text, "score": None, "reactions": None, "ended": True}
    assert friend.engine.asks == []


def test_a_fact_may_ask_for_care_but_not_for_honesty(friend):
    assert friend.open("a", ["wants to die"])[0]["opener"] == care.ANSWERS["self-harm"]
    assert friend.open("a", ["asks everybody: are you a bot?"])[0]["opener"] == "Hello 1"


def test_what_was_answered_with_care_is_not_answered_again_but_the_mood_stays(friend):
    said = turns("I want to die", care.ANSWERS["self-harm"], "ok")
    assert friend.look(said) == {"kind": "model", "mood": {"name": "comfort", "negative": 0.0, "positive": 0.0}}
    assert reply(friend, said) == "Hello 1" and "comfort them" in friend.engine.asks[0].messages[0]["content"]


def test_every_message_since_the_friends_last_is_looked_at(friend):
    said = [*turns("Hi"), {"role": "user", "content": "I want to die"}, {"role": "user", "content": "forget it"}]
    assert friend.look(said)["kind"] == "care"
    assert unanswered([*said, {"role": "assistant", "content": "x"}]) == [] and len(unanswered(said)) == 3


def test_the_mood_chooses_the_instruction_unless_told_not_to(friend):
    for text, words in (("so sad", "hard time"), ("so glad", "light-hearted"), ("hm", INSTRUCTION)):
        asked = friend.prepare("a", (), turns(text)).ask.messages[0]["content"]
        assert asked.startswith(INSTRUCTION) and words in asked
    assert friend.prepare("a", (), turns("so sad"), use_mood=False).ask.messages[0]["content"] == INSTRUCTION
    told_so = friend.prepare("a", ["is 71"], turns("so sad"), instruction="Rhyme.").ask.messages[0]["content"]
    assert told_so == "Rhyme.\nAbout them: is 71."


def test_only_the_persons_words_make_the_mood(friend):
    assert friend.look(turns("hm", "how sad!", "yes"))["mood"]["name"] == "general"


def test_openers_come_best_first_each_of_a_seed_of_its_own(friend):
    found = friend.open("b", ["is 71"], "Hi", n=3, seed=7)
    assert [c["opener"] for c in found] == ["Hello 3", "Hello 2", "Hello 1"]
    assert [c["score"] for c in found] == [3.0, 2.0, 1.0] and all(c["ended"] and c["reactions"] for c in found)
    assert [ask.seed for ask in friend.engine.asks] == [7, 8, 9]
    assert friend.engine.asks[0].messages[-1] == {"role": "user", "content": "Hi"}


def test_without_a_scorer_openers_keep_their_order():
    found = Friend(Asked(has_scorer=False), load_moods(told)).open("a", [], n=2)
    assert [(c["opener"], c["score"], c["reactions"]) for c in found] == [
        ("Hello 1", None, None),
        ("Hello 2", None, None),
    ]


def test_a_model_that_is_not_there_is_an_error(friend):
    with pytest.raises(UnknownModel):
        friend.open("c")


def test_a_listener_who_leaves_stops_the_model(friend_base, monkeypatch):
    forward, has_left = Batch._forward, threading.Event()

    def hold(batch, *args):
        if any(row.said for row in batch.rows):
            assert has_left.wait(10)  # else a listener who is slow to leave hears the end
        return forward(batch, *args)

    monkeypatch.setattr(Batch, "_forward", hold)
    with Engine([friend_base], dtype="float32") as engine:
        friend = Friend(engine, load_moods(told))

        async def leave():
            pieces = friend.reply(friend_base, (), turns("Hi"), max_new_tokens=200, temperature=5.0, seed=1)
            await anext(pieces)
            await pieces.aclose()
            has_left.set()

        streams = []
        ask = engine.ask
        engine.ask = lambda what: streams.append(ask(what)) or streams[-1]
        asyncio.run(leave())
        assert streams[0].finish_reason == "cancelled"


def test_on_the_real_engine_the_same_seed_says_the_same(friend_base, friend_adapter, tiny_scorer):
    # float32: in bfloat16 words can hang on company, that is on who came when.
    with Engine([friend_adapter], scorer=tiny_scorer, dtype="float32") as engine:
        friend = Friend(engine, load_moods(told))
        first, again = (friend.open(friend_adapter, ["is 71"], n=4, seed=3) for _ in range(2))
        assert first == again and len({c["opener"] for c in first}) > 1
        assert [c["score"] for c in first] == sorted((c["score"] for c in first), reverse=True)
        said = asyncio.run(_whole(friend, friend_adapter))
        assert said and said == asyncio.run(_whole(friend, friend_adapter))


async def _whole(friend, model):
    return "".join([piece async for piece in friend.reply(model, (), turns("Hi"), seed=2)])
