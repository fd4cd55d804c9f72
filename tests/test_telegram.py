"""The real bot against a Bot API server on loopback, with a friend that echoes; once with the real one.

Not covered: Telegram itself (tests/fake_telegram.py says what of it is kept), and load: `python -m experiments.load
telegram` runs fifty people through a SIGTERM and a SIGKILL.
"""

import asyncio
import json
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import wraps
from pathlib import Path

import pytest
from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from hypothesis import given
from hypothesis import strategies as st

from chat import telegram
from chat.engine import Engine, TooLong
from chat.friend import load_friend
from chat.store import InUse, Store
from chat.telegram import Settings, Telegram, is_foreign, say, split
from tests.fake_telegram import TOKEN, FakeTelegram

ROOT = Path(__file__).parent.parent
OPENER = "What do the bees do in winter?"


class Echo:
    """Answers with what was said. `think`: what it waits for before each reply."""

    def __init__(self, think: Callable[[], Awaitable] = lambda: asyncio.sleep(0)):
        self.think = think
        self.heard: list[list[dict]] = []  # the turns of each reply
        self.known: list[tuple] = []  # the profile of each
        self.thinking = self.most = 0  # people thought about at once, now and at most

    def open(self, model, profile, greeting=None, n=1, seed=None, temperature=None):
        return [{"opener": OPENER, "score": 0.5, "reactions": {}, "ended": True}] * n

    def look(self, turns):
        is_care = any("give up" in turn["content"] for turn in turns)
        return {"kind": "care" if is_care else "model", "mood": {"name": "general", "negative": 0.1, "positive": 0.2}}

    async def reply(self, model, profile, turns, use_mood=True, temperature=0.7, seed=None):
        text = turns[-1]["content"]
        self.heard.append(turns)
        self.known.append(tuple(profile))
        if text == "error":
            raise RuntimeError(f"secret words, {TOKEN}")
        if len(text) > 1000:
            raise TooLong("the last turn")
        self.thinking += 1
        self.most = max(self.most, self.thinking)
        await self.think()
        self.thinking -= 1
        for word in f"You said: {text}".split(" "):
            yield word + " "


@asynccontextmanager
async def bot_of(server: FakeTelegram, tmp_path: Path, friend, **settings):
    """The bot in this process, not yet running."""
    settings = Settings(
        TOKEN,
        database=tmp_path / "t.sqlite",
        feedback_file=tmp_path / "feedback.jsonl",
        api_base=server.base,
        **settings,
    )
    session = AiohttpSession(api=TelegramAPIServer.from_base(server.base))
    with Store(settings.database) as store:
        async with Bot(TOKEN, session) as bot:
            yield Telegram(bot, friend, store, settings)


@asynccontextmanager
async def running(server: FakeTelegram, tmp_path: Path, friend=None, **settings):
    """The bot in this process, stopped as by SIGTERM at the end. Yields the friend."""
    friend, stop = friend or Echo(), asyncio.Event()
    async with bot_of(server, tmp_path, friend, **settings) as bot:
        task = asyncio.create_task(bot.run(stop))
        try:
            yield friend
        finally:
            stop.set()
            await task


def alone(test):
    """Runs an async test with a server of its own."""

    @wraps(test)
    def run(tmp_path):
        async def with_server():
            async with FakeTelegram() as server:
                await asyncio.wait_for(test(server, tmp_path), 300)

        asyncio.run(with_server())

    del run.__wrapped__  # else pytest takes the test's parameters for fixtures
    return run


def texts(messages: list[dict]) -> list[str]:
    return [message["text"] for message in messages]


# Conversation.


@alone
async def test_the_friend_opens_and_goes_on(server, tmp_path):
    async with running(server, tmp_path) as friend:
        server.say(7, "/start")
        welcome, opener = texts(await server.replies(7, 2))
        assert "not a person" in welcome and opener == OPENER
        server.say(7, "They cluster.")
        assert texts(await server.replies(7, 3))[2] == "You said: They cluster."
        assert [turn["content"] for turn in friend.heard[0]] == [OPENER, "They cluster."]
        assert [turn["role"] for turn in friend.heard[0]] == ["assistant", "user"]
        server.say(7, "/reset")
        assert texts(await server.replies(7, 4))[3] == OPENER  # no second welcome
        server.say(7, "Hm.")
        await server.replies(7, 5)
        assert [turn["content"] for turn in friend.heard[1]] == [OPENER, "Hm."]
    assert {"command": "reset", "description": telegram.COMMANDS["reset"]} in server.commands
    assert server.asked("deleteWebhook") == [{"drop_pending_updates": False}]


@alone
async def test_history_survives_a_restart_and_nobody_sees_anothers(server, tmp_path):
    async with running(server, tmp_path):
        server.say(7, "I keep bees.")
        server.say(8, "I sail.")
        await server.replies(7, 1), await server.replies(8, 1)
    async with running(server, tmp_path) as friend:
        server.say(7, "Ask me.")
        await server.replies(7, 2)
    assert [turn["content"] for turn in friend.heard[0]] == ["I keep bees.", "You said: I keep bees.", "Ask me."]


@alone
async def test_typing_is_shown_while_it_thinks(server, tmp_path):
    thought = asyncio.Event()
    async with running(server, tmp_path, Echo(thought.wait)):
        server.say(7, "Hello")
        await server.until(lambda: server.asked("sendChatAction"))
        assert not server.sent
        assert server.asked("sendChatAction") == [{"chat_id": 7, "action": "typing"}]
        thought.set()
        await server.replies(7, 1)
        thought.clear()
        server.refuse("sendChatAction", 500)  # no matter
        server.say(7, "Again")
        await server.until(lambda: server.refused)
        thought.set()
        await server.replies(7, 2)


@alone
async def test_a_burst_is_answered_in_order_and_people_in_parallel(server, tmp_path):
    together = asyncio.Barrier(5)  # a reply waits until all five are thought about
    async with running(server, tmp_path, Echo(together.wait), most=100) as friend:
        numbers = {}
        for i in range(8):
            for person in (1, 2, 3, 4, 5):
                numbers[person, i] = server.say(person, f"message {i}")
        for person in (1, 2, 3, 4, 5):
            replies = await server.replies(person, 8)
            assert texts(replies) == [f"You said: message {i}" for i in range(8)]
            # In a burst each reply quotes what it answers; the last one needs no quote.
            quoted = [reply.get("reply_to_message", {}).get("message_id") for reply in replies]
            assert quoted == [*(numbers[person, i] for i in range(7)), None]
    assert friend.most == 5


@alone
async def test_profile(server, tmp_path):
    async with running(server, tmp_path, most=100) as friend:
        server.say(7, "/profile")
        server.say(7, "/profile keeps bees;  works nights ;")
        server.say(7, "hello")
        server.say(7, "/Profile")
        server.say(7, "/profile " + "x" * 121)
        server.say(7, "/profile " + "a;" * 9)
        server.say(7, "/profile@icebreaker_test_bot clear")
        server.say(7, "hello again")
        shown = texts(await server.replies(7, 8))
    assert "nothing about you yet" in shown[0] and "Mondays" in shown[0]
    assert "- keeps bees\n- works nights" in shown[1] and "- works nights" in shown[3]
    assert "Nothing has changed" in shown[4] and "Nothing has changed" in shown[5]
    assert "Forgotten" in shown[6]
    assert friend.known == [("keeps bees", "works nights"), ()]


@alone
async def test_mood_privacy_help(server, tmp_path):
    async with running(server, tmp_path, most=100):
        for command in ("/mood", "/mood off", "/mood", "/privacy", "/help"):
            server.say(7, command)
        first, off, then, privacy, help_ = texts(await server.replies(7, 5))
    assert "general (negative 0.10, positive 0.20" in first and "/mood off" in first
    assert "no longer" in off and "/mood on" in then
    for word in ("Telegram number", "one file", "/delete", "end-to-end"):
        assert word in privacy
    assert all(f"/{command}" in help_ for command in telegram.COMMANDS)


@alone
async def test_delete_leaves_nothing_in_the_file(server, tmp_path):
    async with running(server, tmp_path, most=100):
        server.say(7, "/profile collects moustaches")
        server.say(7, "My walrus is called Bartholomew")
        server.say(8, "I stay")
        await server.replies(7, 2), await server.replies(8, 1)
        server.say(7, "/delete")
        server.press(7, (await server.replies(7, 3))[2], "Keep it")
        assert "Nothing" in (await server.replies(7, 4))[3]["text"]
        server.say(7, "/delete")
        server.press(7, (await server.replies(7, 5))[4], "Delete everything")
        assert "deleted" in (await server.replies(7, 6))[5]["text"]
        assert all("reply_markup" not in message for message in server.to(7))
        await server.until(lambda: len(server.asked("answerCallbackQuery")) == 2)
        on_disk = b"".join(path.read_bytes() for path in tmp_path.glob("t.sqlite*"))
        assert b"Bartholomew" not in on_disk and b"moustaches" not in on_disk and b"I stay" in on_disk
    db = sqlite3.connect(tmp_path / "t.sqlite")
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert set(tables) == {"inbox", "outbox", "people", "turns", "pace"}
    for table in tables:
        assert not db.execute(f"SELECT * FROM {table} WHERE person = 7").fetchall(), table


# What is no plain text.


@alone
async def test_other_content_gets_a_kind_line(server, tmp_path):
    async with running(server, tmp_path, most=100) as friend:
        file = {"file_id": "a", "file_unique_id": "b"}
        sticker = {**file, "type": "regular", "width": 9, "height": 9, "is_animated": False, "is_video": False}
        server.say(7, sticker=sticker)
        server.say(7, voice={**file, "duration": 3})
        server.say(7, photo=[{**file, "width": 9, "height": 9}])
        server.say(7, location={"longitude": 1.0, "latitude": 2.0})
        server.say(7, photo=[{**file, "width": 9, "height": 9}], caption="My dog")
        server.say(7, "Как дела, друг мой?")
        server.say(7, "Ich freue mich!")
        server.say(7, "👍")
        server.say(7, "x" * 2000)
        expected = [telegram.WORDS_ONLY] * 4 + ["You said: My dog", telegram.ENGLISH]
        expected += ["You said: Ich freue mich!", "You said: 👍", telegram.TOO_LONG]
        assert texts(await server.replies(7, 9)) == expected
    assert ["Как" in str(turns) for turns in friend.heard] == [False] * 4  # not remembered either


@alone
async def test_unknown_commands_in_any_script(server, tmp_path):
    async with running(server, tmp_path, most=100) as friend:
        for command in ("/sing", "/старт", "/開始", "/", "/ help", "/start@another_bot"):
            server.say(7, command)
        assert texts(await server.replies(7, 6)) == [telegram.UNKNOWN_COMMAND] * 6
    assert not friend.heard


@alone
async def test_an_edit_is_remembered_and_not_answered(server, tmp_path):
    async with running(server, tmp_path) as friend:
        number = server.say(7, "I have a cat")
        await server.replies(7, 1)
        server.edit(7, number, "I have a bat")
        server.say(7, "And you?")
        await server.replies(7, 2)
    assert [turn["content"] for turn in friend.heard[1]] == ["I have a bat", "You said: I have a cat", "And you?"]


@alone
async def test_silence(server, tmp_path):
    group = {"id": -5, "type": "group", "title": "Friends"}
    channel = {"id": -6, "type": "channel", "title": "News"}
    async with running(server, tmp_path) as friend:
        server.say(7, "hello everybody", chat=group)
        server.say(7, "/start@another_bot", chat=group)
        server.say(7, new_chat_members=[{"id": 4242, "is_bot": True, "first_name": "icebreaker"}], chat=group)
        server.say(7, pinned_message={"message_id": 3, "date": 0, "chat": {"id": 7, "type": "private"}})
        post = {"message_id": 9, "chat": channel, "date": 1, "text": "news"}
        server.updates.append({"update_id": server.update(message=post), "channel_post": post})
        server.update(something_new={"from": {"id": 7}})
        server.update(message={"from": {"id": 7}, "chat": 5, "text": []})  # nothing that Telegram would send
        server.update(message={"from": {"id": 9}, "chat": {"id": 7, "type": "private"}, "text": 5})  # nor this, quite
        server.say(7, "/help", chat=group)
        server.say(7, "still there?")
        assert sorted(texts(await server.replies(7, 2))) == [telegram.SORRY, "You said: still there?"]
        assert texts(server.to(-5)) == ["I only talk in private: https://t.me/icebreaker_test_bot"]
    assert len(server.sent) == 3 and len(friend.heard) == 1


# Limits and errors.


@alone
async def test_the_rate_limit_says_so_once(server, tmp_path):
    async with running(server, tmp_path, most=3):
        for i in range(6):
            server.say(7, f"message {i}")
        server.say(8, "hello")
        await server.replies(8, 1)
        said = texts(await server.replies(7, 4))
        assert said == [*(f"You said: message {i}" for i in range(3)), telegram.SLOWER.format(most=3)]
        await asyncio.sleep(0.1)
    assert len(server.to(7)) == 4


@alone
async def test_only_invited_people(server, tmp_path):
    async with running(server, tmp_path, allowed=frozenset({8})) as friend:
        server.say(7, "hello")
        server.say(7, "/start")
        server.say(8, "hello")
        assert texts(await server.replies(8, 1)) == ["You said: hello"]
        assert texts(await server.replies(7, 1)) == [telegram.NOT_INVITED.format(person=7)]
    assert len(friend.heard) == 1
    db = sqlite3.connect(tmp_path / "t.sqlite")
    assert not db.execute("SELECT * FROM turns WHERE person = 7").fetchall()


@alone
async def test_errors_are_answered_kindly_and_leak_nothing(server, tmp_path):
    lines = Lines()
    logging.getLogger().addHandler(lines)
    try:
        async with running(server, tmp_path) as friend:
            server.say(7, "error")
            server.say(7, "better?")
            assert texts(await server.replies(7, 2)) == [telegram.SORRY, "You said: better?"]
        assert [turn["content"] for turn in friend.heard[1]] == ["better?"]
    finally:
        logging.getLogger().removeHandler(lines)
    assert "RuntimeError at" in lines.text and "secret words" not in lines.text and "better" not in lines.text


@alone
async def test_429_is_obeyed(server, tmp_path):
    async with running(server, tmp_path):
        server.say(7, "first")
        await server.replies(7, 1)
        server.refuse("sendMessage", 429, retry_after=1)
        server.say(7, "second")
        assert texts(await server.replies(7, 2)) == ["You said: first", "You said: second"]
    sends = [at for method, _, at in server.calls if method == "sendmessage"]
    assert len(sends) == 3 and sends[2] - sends[1] >= 1.0


@alone
async def test_replies_outlast_errors_of_the_server(server, tmp_path):
    server.refuse("getMe", 502)
    server.refuse("getUpdates", 429, retry_after=1)
    server.webhook = "https://example.org"
    async with running(server, tmp_path):
        server.blocked.add(8)
        server.say(8, "blocks the bot")
        await server.until(lambda: ("sendmessage", 403) in [(method, e.code) for method, e, _ in server.refused])
        server.blocked.discard(8)
        server.refuse("sendMessage", 500)  # only now: whichever message comes first gets it
        server.say(7, "hello")
        assert texts(await server.replies(7, 1)) == ["You said: hello"]
        server.say(8, "is back")
        assert texts(await server.replies(8, 1)) == ["You said: is back"]


@alone
async def test_a_long_reply_is_split(server, tmp_path):
    long = "word " * 1700

    class Talkative(Echo):
        async def reply(self, *args, **settings):
            yield long

    async with running(server, tmp_path, Talkative()):
        server.say(7, "/feedback on")
        server.say(7, "talk")
        parts = (await server.replies(7, 4))[1:]
    assert " ".join(texts(parts)) == long.strip()
    assert ["reply_markup" in part for part in parts] == [False, False, True]


@given(st.text(max_size=60), st.integers(5, 20))
def test_split_keeps_every_word(text, most):
    parts = split(text, most)
    assert all(0 < len(part.encode("utf-16-le")) <= 2 * most for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_split_cuts_where_sentences_end():
    assert split("One two. Three four five", 14) == ["One two.", "Three four", "five"]
    assert split("😀" * 5, 4) == ["😀😀", "😀😀", "😀"]
    assert split("  ") == []


def test_messages_are_plain_text_without_previews():
    (send,) = say(7, "<b>*see* https://example.org</b>", reply_to=3)
    body = json.loads(send.model_dump_json(exclude_unset=True))
    assert body == {
        "chat_id": 7,
        "text": "<b>*see* https://example.org</b>",
        "link_preview_options": {"is_disabled": True},
        "reply_parameters": {"message_id": 3, "allow_sending_without_reply": True},
    }


def test_foreign_scripts():
    assert is_foreign("Привет!") and is_foreign("こんにちは") and is_foreign("مرحبا hi")
    assert not any(map(is_foreign, ("Zażółć gęślą jaźń", "👍", "42", "?!", "hello, мир")))


# Feedback.


@alone
async def test_thumbs_only_for_those_who_want_them(server, tmp_path):
    path = tmp_path / "feedback.jsonl"
    async with running(server, tmp_path, most=100):
        server.say(7, "hello")
        assert "reply_markup" not in (await server.replies(7, 1))[0]
        server.say(7, "/feedback on")
        server.say(7, "/profile keeps bees")
        server.say(7, "I give up")  # care: no thumbs
        server.say(7, "/reset")
        server.say(7, "a fine day")
        replies = await server.replies(7, 6)
        assert "reply_markup" not in replies[3]
        server.press(7, replies[5], "👍")
        await server.until(lambda: len(server.asked("answerCallbackQuery")) == 1)
        await server.until(lambda: "reply_markup" not in server.to(7)[5])
        server.say(7, "/feedback off")
        server.press(7, replies[4], "👎")  # too late: off
        await server.until(lambda: len(server.asked("answerCallbackQuery")) == 2)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["kind"] for row in rows] == ["continued", "thumb_up"]
        assert rows[0]["response"] == OPENER and rows[0]["reply_words"] == 3 and rows[0]["reply_seconds"] >= 0
        assert rows[1]["context"] == [OPENER, "a fine day"] and rows[1]["response"] == "You said: a fine day"
        assert all(row["surface"] == "telegram" and row["profile"] == ["keeps bees"] for row in rows)
        assert not any(row["who"] == "7" for row in rows)
        server.say(7, "/delete")
        server.press(7, (await server.replies(7, 8))[7], "Delete everything")
        await server.replies(7, 9)
        assert not path.read_text()


# Crashes. The bot is a process of its own here.


BOT = """
import asyncio, os, sys, types
# Echo needs neither: the process starts in a second.
sys.modules["chat.engine"] = types.SimpleNamespace(Engine=None, TooLong=ValueError)
sys.modules["chat.friend"] = types.SimpleNamespace(Friend=None, load_friend=None)
from chat.store import Store
from chat.telegram import Settings, serve, start_log
from tests.test_telegram import Echo, until_there
settings = Settings.read(os.environ)
start_log(settings.token)
with Store(settings.database) as store:
    asyncio.run(serve(settings, Echo(lambda: until_there(os.environ["WAITS_FOR"])), store))
"""


async def until_there(path: str | Path, text: str = "") -> None:
    """Waits for a file, and a text in it."""
    async with asyncio.timeout(30):
        while not Path(path).exists() or text not in Path(path).read_text():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def process(server: FakeTelegram, tmp_path: Path, waits_for: str | Path = os.devnull):
    """The bot as a process that replies once a file is there; killed at the end where it still runs."""
    environ = {
        **os.environ,
        "TG_BOT_TOKEN": TOKEN,
        "TG_API_BASE": server.base,
        "TG_DATABASE": str(tmp_path / "t.sqlite"),
    }
    environ |= {
        "WAITS_FOR": str(waits_for),
        "TG_MESSAGES_PER_MINUTE": "100",
        "FEEDBACK_FILE": str(tmp_path / "feedback.jsonl"),
    }
    log = open(tmp_path / "log", "ab")  # noqa: SIM115 (the process has it)
    bot = await asyncio.create_subprocess_exec(sys.executable, "-c", BOT, cwd=ROOT, env=environ, stdout=log, stderr=log)
    try:
        yield bot
    finally:
        log.close()
        with suppress(ProcessLookupError):
            bot.kill()
        await bot.wait()


@alone
async def test_sigterm_loses_no_reply(server, tmp_path):
    async with process(server, tmp_path, waits_for=tmp_path / "go") as bot:
        server.say(7, "under way")
        server.say(7, "waits")
        await server.until(lambda: server.asked("sendChatAction"), 100)
        bot.send_signal(signal.SIGTERM)
        await until_there(tmp_path / "log", "stopping: 1 people")
        (tmp_path / "go").touch()
        assert await asyncio.wait_for(bot.wait(), 30) == 0
        assert texts(server.to(7)) == ["You said: under way"]
    async with process(server, tmp_path):
        assert texts(await server.replies(7, 2, 100)) == ["You said: under way", "You said: waits"]
        server.say(7, "now")
        assert texts(await server.replies(7, 3)) == ["You said: under way", "You said: waits", "You said: now"]
    assert TOKEN.split(":")[1] not in (tmp_path / "log").read_text()


@alone
async def test_sigkill_repeats_no_more_than_what_was_being_sent(server, tmp_path):
    async with process(server, tmp_path) as bot:
        server.say(7, "answered")
        await server.replies(7, 1, 100)
        server.slow("sendMessage", 5)  # taken, and the acknowledgement on its way
        server.say(7, "in flight")
        server.say(7, "waits")
        await server.replies(7, 2)
        bot.kill()
        await bot.wait()
    server.slow("sendMessage", 0)
    # As if the last getUpdates had confirmed nothing: all of them come again.
    async with process(server, tmp_path):
        await server.replies(7, 4, 100)
        await asyncio.sleep(0.2)
    said = texts(server.to(7))
    assert said == [f"You said: {text}" for text in ("answered", "in flight", "in flight", "waits")]


def test_every_instant_of_a_crash(tmp_path):
    """Whatever step the process dies before, what is on disk leads to one answer, repeated only if it was being sent."""
    update = (1000, 7, json.dumps({"update_id": 1000}))
    for dies_before in ("receive", "next_update", "finish", "send", "sent", "never"):
        path, sent = tmp_path / f"{dies_before}.sqlite", []
        with suppress(KeyboardInterrupt):
            step(path, update, sent, dies_before)
        step(path, update, sent, "never")  # after the restart Telegram gives the update again
        assert sent == ["hello"] * (2 if dies_before == "sent" else 1), dies_before
        with Store(path) as store:
            assert not store.unfinished() and not store.next_update(7)


def step(path: Path, update: tuple, sent: list, dies_before: str) -> None:
    """What the bot does for one update, in its order."""

    def at(name):
        if name == dies_before:
            raise KeyboardInterrupt

    with Store(path) as store:
        at("receive")
        store.receive([update])
        at("next_update")
        if waiting := store.next_update(7):
            at("finish")
            store.finish(waiting.id, 7, [("sendMessage", "hello")], lambda: None)
        while row := store.next_send(7):
            at("send")
            sent.append(row[2])
            at("sent")
            store.sent(row[0])


def test_an_answer_is_written_whole_or_not_at_all(tmp_path):
    with Store(tmp_path / "t.sqlite") as store:
        store.receive([(1, 7, "{}")])

        def write():
            store.forget_talk(7)
            raise OSError("disk full")

        with pytest.raises(OSError):
            store.finish(1, 7, [("sendMessage", "hello")], write)
        assert store.next_send(7) is None and store.next_update(7).tries == 1


@alone
async def test_a_message_that_kills_the_process_is_given_up(server, tmp_path):
    with Store(tmp_path / "t.sqlite") as store:
        server.say(7, "poison")
        store.receive([(u["update_id"], 7, json.dumps(u)) for u in server.updates])
        for _ in range(telegram.TRIES):
            store.next_update(7)
    async with running(server, tmp_path) as friend:
        server.say(7, "food")
        assert texts(await server.replies(7, 2)) == [telegram.SORRY, "You said: food"]
    assert len(friend.heard) == 1


def test_one_bot_for_each_file(tmp_path):
    told = rf"t\.sqlite is in use by another bot \(process {os.getpid()}\): stop"
    with Store(tmp_path / "t.sqlite"), pytest.raises(InUse, match=told):
        Store(tmp_path / "t.sqlite")
    Store(tmp_path / "t.sqlite").__exit__()
    assert (tmp_path / "t.sqlite").stat().st_mode & 0o077 == 0


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("no database at all, and longer than a header " * 40)
    with pytest.raises(ValueError, match="is no database"):
        Store(tmp_path / "text")
    db = sqlite3.connect(tmp_path / "other")
    db.execute("CREATE TABLE mine (x)")
    db.close()
    with pytest.raises(ValueError, match="another program"):
        Store(tmp_path / "other")


def test_only_the_last_turns_are_kept(tmp_path):
    with Store(tmp_path / "t.sqlite") as store:
        for i in range(150):
            turns = [telegram.Turn("user", f"{i}", i, "said", 0.0), telegram.Turn("assistant", f"{i}", i, "model", 0.0)]
            store.add_turns(7, turns)
        kept = store.turns(7)
        assert len(kept) == 200 and kept[0].text == "50" and kept[-1].text == "149"


# Settings and the log.


def test_settings():
    assert Settings.read({"TG_BOT_TOKEN": "1:a"}) == Settings("1:a")
    full = Settings.read(
        {
            "TG_BOT_TOKEN": TOKEN,
            "MODEL": "runs/tiny/ppo-s1",
            "TG_ALLOWED_USERS": "12, 34 56",
            "TG_MESSAGES_PER_MINUTE": "5",
            "TG_API_BASE": "http://bot-api:8081",
        }
    )
    assert (full.model, full.allowed, full.most) == ("runs/tiny/ppo-s1", frozenset({12, 34, 56}), 5)
    assert TOKEN.split(":")[1] not in repr(full)


@pytest.mark.parametrize(
    ("environ", "error"),
    [
        ({}, "TG_BOT_TOKEN is not set: get a token"),
        ({"TG_BOT_TOKEN": "AAfake-Token"}, "TG_BOT_TOKEN is malformed"),
        ({"TG_BOT_TOKEN": "12:AA/../fake-Token"}, "TG_BOT_TOKEN is malformed"),
        ({"TG_BOT_TOKEN": TOKEN, "TG_ALLOWED_USERS": "12,@ann"}, "TG_ALLOWED_USERS: '@ann' is no user's number"),
        ({"TG_BOT_TOKEN": TOKEN, "TG_MESSAGES_PER_MINUTE": "0"}, "TG_MESSAGES_PER_MINUTE is '0'"),
        ({"TG_BOT_TOKEN": TOKEN, "TG_API_BASE": "bot-api:8081"}, "TG_API_BASE is 'bot-api:8081'"),
    ],
)
def test_bad_settings(environ, error):
    with pytest.raises(ValueError, match=re.escape(error)) as caught:
        Settings.read(environ)
    assert "fake-Token" not in str(caught.value)


class Lines(logging.Handler):
    """The log as the bot writes it."""

    def __init__(self):
        super().__init__()
        self.text = ""
        self.setFormatter(telegram.Discreet(TOKEN))

    def emit(self, record):
        self.text += self.format(record) + "\n"


def test_the_token_is_in_no_log_line():
    secret = TOKEN.split(":")[1]
    lines = Lines()
    logger = logging.getLogger("test-of-the-log")
    logger.addHandler(lines)
    logger.propagate = False
    try:
        raise RuntimeError(f"https://api.telegram.org/bot{TOKEN}/getMe")
    except RuntimeError:
        logger.exception("POST %s", f"/bot{TOKEN.replace(':', '%3A')}/x")
    logger.error("%s", secret)
    assert secret not in lines.text and lines.text.count("<token>") == 3 and "4242" not in lines.text


@alone
async def test_a_token_that_telegram_refuses(server, tmp_path):
    server.token = "1:another"
    async with bot_of(server, tmp_path, Echo()) as bot:
        with pytest.raises(telegram.Refused, match="does not know TG_BOT_TOKEN") as caught:
            await bot.run(asyncio.Event())  # which nobody sets
    assert TOKEN not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("environ", [{}, {"TG_BOT_TOKEN": "12"}, {"TG_BOT_TOKEN": TOKEN, "MODEL": "runs/none"}])
def test_the_command_says_what_is_wrong(environ, tmp_path):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TG_")}
    clean |= {"TG_DATABASE": str(tmp_path / "t.sqlite"), **environ}
    done = subprocess.run([sys.executable, "telegram_bot.py"], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and TOKEN not in done.stderr
    assert "TG_BOT_TOKEN" in done.stderr or "runs/none" in done.stderr


# The real friend.


@alone
async def test_the_real_friend(server, tmp_path):
    with Engine(["friend-sft"]) as engine:
        async with running(server, tmp_path, load_friend(engine), model="friend-sft"):
            server.say(7, "/profile keeps bees")
            server.say(7, "/start")
            server.say(7, "My dog died yesterday.")
            server.say(7, "Are you a real person?")
            server.say(7, "I want to kill myself")
            server.say(7, "/mood")
            said = texts(await server.replies(7, 7, 200))
    assert all(len(text) > 5 for text in said)
    assert "program" in said[4] and "emergency" in said[5] and "comfort" in said[6]
