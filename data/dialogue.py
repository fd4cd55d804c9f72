"""Dialogue and Turn: the one schema that every source is read into, its checks, and its chat messages.

A dialogue is between a *friend* (the model's side) and a *person* (the human's). Sources without roles are read with
the first speaker as the person; `swap` gives the other side.
"""

import json
from dataclasses import asdict, dataclass, replace

SPEAKERS = ("friend", "person")
#: DailyDialog's seven labels (Li et al. 2017, table 4); "neutral" is its "no emotion".
EMOTIONS = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise")
#: DailyDialog's dialogue acts.
ACTS = ("inform", "question", "directive", "commissive")
SPLITS = ("train", "validation", "test")

INSTRUCTIONS = {
    # The project's own: says openly what the friend is for.
    "friend": "You are a kind, curious friend. Say something they will enjoy answering.",
    # The original recipe's, word for word; kept for comparison only.
    "original": (
        "You are a kind and empathetic interlocutor. Your secret goal is to try to attract a person to you and "
        "understand his needs, using non-violent communication. You are chit-chatting to a person."
    ),
}


@dataclass(frozen=True)
class Turn:
    """One utterance. `emotion` is one of EMOTIONS or None where the source has none; `act` likewise of ACTS; `rating` is
    the partner's grade of it, 1 (poor) to 5 (excellent)."""

    speaker: str
    text: str
    emotion: str | None = None
    act: str | None = None
    rating: int | None = None


@dataclass(frozen=True)
class Dialogue:
    """Turns in order, alternating between the two speakers, and what is known about the person beforehand."""

    id: str
    source: str
    split: str
    turns: tuple[Turn, ...]
    profile: tuple[str, ...] = ()
    topic: str | None = None

    def check(self) -> "Dialogue":
        """Returns self, or raises ValueError that names the dialogue, the turn and the field."""

        def refuse(what):
            raise ValueError(f"{self.source} dialogue {self.id!r}: {what}")

        if self.split not in SPLITS:
            refuse(f"split is {self.split!r}, not one of {SPLITS}")
        if not self.turns:
            refuse("has no turns")
        for i, turn in enumerate(self.turns):
            if turn.speaker not in SPEAKERS:
                refuse(f"turn {i}: speaker is {turn.speaker!r}, not one of {SPEAKERS}")
            if not isinstance(turn.text, str) or not turn.text.strip():
                refuse(f"turn {i}: text is empty")
            if turn.emotion is not None and turn.emotion not in EMOTIONS:
                refuse(f"turn {i}: emotion is {turn.emotion!r}, not one of {EMOTIONS}")
            if turn.act is not None and turn.act not in ACTS:
                refuse(f"turn {i}: act is {turn.act!r}, not one of {ACTS}")
            if turn.rating is not None and turn.rating not in range(1, 6):
                refuse(f"turn {i}: rating is {turn.rating!r}, not 1 to 5")
            if i and turn.speaker == self.turns[i - 1].speaker:
                refuse(f"turn {i}: {turn.speaker} speaks twice in a row")
        if not all(isinstance(fact, str) and fact.strip() for fact in self.profile):
            refuse("profile holds an empty fact")
        return self


def swap(dialogue: Dialogue) -> Dialogue:
    """The same dialogue seen from the other side: friend and person exchanged, profile dropped (it is the person's)."""
    other = {"friend": "person", "person": "friend"}
    turns = tuple(replace(turn, speaker=other[turn.speaker]) for turn in dialogue.turns)
    return replace(dialogue, id=dialogue.id + "~", turns=turns, profile=())


def merge_runs(turns: list[Turn]) -> tuple[Turn, ...]:
    """Joins successive turns of one speaker; the last labelled turn's emotion, act and rating stand for the joined one."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1].speaker == turn.speaker:
            last = merged[-1]
            merged[-1] = Turn(
                turn.speaker,
                f"{last.text} {turn.text}",
                turn.emotion or last.emotion,
                turn.act or last.act,
                turn.rating or last.rating,
            )
        else:
            merged.append(turn)
    return tuple(merged)


def system_text(instruction: str, profile: tuple[str, ...] | list[str] = ()) -> str:
    """The system message: what the friend is asked to do, and what it knows about the person."""
    about = "About them: " + "; ".join(fact.rstrip(".") for fact in profile) + "." if profile else ""
    return "\n".join(part for part in (instruction, about) if part)


def scene_messages(instruction: str, profile: list[str], context: list[str]) -> list[dict[str, str]]:
    """Chat messages that ask for the friend's next turn, after a context whose last turn is the person's."""
    speakers = ("user", "assistant") if len(context) % 2 else ("assistant", "user")
    turns = [{"role": speakers[i % 2], "content": text} for i, text in enumerate(context)]
    return [{"role": "system", "content": system_text(instruction, profile)}, *turns]


def messages(dialogue: Dialogue, instruction: str, role: str = "friend") -> list[dict[str, str]]:
    """Chat messages with `role`'s turns as the assistant's: the form that chat templates and trl take.

    The simulated person (role="person") knows its own profile too, so the system message is the same for both.
    """
    if role not in SPEAKERS:
        raise ValueError(f"role is {role!r}, not one of {SPEAKERS}")
    system = system_text(instruction, dialogue.profile)
    start = [{"role": "system", "content": system}] if system else []
    return start + [
        {"role": "assistant" if turn.speaker == role else "user", "content": turn.text} for turn in dialogue.turns
    ]


def to_json(dialogue: Dialogue) -> str:
    """One line of JSON; `from_json` reads it back."""
    row = asdict(dialogue)
    row["turns"] = [{k: v for k, v in turn.items() if v is not None} for turn in row["turns"]]
    return json.dumps({k: v for k, v in row.items() if v is not None}, ensure_ascii=False)


def from_json(row: dict) -> Dialogue:
    """A checked Dialogue from a JSON object. Raises ValueError naming a missing or unknown key."""
    if not isinstance(row.get("profile", []), list):
        raise ValueError(f"dialogue {row.get('id')!r}: profile is {row['profile']!r}, not a list of facts")
    try:
        turns = tuple(Turn(**turn) for turn in row["turns"])
        return Dialogue(**{**row, "turns": turns, "profile": tuple(row.get("profile", ()))}).check()
    except KeyError as error:
        raise ValueError(f"dialogue {row.get('id')!r}: key {error} is missing") from None
    except TypeError as error:
        raise ValueError(f"dialogue {row.get('id')!r}: {error}") from None
