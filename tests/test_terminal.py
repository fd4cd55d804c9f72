"""chat/terminal.py: in a pipe, on a terminal of its own (a pty), and its commands, on
an engine that answers at once; the pty talks to friend-ppo."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from chat import terminal
from chat.care import ANSWERS, HONESTY
from chat.engine import Stream
from chat.friend import Friend
from chat.terminal import Terminal, TerminalConfig
from data.dialogue import from_json
from data.feedback import load
from models.mood import load_moods
from tests.test_friend import Asked, told

ROOT = Path(__file__).parent.parent


@pytest.fixture
def friend():
    return Friend(Asked(), load_moods(told))


@pytest.fixture
def talk(friend, monkeypatch):
    """Lines in, what the terminal prints out; as in a pipe."""

    def play(*lines, **settings):
        shown = io.StringIO()
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        config = TerminalConfig(**{"models": ["a", "b"], "seed": 1, **settings})
        Terminal(friend, config, Console(file=shown, soft_wrap=True, highlight=False)).run()
        return shown.getvalue()

    return play


def test_the_friend_opens_and_answers_in_plain_text(talk):
    said = talk("Hi there!", "are you a bot?", "I want to die")
    assert said.count("friend: ") == 4 and "\x1b" not in said
    assert said.splitlines()[1].startswith("friend: ") and "you: Hi there!" in said
    assert f"friend: {HONESTY}" in said and f"friend: {ANSWERS['self-harm']}" in said


def test_a_seed_gives_each_reply_another_and_the_same_again(talk, friend):
    talk("Hi", "Ho", candidates=2)
    seeds = [ask.seed for ask in friend.engine.asks]
    talk("Hi", "Ho", candidates=2)
    assert len(set(seeds)) == 4 and seeds == [ask.seed for ask in friend.engine.asks[4:]]


def test_an_opener_of_no_words_is_no_turn(talk, friend, monkeypatch):
    monkeypatch.setattr(friend, "open", lambda *_: [{"opener": ""}])
    assert "(said nothing)" in talk("/score") and "There is no reply yet" in talk("/score")


def test_commands(talk, tmp_path):
    path = tmp_path / "chat.jsonl"
    said = talk(
        "/score", "I am sad", "/mood",
        "/mood off", "/profile keeps bees; is 71", "/profile", "/model", "/model x", "/model b", "/help",
        "/nonsense", "hello", "/retry", f"/save {path}", "/up", "/quit", "never read",
    )  # fmt: skip
    for part in (
        "score ",
        "happiness",
        "comfort: negative 1.00",
        "(off)",
        "keeps bees; is 71",
        "[a]  b",
        "No x here",
        "a  [b]",
    ):
        assert part in said, part
    assert "There is no /nonsense" in said and "/retry   " in said and "Kept nowhere" in said and "never" not in said
    saved = from_json(json.loads(path.read_text()))
    assert [turn.speaker for turn in saved.turns] == ["friend", "person", "friend"] and saved.profile == (
        "keeps bees",
        "is 71",
    )


def test_what_is_done_is_kept_when_asked_for(talk, tmp_path):
    path = tmp_path / "feedback.jsonl"
    talk("/up", "hello you", "/down", "/retry", "I want to die", "/down", feedback_file=str(path))
    rows = load(path)
    assert [row["kind"] for row in rows] == ["thumb_up", "continued", "thumb_down", "retry", "continued"]
    assert rows[1]["reply_words"] == 2 and rows[0]["context"] == [] and rows[2]["context"][-1] == "hello you"


def test_a_reply_is_judged_as_what_it_was_made_by(talk, tmp_path):
    path = tmp_path / "feedback.jsonl"
    talk("/profile keeps bees", "/model b", "/up", "/profile is 71", "hello", "/down", feedback_file=str(path))
    told = [(row["kind"], row["model"], row["profile"]) for row in load(path)]
    assert told[0] == ("ended", "a", []) and told[1] == ("thumb_up", "a", ["keeps bees"])
    assert told[2] == ("ended", "a", ["keeps bees"]) and told[3:] == [
        ("continued", "b", ["is 71"]),
        ("thumb_down", "b", ["is 71"]),
        ("ended", "b", ["is 71"]),
    ]


def test_a_talk_without_a_file_leaves_nothing(talk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    talk("/up", "hello", "/retry")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_stops_a_reply_and_not_the_talk(talk, friend, monkeypatch):
    ask, stopped, pressed = friend.engine.ask, [], []

    class Paused(Stream):
        def _ready(self, wake):
            is_ready = super()._ready(wake)
            if not is_ready:  # what it said is on the screen
                # Again and again: a first one may come just before the loop falls asleep.
                signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
            return is_ready

    def slow(what):
        if len(what.messages) < 3:
            return ask(what)
        stopped.append(Paused())
        stopped[-1]._put("I was just")
        return stopped[-1]

    def press(*_):
        if not pressed:
            pressed.append(True)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(friend.engine, "ask", slow)
    old = signal.signal(signal.SIGALRM, press), signal.signal(signal.SIGINT, signal.default_int_handler)  # else a
    # background process ignores it
    try:
        said = talk("tell me", "/mood")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old[0]), signal.signal(signal.SIGINT, old[1])
    assert "friend: I was just (stopped)\n" in said and "general:" in said
    assert [stream.finish_reason for stream in stopped] == ["cancelled"]


def test_an_unknown_run_is_an_error_of_one_line():
    with pytest.raises(SystemExit, match="error: .*runs/nowhere"):
        terminal.main(TerminalConfig(models=["runs/nowhere"]))


@pytest.mark.slow
def test_on_a_terminal_ctrl_c_at_the_prompt_keeps_it_open():
    main, side = pty.openpty()
    command = [sys.executable, "-m", "chat.terminal", "--models", "friend-ppo", "--seed", "1"]
    environment = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        command, cwd=ROOT, stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's job ignores it
    )  # fmt: skip
    os.close(side)
    seen = b""

    def wait_for(mark, seconds=60):
        nonlocal seen
        end = time.monotonic() + seconds
        while mark not in seen and time.monotonic() < end:
            if select.select([main], [], [], 0.2)[0]:
                seen += os.read(main, 4096)
        assert mark in seen, seen
        seen = seen.split(mark, 1)[1]

    try:
        wait_for(b"friend: ")
        wait_for(b"you: ")
        started.send_signal(signal.SIGINT)
        wait_for(b"ends the talk")
        os.write(main, b"are you a bot?\n")
        wait_for(b"computer program")
        os.write(main, b"/quit\n")
        assert started.wait(30) == 0
    finally:
        started.kill()
        os.close(main)
