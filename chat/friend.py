"""The friend that every surface talks to: care first, then honesty, then a mood, and only then the model.

    with Engine(["friend-ppo", "friend-sft"], scorer="friend-reward") as engine:
        friend = load_friend(engine)
        friend.open("friend-ppo", ["keeps bees"])[0]["opener"]
        async for piece in friend.reply("friend-ppo", ["keeps bees"], turns): ...

Turns are {"role": "user" or "assistant", "content": text}, the person's and the friend's, oldest first.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from chat import care
from chat.engine import Ask, Engine
from data.dialogue import system_text
from data.emotions import LABELS
from experiments.run import settings_of
from models.load import load_scorer
from models.mood import Moods, load_moods, reader

MAX_NEW_TOKENS = 48
#: What openers are sampled at where the model's run does not say.
OPENER_TEMPERATURE = 0.5
#: A sign of crisis among so many of the person's last messages keeps the mood at comfort.
REMEMBERED = 8


@dataclass(frozen=True)
class Reply:
    """What comes next: a fixed `text` (care, honesty), or what the model is asked for, its text still empty."""

    text: str
    kind: Literal["model", "care", "honesty"]
    mood: dict
    ask: Ask | None = None


class Friend:
    """An engine's models with a friend's manners. As thread-safe as the engine."""

    def __init__(self, engine: Engine, moods: Moods):
        self.engine, self.moods = engine, moods

    def open(
        self,
        model: str,
        profile: Sequence[str] = (),
        greeting: str | None = None,
        n: int = 1,
        seed: int | None = None,
        temperature: float | None = None,
    ) -> list[dict]:
        """n candidate openers, best first: {"opener", "score", "reactions", "ended"}. Blocks until they are there.

        Score and reactions are None where the engine has no scorer; the temperature is by default what the run sampled
        at. Of one seed come n different openers, the same ones again each time. A greeting that asks for care or
        honesty, or a fact that asks for care, gets one candidate: the fixed answer.
        """
        turns = [{"role": "user", "content": greeting}] if greeting else []
        fixed = care.fixed([greeting] if greeting else []) or care.fixed(profile, honesty=False)
        if fixed:
            return [{"opener": fixed[1], "score": None, "reactions": None, "ended": True}]
        if temperature is None:
            temperature = settings_of(model).get("temperature", OPENER_TEMPERATURE)
        messages = self._messages(self.engine.instruction(model), profile, turns)
        seeds = [None if seed is None else seed + i for i in range(n)]
        streams = [self.engine.ask(Ask(model, messages, MAX_NEW_TOKENS, temperature, s)) for s in seeds]
        openers = ["".join(stream.pieces()).strip() for stream in streams]
        rows = [{"context": [greeting] if greeting else [], "response": o, "profile": list(profile)} for o in openers]
        scored = self.engine.score(rows) or [{"score": None, "reactions": None}] * n
        found = [
            {"opener": opener, **score, "ended": stream.finish_reason == "stop"}
            for opener, score, stream in zip(openers, scored, streams, strict=True)
        ]
        return sorted(found, key=lambda c: -c["score"]) if found[0]["score"] is not None else found

    def look(self, turns: Sequence[dict]) -> dict:
        """{"kind", "mood"}: what would answer these turns, and the mood of the person's messages in them."""
        fixed, mood = self._decide(turns)
        return {"kind": fixed[0] if fixed else "model", "mood": mood}

    def prepare(
        self,
        model: str,
        profile: Sequence[str],
        turns: Sequence[dict],
        use_mood: bool = True,
        temperature: float = 0.7,
        seed: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        instruction: str | None = None,
    ) -> Reply:
        """What `reply` would say or ask, for surfaces that want more than its text. `instruction` replaces the model's
        own and the mood's; profile, care and honesty stay."""
        fixed, mood = self._decide(turns)
        if fixed:
            return Reply(fixed[1], fixed[0], mood)
        if instruction is None:
            instruction = self.engine.instruction(model)
            if use_mood:
                instruction = self.moods.instruction(mood["name"], instruction)
        ask = Ask(model, self._messages(instruction, profile, turns), max_new_tokens, temperature, seed)
        return Reply("", "model", mood, ask)

    async def reply(
        self,
        model: str,
        profile: Sequence[str],
        turns: Sequence[dict],
        use_mood: bool = True,
        temperature: float = 0.7,
        seed: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> AsyncIterator[str]:
        """Pieces of what the friend says to the turns. Whoever stops listening stops the model. Raises what
        `Engine.ask` does, before the first piece."""
        said = await asyncio.to_thread(self.prepare, model, profile, turns, use_mood, temperature, seed, max_new_tokens)
        if said.ask is None:
            yield said.text
            return
        stream = self.engine.ask(said.ask)
        try:
            async for piece in stream:
                yield piece
        finally:
            stream.cancel()  # nothing, of one that has ended

    def _decide(self, turns: Sequence[dict]) -> tuple[tuple[str, str] | None, dict]:
        """The fixed answer, if there is one, as (kind, text); and the mood."""
        said = [turn["content"] for turn in turns if turn["role"] == "user"]
        mood = self.moods.of(said)
        if any(care.crisis(text) for text in said[-REMEMBERED:]):
            mood = {**mood, "name": "comfort"}
        return care.fixed(unanswered(turns)), mood

    def _messages(self, instruction: str, profile: Sequence[str], turns: Sequence[dict]) -> list[dict]:
        system = system_text(instruction, profile)
        start = [{"role": "system", "content": system}] if system else []
        return [*start, *({"role": turn["role"], "content": turn["content"]} for turn in turns)]


def unanswered(turns: Sequence[dict]) -> list[str]:
    """The person's messages since the friend last spoke, oldest first."""
    return [turn["content"] for turn in takewhile(lambda turn: turn["role"] == "user", reversed(turns))][::-1]


def load_friend(engine: Engine) -> Friend:
    """A Friend on the engine, with the moods of models/mood.yaml as friend-reward reads them."""
    is_loaded = engine.scorer_name == "friend-reward"
    scorer = engine.scorer if is_loaded else load_scorer("friend-reward", dtype="auto")
    return Friend(engine, load_moods(reader(scorer, LABELS)))
