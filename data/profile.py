"""Facts about a person derived from what they say: the documented rule behind the profiles of corpora that have none.

A sentence of 4 to 14 words that begins with I, I'm, I've, My or We becomes a phrase without subject, as in the
sample's profiles: "I have two dogs." -> "has two dogs", "I'm a nurse" -> "is a nurse", "My car broke down" -> "their
car broke down". Questions, and sentences about the talk itself ("I think", "I agree", "I know"), are left out.
"""

import re

from data.dialogue import Dialogue

MIN_WORDS, MAX_WORDS = 4, 14
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_TALK = frozenset(
    "think know see guess agree mean hope wish bet suppose understand believe said say just do don't didn't can't am will".split()
)
_SAME = frozenset(  # verbs whose form does not change with the person: past tenses and modals
    "was were had did went got came saw made took found gave lost left felt told bought met ran broke ate won kept "
    "can could would should might must may will used never always once recently finally actually really also still "
    "heard thought read went grew wrote knew spent slept drove cut put set let hurt haven't hasn't wasn't won't couldn't".split()
)
_IRREGULAR = {"am": "is", "have": "has", "do": "does", "go": "goes", "try": "tries", "study": "studies", "be": "is"}
_PRONOUNS = [
    (r"\bmy\b", "their"), (r"\bmine\b", "theirs"), (r"\bmyself\b", "themselves"), (r"\bme\b", "them"),
    (r"\bour\b", "their"), (r"\bI'm\b", "they are"), (r"\bI've\b", "they have"), (r"\bI\b", "they"),
]  # fmt: skip


def facts_of(text: str) -> list[str]:
    """Facts in one text, in order."""
    return [fact for sentence in _SENTENCE.split(text) if (fact := _fact(sentence))]


def derive_profile(dialogue: Dialogue, most: int = 3) -> tuple[str, ...]:
    """The first `most` different facts in the person's turns; empty where there are none."""
    facts = dict.fromkeys(fact for turn in dialogue.turns if turn.speaker == "person" for fact in facts_of(turn.text))
    return tuple(facts)[:most]


def _fact(sentence: str) -> str | None:
    sentence = sentence.strip().rstrip(".!")
    words = sentence.split()
    if not MIN_WORDS <= len(words) <= MAX_WORDS or sentence.endswith(("?", ",")):
        return None
    first, second = words[0], words[1].lower().strip(",")
    if first in ("I", "i", "We", "we"):
        if second in _TALK and not (first in "Ii" and second == "am"):
            return None
        rest = " ".join([_third_person(second), *words[2:]])
    elif first.lower() in ("i'm", "im", "we're"):
        rest = " ".join(["is", *words[1:]])
    elif first.lower() in ("i've", "we've"):
        rest = " ".join(["has", *words[1:]])
    elif first.lower() in ("my", "our"):
        rest = " ".join(["their", *words[1:]])
    else:
        return None
    if re.search(r"\b(you|your|u)\b", rest, re.IGNORECASE):
        return None  # about the talk, not about the person
    for pattern, replacement in _PRONOUNS:
        rest = re.sub(pattern, replacement, rest, flags=re.IGNORECASE)
    return rest


def _third_person(verb: str) -> str:
    if verb in _IRREGULAR:
        return _IRREGULAR[verb]
    if verb in _SAME or verb.endswith(("ed", "ly")) or not verb.isalpha():
        return verb
    return verb + ("es" if verb.endswith(("s", "sh", "ch", "x", "z")) else "s")
