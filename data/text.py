"""Cleaning of utterances: tokenised punctuation, quotes and white space back to natural writing."""

import re

_QUOTES = str.maketrans({"’": "'", "‘": "'", "´": "'", "`": "'", "“": '"', "”": '"', "–": "-", "—": "-", "\u00a0": " "})
_CLITIC = re.compile(r"\b([A-Za-z]+) ?' (s|t|m|re|ve|ll|d)\b", re.IGNORECASE)


def normalise(text: str) -> str:
    """Straight quotes, plain dashes, single spaces."""
    return re.sub(r"\s+", " ", text.translate(_QUOTES)).strip()


def detokenise(text: str) -> str:
    """Undoes DailyDialog's tokenisation: "Say , Jim , I don ' t know .Here" -> "Say, Jim, I don't know. Here"."""
    text = normalise(text)
    text = _CLITIC.sub(r"\1'\2", text)  # don ' t, I ' m
    text = re.sub(r"\b([A-Za-z]+) '(s|t|m|re|ve|ll|d)\b", r"\1'\2", text)
    text = re.sub(r"\s+([.,!?;:%)\]])", r"\1", text)
    text = re.sub(r"([(\[$£#])\s+", r"\1", text)
    text = re.sub(r"\b(o) ?' ?(clock)\b|\b(ma) ?' ?(am)\b", r"\1\3'\2\4", text, flags=re.IGNORECASE)
    text = re.sub(r"(^|\s)' ([^']*?) ?'(?!\w)", r"\1'\2'", text)  # say ' hello ' to
    text = re.sub(r"(?<=s) '(?= [A-Za-z])", "'", text)  # the dogs ' owner
    text = re.sub(r"\b([A-Za-z])\. (?=[A-Za-z]\.)", r"\1.", text)  # U. S., a. m.
    # "here.Can" -> "here. Can"; leaves U.S. and 3.5
    text = re.sub(r"([?!])(?=[A-Za-z])|([.,;])(?=[A-Z][a-z' ])", r"\1\2 ", text)
    text = re.sub(r"(\d)\s*:\s+(\d\d)\b", r"\1:\2", text)
    text = re.sub(r"\.\s+\.(?:\s+\.)*", lambda m: m.group().replace(" ", ""), text)  # ". . ." -> "..."
    text = re.sub(r'"\s*([^"]*?)\s*"', r'"\1"', text)
    return re.sub(r"\s+", " ", text).strip()


def from_empathetic(text: str) -> str:
    """EmpatheticDialogues writes `_comma_` for a comma, often without the space after it."""
    text = re.sub(r"(?<=\d)_comma_(?=\d{3}\b)", ",", text)  # 1_comma_000
    return normalise(re.sub(r"\s*_comma_\s*", ", ", text))
