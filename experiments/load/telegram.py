"""The bot under load and faults: `telegram_bot.py` as a process, on a fake Bot API server on loopback, with its people here.

Each person sends bursts of one to four messages, waits for the answers, pauses a little and goes on. A third through the
bot gets SIGTERM, two thirds through SIGKILL in the middle of sending; both times it is started again. Five times a sent
message is refused with 429. A sendMessage takes 50 ms, so that there is a middle of sending.

    messages, answered      sent by people; answered by the end
    lost                    messages that no answer came to (0)
    repeated                answers that came again, word for word: at most one for each person, after the SIGKILL alone
    repeated_elsewhere      those that came at any other time (0)
    disordered              people whose answers did not come in the order of their messages (0)
    impatient               messages sent while a 429 told to wait (0)
    reply_s                 from a message to its answer, restarts included: median and 95th percentile
    calm_reply_s            the same of messages sent and answered before the first fault
    replies_per_s           before the first fault
    stop_s, start_s         from SIGTERM to the end of the process; from its start to its first poll, median of three
    memory_mb               resident, at the end

What answers what is read from the bot's database; what came, and when, is the server's word. The people share the cores
with the bot. Prints, last, one line of JSON with these figures.
"""

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from rich.console import Console
from rich.table import Table

from data import sample
from tests.fake_telegram import FakeTelegram

ROOT = Path(__file__).parent.parent.parent
RUN, PEOPLE, SECONDS = "friend-ppo", 50, 120.0
SMALLEST = {"people": 3, "seconds": 9.0}
GOALS = {"lost": 0, "repeated_elsewhere": 0, "disordered": 0, "impatient": 0}
PATIENCE = 300.0  # seconds that people wait for the last answers


def bench(run: str = RUN, people: int = PEOPLE, seconds: float = SECONDS) -> dict:
    """The figures of a bot that talks as `run`. Raises RuntimeError with the bot's log where it ends unasked."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the finally blocks: no bot is left behind
    with tempfile.TemporaryDirectory() as directory:
        figures = asyncio.run(measured(Path(directory), run, people, seconds))
    figures = {key: float(f"{value:.4g}") for key, value in figures.items()}
    show(figures, people, seconds)
    return figures


async def measured(directory: Path, run: str, people: int, seconds: float) -> dict:
    async with FakeTelegram() as server:
        server.slow("sendMessage", 0.05)
        bot = Bot(server, directory, run)
        starts, said, end = [await bot.start()], {person: [] for person in range(1, people + 1)}, asyncio.Event()
        crowd = [asyncio.create_task(chatter(server, person, said[person], end)) for person in said]
        began = time.monotonic()
        try:
            for _ in range(5):
                await asyncio.sleep(seconds / 15)
                server.refuse("sendMessage", 429, retry_after=1)
            calm = time.monotonic()
            stop_s = await bot.end(signal.SIGTERM)
            starts.append(await bot.start())
            await asyncio.sleep(seconds / 3)
            sending = len(server.sent)  # one is taken now, its acknowledgement 50 ms away
            await server.until(lambda: len(server.sent) > sending, 60)
            killed = time.monotonic()
            await bot.end(signal.SIGKILL)
            starts.append(await bot.start())
            await asyncio.sleep(max(seconds / 3, began + seconds - time.monotonic()))
            end.set()
            await asyncio.wait_for(asyncio.gather(*crowd), PATIENCE)
            await asyncio.sleep(1)  # for answers too many
            memory = bot.memory_mb()
        finally:
            end.set()
            for task in crowd:
                task.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)
            await bot.end(signal.SIGTERM)
        checked = check(server, directory / "bot.sqlite", said, killed)
        waits = checked.pop("waits")
        times = sorted(came - sent for sent, came in waits)
        calmly = sorted(came - sent for sent, came in waits if came < calm)
        return {
            **checked,
            "impatient": impatient(server),
            **spread("reply_s", times),
            **spread("calm_reply_s", calmly),
            "replies_per_s": len(calmly) / (calm - began),
            "stop_s": stop_s,
            "start_s": median(starts),
            "memory_mb": memory,
        }


class Bot:
    """The process, to be ended and started again on the same database."""

    def __init__(self, server: FakeTelegram, directory: Path, run: str):
        self.server, self.log = server, directory / "log"
        self.environ = {
            **os.environ,
            "MODEL": run,
            "TG_BOT_TOKEN": server.token,
            "TG_API_BASE": server.base,
            "TG_DATABASE": str(directory / "bot.sqlite"),
            "FEEDBACK_FILE": str(directory / "feedback.jsonl"),
            "TG_MESSAGES_PER_MINUTE": "100000",
        }

    async def start(self) -> float:
        """Seconds until it polls."""
        start, polls = time.monotonic(), len(self.server.asked("getUpdates"))
        with open(self.log, "ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "telegram_bot.py", cwd=ROOT, env=self.environ, stdout=log, stderr=log
            )
        while len(self.server.asked("getUpdates")) == polls:
            if self.process.returncode is not None:
                raise RuntimeError(f"the bot ended:\n{self.log.read_text()}")
            await asyncio.sleep(0.05)
        return time.monotonic() - start

    async def end(self, number: signal.Signals) -> float:
        """Seconds until it is gone."""
        start = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        code = await self.process.wait()
        if number == signal.SIGTERM and code != 0:
            raise RuntimeError(f"the bot ended with {code}:\n{self.log.read_text()}")
        return time.monotonic() - start

    def memory_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def chatter(server: FakeTelegram, person: int, said: list, end: asyncio.Event) -> None:
    """One person until `end`, and then until all is answered. `said` collects (message number, when)."""
    rng = random.Random(person)
    lines = [turn.text for talk in sample.load("validation") for turn in talk.turns if turn.speaker == "person"]
    lines = [line for line in lines if len(line) < 200]
    while not end.is_set():
        for _ in range(rng.randint(1, 4)):
            said.append((server.say(person, rng.choice(lines)), time.monotonic()))
            await asyncio.sleep(rng.uniform(0, 0.3))
        await server.replies(person, len(said), PATIENCE)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(end.wait(), rng.uniform(0.5, 3))


def check(server: FakeTelegram, database: Path, said: dict[int, list], killed: float) -> dict:
    """Counts, and `waits`: (sent, answered) of each answered message."""
    counts = dict.fromkeys(("messages", "answered", "lost", "repeated", "repeated_elsewhere", "disordered"), 0)
    waits = []
    with contextlib.closing(sqlite3.connect(database)) as db:
        for person, messages in said.items():
            sql = "SELECT message_id, text FROM turns WHERE person = ? AND role = 'assistant' ORDER BY id"
            answers = db.execute(sql, (person,)).fetchall()
            # The database keeps the last turns alone: of a long talk its end is checked.
            came = server.to(person)[-len(answers) - 1 :] if len(answers) == 100 else server.to(person)
            messages = messages[-len(answers) :] if len(answers) == 100 else messages
            when, again = delivered([text for _, text in answers], came)
            counts["messages"] += len(messages)
            counts["answered"] += len(when)
            counts["lost"] += len(messages) - len(when)
            counts["repeated"] += len(again)
            # The same reply may have been on its way to each person once, and comes after the restart.
            counts["repeated_elsewhere"] += sum(at < killed for at in again) + max(
                0, sum(at >= killed for at in again) - 1
            )
            in_order = [number for number, _ in messages] == [number for number, _ in answers]
            counts["disordered"] += not in_order or len(when) < len(answers)
            waits += [(sent, at) for (_, sent), at in zip(messages, when, strict=False)]
    return {**counts, "waits": waits}


def delivered(answers: list[str], came: list[dict]) -> tuple[list[float], list[float]]:
    """When each answer came, as far as they came in this order, and when one that had come came again."""
    when, again = [], []
    for message in came:
        if len(when) < len(answers) and message["text"] == answers[len(when)]:
            when.append(message["at"])
        elif when and message["text"] == answers[len(when) - 1]:
            again.append(message["at"])
    return when, again


def impatient(server: FakeTelegram) -> int:
    """Messages sent while a 429 told to wait; those that were on their way to the server when it came do not count."""
    sends = [at for method, _, at in server.calls if method == "sendmessage"]
    waits = [(at + 0.1, at + error.parameters["retry_after"]) for _, error, at in server.refused if error.code == 429]
    return sum(start < at < end for at in sends for start, end in waits)


def spread(name: str, times: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {name: median(times), f"{name}_p95": quantiles(times, n=20)[-1]} if len(times) > 1 else {}


def show(figures: dict, people: int, seconds: float) -> None:
    table = Table("figure", "value", "must be", title=f"The bot, {people} people, {seconds:g} s, SIGTERM and SIGKILL")
    for name, value in figures.items():
        goal = GOALS.get(name)
        table.add_row(name, f"{value:g}", "" if goal is None else f"{goal}{'' if value == goal else ' (not so)'}")
    Console().print(table)
