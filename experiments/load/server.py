"""The server under load, on loopback: a process of `python -m chat.server`, and clients in this one.

    startup_s               from the start of the process to its first answer
    first_token_ms          of one stream alone, from request to first piece: median and 95th percentile
    opener_25_tokens_s      25 tokens of one stream alone (temperature 2, at which few end earlier): median
    eight_scored_s          POST /openers with n=8: median
    tokens_per_s_1, _32     one client that asks again and again, and 32 such clients; batching_gain is their ratio
    first_token_ms_32       of those 32: median and 95th percentile
    memory_mb_100, _1100    resident memory of the server after 100 chats and after 1,000 more, two messages each
    growth_mb               the difference
    failed                  requests that were not answered as they should be

Conversations are the first turns of the sample's validation dialogues, so prompts and moods differ. The clients share the
cores with the server. Prints, last, one line of JSON with these figures. About two minutes on two cores.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median, quantiles

import httpx
from tqdm import tqdm

from data import sample

RUN, SECONDS, STREAMS, CHATS = "friend-ppo", 20.0, 32, 1000
SMALLEST = {"seconds": 1.0, "streams": 4, "chats": 4}
GOALS = {
    "startup_s": ("<=", 10),
    "first_token_ms": ("<=", 150),
    "opener_25_tokens_s": ("<=", 0.5),
    "eight_scored_s": ("<=", 1),
    "batching_gain": (">=", 4),
    "failed": ("<=", 0),
}


def bench(run: str = RUN, seconds: float = SECONDS, streams: int = STREAMS, chats: int = CHATS) -> dict:
    """The figures of a server of `run`; `seconds` are those of each of the two loads."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "chat.server", "--run", run, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = next((line.split()[1] for line in process.stdout if line.startswith("Open ")), None)
        if address is None:
            raise RuntimeError(f"the server of {run} ended early: its error stands above")
        httpx.get(f"{address}/health").raise_for_status()
        figures = {"startup_s": time.perf_counter() - start}
        figures |= asyncio.run(measured(address, run, seconds, streams, chats, process.pid))
    finally:
        process.terminate()
        process.wait(20)
    figures = {key: float(f"{value:.4g}") for key, value in figures.items()}
    show(figures)
    return figures


async def measured(address: str, run: str, seconds: float, streams: int, chats: int, pid: int) -> dict:
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        talk = Talk(client, run)
        await talk.loop(1, number=5)  # warms up
        alone = await talk.loop(1, number=20)
        hot = [await talk.say(i, max_tokens=25, temperature=2) for i in range(15)]
        opened = [await timed(talk.open) for _ in range(5)]
        one = await talk.loop(1, seconds=seconds)
        many = await talk.loop(streams, seconds=seconds)
        await talk.loop(8, number=min(100, chats), turns=2)
        before = memory_mb(pid)
        await talk.loop(8, number=chats, turns=2)
        after = memory_mb(pid)
    return {
        "first_token_ms": 1e3 * median(alone.first_s),
        "first_token_ms_p95": 1e3 * p95(alone.first_s),
        "opener_25_tokens_s": median(s.seconds for s in hot if s.tokens == 25),
        "eight_scored_s": median(opened),
        "tokens_per_s_1": one.tokens_per_s,
        f"tokens_per_s_{streams}": many.tokens_per_s,
        "batching_gain": many.tokens_per_s / one.tokens_per_s,
        f"first_token_ms_{streams}": 1e3 * median(many.first_s),
        f"first_token_ms_{streams}_p95": 1e3 * p95(many.first_s),
        "memory_mb_100": before,
        f"memory_mb_{chats + 100}": after,
        "growth_mb": after - before,
        "failed": talk.failed,
    }


class Spoken:
    """One answer: seconds to the first piece and to the end, tokens by the server's own count."""

    def __init__(self, first_s: float, seconds: float, tokens: int):
        self.first_s, self.seconds, self.tokens = first_s, seconds, tokens


class Loaded:
    """What came of a load."""

    def __init__(self, answers: list[Spoken], seconds: float):
        self.first_s = [answer.first_s for answer in answers]
        self.tokens_per_s = sum(answer.tokens for answer in answers) / seconds


class Talk:
    """Clients of one server."""

    def __init__(self, client: httpx.AsyncClient, model: str):
        self.client, self.model, self.failed = client, model, 0
        dialogues = [d for d in sample.load("validation") if len(d.turns) > 2]
        roles = {"person": "user", "friend": "assistant"}
        self.chats = [
            [{"role": roles[turn.speaker], "content": turn.text} for turn in dialogue.turns[: 1 + i % 3]]
            for i, dialogue in enumerate(dialogues)
        ]

    async def loop(
        self, clients: int, seconds: float | None = None, number: int | None = None, turns: int = 1
    ) -> Loaded:
        """Clients that ask one after the other, for so many seconds or until so many chats are done."""
        start = time.perf_counter()
        answers: list[Spoken] = []
        todo = iter(tqdm(range(number), leave=False) if number else iter(int, 1))

        async def one(place: int) -> None:
            for i in todo:
                if seconds and time.perf_counter() > start + seconds:
                    return
                for turn in range(turns):
                    answers.append(await self.say(place + 7 * (i + len(answers)) + turn))

        await asyncio.gather(*(one(place) for place in range(clients)))
        return Loaded([answer for answer in answers if answer.tokens], time.perf_counter() - start)

    async def say(self, i: int, **settings) -> Spoken:
        """One streamed answer to conversation i."""
        asked = {"model": self.model, "messages": self.chats[i % len(self.chats)], "seed": i, "stream": True}
        asked |= {"stream_options": {"include_usage": True}, "profile": ["lives in Norwich"], **settings}
        start, first_s, tokens = time.perf_counter(), None, 0
        async with self.client.stream("POST", "/v1/chat/completions", json=asked) as answer:
            async for line in answer.aiter_lines():
                if first_s is None and '"delta": {"content"' in line:
                    first_s = time.perf_counter() - start
                elif '"usage"' in line:
                    tokens = json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
            self.failed += not (answer.status_code == 200 and line == "")
        return Spoken(first_s or 0.0, time.perf_counter() - start, tokens)

    async def open(self) -> None:
        asked = {"model": self.model, "profile": ["keeps bees", "works as a joiner"], "n": 8}
        answer = await self.client.post("/openers", json=asked)
        self.failed += not (answer.status_code == 200 and len(answer.json()["openers"]) == 8)


async def timed(work: Callable[[], Awaitable]) -> float:
    """Seconds."""
    start = time.perf_counter()
    await work()
    return time.perf_counter() - start


def p95(values: list[float]) -> float:
    return quantiles(values, n=20)[-1] if len(values) > 1 else values[0]


def memory_mb(pid: int) -> float:
    """Resident memory of a process now, in MB (Linux)."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))


def show(figures: dict) -> None:
    print()
    for key, value in figures.items():
        sign, goal = GOALS.get(key, ("", ""))
        is_met = not sign or (value <= goal if sign == "<=" else value >= goal)
        print(f"  {key:28} {value:>10}  {sign:2} {goal:<5}{'' if is_met else 'MISSED'}")
