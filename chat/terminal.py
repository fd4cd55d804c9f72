"""The friend in the terminal: streams, opens the conversation, and works in a pipe too.

    make chat RUN=friend-ppo                       # python -m chat.terminal --models friend-ppo
    make chat RUN="runs/tiny/ppo-s1 friend-sft"    # several, to change between with /model
    printf 'Hi!\n/score\n' | make chat             # plain text, one line of the person's after another

Ctrl-C stops a reply, Ctrl-D or /quit ends the talk. With --feedback_file FILE (make: FEEDBACK=FILE) thumbs, retries and
whether a talk went on are kept as rows of feedback (chat/feedback.py); without it nothing is.
"""

import asyncio
import contextlib
import getpass
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from chat import care
from chat.engine import Busy, Engine, TooLong
from chat.feedback import Feedback
from chat.friend import Friend, load_friend
from data.dialogue import Dialogue, Turn, merge_runs, to_json
from data.source import write_whole

HELP = """/profile FACT; FACT   what the friend knows about you, and a new conversation; alone: show it, "none": clear it
/model NAME           go on with another model; alone: which there are
/retry                the last reply again, otherwise
/score                how the reward takes the last reply
/mood                 how your messages sound, and which instruction that chose; "on" or "off" lets it choose or not
/up /down             a thumb for the last reply, kept where --feedback_file is given
/save FILE            the conversation as a row of JSON, as data/sample has them
/new                  another conversation
/help /quit           Ctrl-C stops a reply, Ctrl-D ends the talk"""


@dataclass
class TerminalConfig:
    """Whom to talk to."""

    models: list[str] = field(
        default_factory=lambda: ["friend-ppo"], metadata={"help": "runs or shipped names on one base; the first begins"}
    )
    profile: list[str] = field(default_factory=list, metadata={"help": "facts about you, each in quotes"})
    temperature: float = 0.7
    candidates: int = field(default=4, metadata={"help": "openers to choose the best from"})
    seed: int | None = field(default=None, metadata={"help": "for the same talk again"})
    feedback_file: str | None = field(default=None, metadata={"help": "keep thumbs, retries and the like in this file"})


def main(config: TerminalConfig) -> None:
    console = Console(soft_wrap=True, highlight=False)
    logging.set_verbosity_error()  # what transformers says while loading is not for somebody who came to talk
    logging.disable_progress_bar()
    try:
        with console.status("loading ...") if console.is_terminal else contextlib.nullcontext():
            engine = Engine(config.models)
            friend = load_friend(engine)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    with engine:
        Terminal(friend, config, console).run()


class Terminal:
    """One conversation at a time. Turns are {"role", "content"}, as chat/friend.py has them."""

    def __init__(self, friend: Friend, config: TerminalConfig, console: Console):
        self.friend, self.config, self.console = friend, config, console
        self.model, self.profile = config.models[0], list(config.profile)
        self.seed, self.use_mood = config.seed, True
        self.turns: list[dict] = []
        self.feedback = Feedback(config.feedback_file) if config.feedback_file else None
        self.is_model = False  # whether the last reply is a model's own, so that feedback on it teaches
        self.said_as: dict = {}  # the model and the profile that the last reply was made with
        self.replied_at = 0.0

    def run(self) -> None:
        """Until /quit or the end of the input."""
        self.console.print(f"{self.model}, a program. /help shows what you can do.", style="dim")
        commands = {
            "profile": self.set_profile, "model": self.set_model, "retry": self.retry, "score": self.score,
            "mood": self.mood, "up": lambda _: self.thumb("thumb_up"), "down": lambda _: self.thumb("thumb_down"),
            "save": self.save, "new": lambda _: self.open(), "help": lambda _: self.console.print(HELP),
        }  # fmt: skip
        with asyncio.Runner() as self.runner:
            self.open()
            while (line := self.read()) is not None:
                name, _, rest = line.removeprefix("/").partition(" ")
                if not line:
                    continue
                if not line.startswith("/"):
                    self.hear(line)
                elif name in ("quit", "exit"):
                    break
                elif name in commands:
                    commands[name](rest.strip())
                else:
                    self.note(f"There is no /{name}. /help shows what there is.")
        self.note_feedback("ended")

    def read(self) -> str | None:
        """The next line, None at the end of the input. Ctrl-C at the prompt drops what was typed."""
        while True:
            try:
                # A pipe shows what it fed in, so that what comes out reads as a talk.
                line = input("you: " if self.console.is_terminal and sys.stdin.isatty() else "")
            except EOFError:
                return None
            except KeyboardInterrupt:
                self.note("\n(/quit or Ctrl-D ends the talk)")
                continue
            except UnicodeDecodeError:
                self.note("That was no UTF-8; say it again, please.")
                continue
            if not sys.stdin.isatty():
                self.console.print(f"you: {line}", markup=False)
            return line.strip()

    def open(self) -> None:
        """A new conversation: the friend says the best of its openers."""
        self.note_feedback("ended")
        self.turns, self.is_model = [], False
        try:
            found = self.friend.open(self.model, self.profile, None, self.config.candidates, self.next_seed())
        except KeyboardInterrupt:
            return self.note("(stopped)")
        except (TooLong, Busy) as error:
            return self.note(str(error))
        self.console.print("friend: ", style="bold cyan", end="")
        if opener := found[0]["opener"]:
            self.console.print(opener, markup=False)
            self.heard(opener, is_model=care.fixed(self.profile, honesty=False) is None)
        else:
            self.note("(said nothing)")

    def hear(self, text: str) -> None:
        """The person's message and the friend's reply to it."""
        self.note_feedback(
            "continued", reply_seconds=round(time.monotonic() - self.replied_at, 1), reply_words=len(text.split())
        )
        self.turns.append({"role": "user", "content": text})
        self.answer()

    def answer(self) -> None:
        """Streams a reply to the turns. Ctrl-C keeps what was said so far; of a reply that never began, the person's
        message stays, and /retry asks again."""
        self.is_model = False
        said: list[str] = []
        kind = self.friend.look(self.turns)["kind"]

        async def stream():
            reply = self.friend.reply(
                self.model, self.profile, self.turns, self.use_mood, self.config.temperature, self.next_seed()
            )
            async with contextlib.aclosing(reply) as pieces:
                async for piece in pieces:
                    said.append(piece)
                    self.console.print(piece, markup=False, end="")

        self.console.print("friend: ", style="bold cyan", end="")
        try:
            self.runner.run(stream())
        except KeyboardInterrupt:
            self.console.print(" (stopped)", style="dim", end="")
        except (TooLong, Busy) as error:
            self.console.print(str(error), style="red", markup=False, end="")
        self.console.print()
        if text := "".join(said).strip():
            self.heard(text, is_model=kind == "model")

    def heard(self, text: str, is_model: bool) -> None:
        self.turns.append({"role": "assistant", "content": text})
        self.is_model, self.replied_at = is_model, time.monotonic()
        self.said_as = {"model": self.model, "profile": list(self.profile)}  # both may change before it is judged

    def set_profile(self, rest: str) -> None:
        if rest:
            self.profile = [] if rest == "none" else [fact.strip() for fact in rest.split(";") if fact.strip()]
            self.open()
        else:
            self.note("; ".join(self.profile) or "The friend knows nothing about you yet: /profile keeps bees; is 71")

    def set_model(self, rest: str) -> None:
        if rest in self.friend.engine.names:
            self.model = rest
        elif rest:
            self.note(f'No {rest} here; start with RUN="{" ".join(self.config.models)} {rest}" to change to it.')
        self.note("  ".join(f"[{n}]" if n == self.model else n for n in self.friend.engine.names))

    def retry(self, _: str) -> None:
        self.note_feedback("retry")
        if self.turns and self.turns[-1]["role"] == "assistant":
            self.turns.pop()
        if self.turns:
            self.answer()
        else:
            self.is_model = False
            self.open()

    def score(self, _: str) -> None:
        if not self.turns or self.turns[-1]["role"] != "assistant":
            return self.note("There is no reply yet.")
        *before, last = (turn["content"] for turn in self.turns)
        row = {"context": before[-4:], "response": last, "profile": self.profile}
        [found] = self.friend.engine.score([row])
        if found["score"] is None:
            return self.note("No reward is loaded for these models.")
        self.console.print(f"score {found['score']:+.2f}")
        table = Table.grid(padding=(0, 1))
        for label, p in sorted(found["reactions"].items(), key=lambda item: -item[1]):
            table.add_row(label, f"{p:.2f}", "█" * round(30 * p))
        self.console.print(table)

    def mood(self, rest: str) -> None:
        if rest in ("on", "off"):
            self.use_mood = rest == "on"
        mood = self.friend.look(self.turns)["mood"]
        self.note(
            f"{mood['name']}: negative {mood['negative']:.2f}, positive {mood['positive']:.2f}"
            + ("" if self.use_mood else "; the instruction stays as it is (off)")
        )

    def thumb(self, kind: str) -> None:
        if not self.feedback:
            self.note("Kept nowhere: start with FEEDBACK=a file (--feedback_file) to keep it.")
        elif not self.is_model:
            self.note("There is no reply of the model's to judge.")
        else:
            self.note_feedback(kind)
            self.note("Kept, thank you.")

    def save(self, rest: str) -> None:
        if not self.turns:
            return self.note("Nothing has been said yet.")
        path = Path(rest or time.strftime("chat-%Y%m%d-%H%M%S.jsonl"))
        names = {"user": "person", "assistant": "friend"}
        turns = merge_runs([Turn(names[turn["role"]], turn["content"]) for turn in self.turns])
        dialogue = Dialogue(path.stem, "terminal", "train", turns, tuple(self.profile))
        try:
            write_whole(path, to_json(dialogue) + "\n")
        except OSError as error:
            return self.note(f"not saved: {error}")
        self.note(f"saved in {path}")

    def note_feedback(self, kind: str, **more) -> None:
        """A row on the last reply, if it is a model's and a file was given."""
        if self.feedback and self.is_model:
            *before, last = (turn["content"] for turn in self.turns)
            row = {"kind": kind, "surface": "terminal", **self.said_as, "context": before, "response": last, **more}
            self.feedback.add(row, getpass.getuser())

    def next_seed(self) -> int | None:
        """None, or another number for each reply, the same ones for the same --seed."""
        if self.seed is not None:
            self.seed += 1000
        return self.seed

    def note(self, text: str) -> None:
        self.console.print(text, style="dim", markup=False)


if __name__ == "__main__":
    from transformers import HfArgumentParser

    with contextlib.suppress(ImportError):  # a history and editing of the line, where there is readline
        import readline  # noqa: F401
    main(*HfArgumentParser(TerminalConfig).parse_args_into_dataclasses())
