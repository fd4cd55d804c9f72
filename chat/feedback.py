"""Writes what people did as rows of feedback (data/feedback.py says which), and shows a file of them.

    make feedback-report FEEDBACK=feedback.jsonl      # python -m chat.feedback report feedback.jsonl

Opt-in: nothing is written unless the surface was given a file, and in Telegram unless the person asked for it too. A
person stands in a row as a salted hash. The salt is FEEDBACK_SALT or made at the first row in <file>.salt, which only its
owner can read: without it nobody can find out whose rows are whose, and `forget` could not find them.
"""

import argparse
import fcntl
import hashlib
import hmac
import json
import math
import os
import secrets
import statistics
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data.feedback import KINDS, check, load, pairs
from data.source import write_whole

_OPTIONAL = ("instead", "reply_seconds", "reply_words")


class Feedback:
    """A file of feedback. Several processes may write to it at once."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.salt = _salt(self.path.with_name(self.path.name + ".salt"))

    def add(self, row: dict, person: str) -> dict:
        """Appends a row and returns it. `who` comes from `person`, whatever names them on that surface; `time` is now;
        instead, reply_seconds and reply_words may be left out. Raises ValueError naming a wrong key.

        One write to a file opened for appending, on the disk when this returns: a row is there whole or not at all, and
        what a crash once left half-written spoils no row after it.
        """
        time = datetime.now(UTC).isoformat(timespec="seconds")
        row = check({**dict.fromkeys(_OPTIONAL), **row, "who": self.who(person), "time": time})
        with self._locked(os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
            size = os.fstat(file).st_size
            half = size and os.pread(file, 1, size - 1) != b"\n"
            os.write(file, b"\n" * bool(half) + json.dumps(row).encode() + b"\n")
            os.fsync(file)
        return row

    def forget(self, person: str) -> int:
        """Takes all rows of a person out of the file, and says how many there were."""
        if not self.path.exists():
            return 0
        mark = json.dumps({"who": self.who(person)})[1:-1].encode()
        with self._locked(os.O_RDWR) as file:
            lines = self.path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if mark not in line]
            if len(kept) < len(lines):
                write_whole(self.path, b"".join(kept).decode(errors="replace"))
                self.path.chmod(0o600)
            os.fsync(file)
        return len(lines) - len(kept)

    def who(self, person: str) -> str:
        """16 hexadecimal figures that only the salt can connect with the person (HMAC-SHA256)."""
        return hmac.new(self.salt, person.encode(), hashlib.sha256).hexdigest()[:16]

    @contextmanager
    def _locked(self, flags: int):
        """The open file, no other writer in it. `forget` renames: whoever waited for the old file opens the new one."""
        while True:
            file = os.open(self.path, flags, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if self.path.exists() and os.path.samestat(os.fstat(file), self.path.stat()):
                    yield file
                    return
            finally:
                os.close(file)


def _salt(path: Path) -> bytes:
    """FEEDBACK_SALT, else what stands in the file, which is made, readable by its owner alone, where there is none."""
    if salt := os.environ.get("FEEDBACK_SALT"):
        return salt.encode()
    made = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    if not path.exists():
        with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(secrets.token_hex(32).encode())
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(made, path)  # fails where another process was first: then its salt counts
        except FileExistsError:
            pass
        finally:
            made.unlink()
    if not (salt := path.read_bytes().strip()):
        raise ValueError(f"{path} is empty: put the salt back, or remove it and live with new hashes")
    return salt


def report(path: str | Path, console: Console) -> None:
    """Two tables on the console: rows by kind, and each model on each surface with its rate of thumbs up."""
    rows = load(path)
    kinds = Counter(row["kind"] for row in rows)
    people = len({row["who"] for row in rows})
    first, last = min(row["time"] for row in rows)[:10], max(row["time"] for row in rows)[:10]
    console.print(
        f"{path}: {len(rows)} rows of {people} {'person' if people == 1 else 'people'}, {first} to {last}; "
        f"{len(pairs(rows))} pairs of a preferred and a rejected reply to the same"
    )
    table = Table("model", "surface", *(kind.replace("_", " ") for kind in KINDS), "thumbs up, of all thumbs", "reply")
    for column in table.columns[2:]:
        column.justify = "right"
    places = sorted({(row["model"], row["surface"]) for row in rows})
    for model, surface in [*places, *([("all", "")] if len(places) > 1 else [])]:
        here = (
            rows
            if model == "all" and not surface
            else [r for r in rows if (r["model"], r["surface"]) == (model, surface)]
        )
        kinds = Counter(row["kind"] for row in here)
        counts = [str(kinds[kind]) for kind in KINDS]
        table.add_row(model, surface, *counts, rate(kinds["thumb_up"], kinds["thumb_down"]), _replies(here))
    console.print(table)


def rate(up: int, down: int) -> str:
    """ "0.75 [0.41, 0.93]": the share of thumbs up and its 95 % interval (Wilson 1927), "-" without any thumb."""
    if not (n := up + down):
        return "-"
    low, high = wilson(up, n)
    return f"{up / n:.2f} [{low:.2f}, {high:.2f}]"


def wilson(k: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval of a share of k in n, at 95 %."""
    middle = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def _replies(rows: list[dict]) -> str:
    """Median time and length of what people answered: "12 s, 7 words"."""
    seconds = [row["reply_seconds"] for row in rows if row["reply_seconds"] is not None]
    words = [row["reply_words"] for row in rows if row["reply_words"] is not None]
    parts = [f"{statistics.median(seconds):.0f} s"] if seconds else []
    parts += [f"{statistics.median(words):.0f} words"] if words else []
    return ", ".join(parts) or "-"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Shows a file of feedback.")
    parser.add_argument("command", choices=["report"])
    parser.add_argument("file")
    arguments = parser.parse_args(argv)
    report(arguments.file, Console())


if __name__ == "__main__":
    main()
