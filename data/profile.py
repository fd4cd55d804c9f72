"""Facts about a person derived from what they say: the documented rule behind the profiles of corpora that have none.

A sentence of 4 to 14 words that begins with I, I'm, I've, My or We becomes a phrase without subject, as in the
sample's profiles: "I have two dogs." -> "has two dogs", "I'm a nurse" -> "is a nurse", "My car broke down" -> "their
car broke down". Left out are questions, sentences about the talk itself ("I think", "I agree", "I'm sure"), verbs that
the lists below do not know, and what cannot be understood alone: someone or something named before ("she", "it").
"""

import re
from dataclasses import replace

from data.dialogue import Dialogue

MIN_WORDS, MAX_WORDS = 4, 14
MIN_OPENER_WORDS = 4
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
#: What the first word after "I'm" or "I was" must not be: it is about the talk, or is clear only inside it.
_TALK = frozenset(
    "sure sorry afraid glad aware curious going gonna not surprised talking saying thinking wondering hoping "
    "guessing kidding joking asking just also always still never and or but in on".split()
)
#: Words that point at something outside the sentence, or at the partner.
_ELSEWHERE = re.compile(
    r"\b(you|your|yours|u|ya|he|him|his|she|hers?|they|them|their|theirs|it|its|it's|this|these|those|that's|there|here|too|"
    r"either|both|us|let's)\b|\b(that|one|ones|so)$",
    re.IGNORECASE,
)
#: Verbs that are taken, so that none is conjugated by guess: present ones get an s, past ones (and any -ed) stay.
_PRESENT = frozenset(
    "love like hate enjoy prefer live work play study teach run drive eat drink cook collect keep miss feel get "
    "make take use watch write plan try own travel visit train swim sing dance draw paint bake ride spend start "
    "stay sleep wake walk care worry struggle volunteer trust admire dream speak learn grow raise sell help share "
    "buy listen save practice pray cry belong plant quit lose wear dislike attend".split()
)
_PAST = frozenset(
    "had did went got came saw made took found gave lost left felt told bought met ran broke ate won kept grew "
    "wrote knew spent slept drove cut put set let hurt hadn't began caught fell fought held led paid rode sang "
    "sat sent sold stood taught threw woke wore built chose drank flew froze lent rang shot spoke stuck swam tore "
    "became brought never".split()
)
_IRREGULAR = {"am": "is", "was": "was", "were": "was", "have": "has", "do": "does", "go": "goes", "haven't": "hasn't"}
_ADVERBS = frozenset("really also still always often usually recently finally actually mostly just".split())
_PRONOUNS = [
    (r"\bI was\b", "they were"), (r"\bI am\b", "they are"), (r"\bI'm\b", "they are"), (r"\bI wasn't\b", "they weren't"),
    (r"\bmy\b", "their"), (r"\bour\b", "their"), (r"\bmine\b", "theirs"), (r"\bmyself\b", "themselves"),
    (r"\bme\b", "them"), (r"\bI've\b", "they have"), (r"\bI'd\b", "they'd"), (r"\bI'll\b", "they'll"),
    (r"\b(I|we)\b", "they"), (r"\band have\b", "and has"), (r"\band am\b", "and is"),
]  # fmt: skip


def facts_of(text: str) -> list[str]:
    """Facts in one text, in order."""
    return [fact for sentence in _SENTENCE.split(text) if (fact := _fact(sentence))]


def derive_profile(dialogue: Dialogue, most: int = 3) -> tuple[str, ...]:
    """The first `most` different facts in the person's turns; empty where there are none."""
    facts = dict.fromkeys(fact for turn in dialogue.turns if turn.speaker == "person" for fact in facts_of(turn.text))
    return tuple(facts)[:most]


def opener_readings(dialogue: Dialogue, most: int = 3) -> list[Dialogue]:
    """The dialogue as if the friend had opened it: what a corpus where the person opens teaches about openers.

    One reading for each turn of the person that holds facts and has an answer of MIN_OPENER_WORDS or more. It begins
    with that answer; the facts, at most `most`, become the profile and the turns up to them are left out. So "I lied to
    my girlfriend." - "Why did you lie to her?" teaches to open with the question when "lied to their girlfriend" is
    known.
    """
    readings = []
    for i, turn in enumerate(dialogue.turns[:-1]):
        answer = dialogue.turns[i + 1]
        if turn.speaker != "person" or len(answer.text.split()) < MIN_OPENER_WORDS:
            continue
        if facts := tuple(dict.fromkeys(facts_of(turn.text)))[:most]:
            readings.append(
                replace(dialogue, id=f"{dialogue.id}@{i + 1}", turns=dialogue.turns[i + 1 :], profile=facts)
            )
    return readings


def _fact(sentence: str) -> str | None:
    sentence = sentence.strip().rstrip(".!")
    words = sentence.split()
    if (
        not MIN_WORDS <= len(words) <= MAX_WORDS
        or sentence.endswith(("?", ",", "'", '"', "-"))
        or _ELSEWHERE.search(sentence)
    ):
        return None
    first, rest = words[0].lower(), words[1:]
    if first in ("i", "we"):
        while rest[0].lower() in _ADVERBS and len(rest) > 2:
            rest = rest[1:]
        verb = _third_person(rest[0].lower())
        if verb is None or verb in ("is", "was") and rest[1].lower() in _TALK:
            return None
        rest = [verb, *rest[1:]]
    elif first in ("i'm", "im", "we're", "i've", "ive", "we've"):
        if rest[0].lower() in _TALK:
            return None
        rest = ["has" if first.endswith("ve") else "is", *rest]
    elif first in ("my", "our"):
        rest = ["their", *rest]
    else:
        return None
    fact = " ".join(rest)
    for pattern, replacement in _PRONOUNS:
        fact = re.sub(pattern, replacement, fact, flags=re.IGNORECASE)
    return fact


def _third_person(verb: str) -> str | None:
    """The verb after "they" turned singular, or None for one that is not taken."""
    if verb in _IRREGULAR:
        return _IRREGULAR[verb]
    if verb in _PAST or re.fullmatch(r"[a-z]+[^e]ed", verb):
        return verb
    if verb not in _PRESENT:
        return None
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("s", "sh", "ch", "x")) else "s")
