"""What the Telegram bot remembers, in one SQLite file: updates to answer, messages to send, people, their talk.

Each update is a row of `inbox` before Telegram is told that it arrived. Answering it is one transaction: the row is
emptied, the turns are added and the messages to send become rows of `outbox`, which go once Telegram has taken them. So
whatever instant the process dies at, the file says what is still to be done (chat.telegram states what follows).

The file is in WAL mode. Every commit survives the process's death; of a power cut an update alone, which Telegram will not
give again, is made sure at once (fsync), with all before it. What is deleted is overwritten (secure_delete). One process
at a time has the file: a lock on <file>.lock, which the system drops when that process ends.
Not thread-safe: the bot's event loop alone uses it, and the longest statement takes milliseconds.
"""

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

VERSION = 1
#: Telegram gives an unconfirmed update for a day; so long an answered one is known again by its number.
KEEP_NUMBERS = 2 * 86400
#: Turns kept of a conversation. The model's window holds far fewer.
KEEP_TURNS = 200

TABLES = """
CREATE TABLE inbox (  -- body and person are NULL once it is answered
    seq INTEGER PRIMARY KEY, update_id INTEGER NOT NULL UNIQUE, person INTEGER, body TEXT, tries INTEGER NOT NULL DEFAULT 0,
    arrived REAL NOT NULL
);
CREATE INDEX inbox_person ON inbox (person, seq) WHERE body IS NOT NULL;
CREATE TABLE outbox (seq INTEGER PRIMARY KEY, person INTEGER NOT NULL, method TEXT NOT NULL, body TEXT NOT NULL);
CREATE INDEX outbox_person ON outbox (person, seq);
CREATE TABLE people (
    person INTEGER PRIMARY KEY, facts TEXT NOT NULL DEFAULT '[]', use_mood INTEGER NOT NULL DEFAULT 1,
    feedback INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE turns (  -- message_id is the person's message, of the friend's turns that which they answer
    id INTEGER PRIMARY KEY, person INTEGER NOT NULL, message_id INTEGER NOT NULL, role TEXT NOT NULL, text TEXT NOT NULL,
    kind TEXT NOT NULL, time REAL NOT NULL, vote TEXT
);
CREATE INDEX turns_person ON turns (person, id);
CREATE TABLE pace (person INTEGER NOT NULL, time REAL NOT NULL);
CREATE INDEX pace_person ON pace (person, time);
"""


class InUse(RuntimeError):
    """Another process has the file."""


@dataclass(frozen=True)
class Person:
    """What a person has set. `facts` is the profile; `feedback` whether their thumbs may be kept (no, unless asked)."""

    id: int
    facts: tuple[str, ...] = ()
    use_mood: bool = True
    feedback: bool = False


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation. `role` is "user" or "assistant", `kind` "said", "model", "care" or "honesty"."""

    role: str
    text: str
    message_id: int
    kind: str
    time: float
    vote: str | None = None


@dataclass(frozen=True)
class Waiting:
    """An update to answer: Telegram's JSON, how often it was begun (this time included), how many wait behind it."""

    id: int
    body: str
    tries: int
    behind: int


class Store:
    """The open file, made where there is none. A context manager.

    Raises InUse naming the process that has it, ValueError where the file is another program's or version's.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = _locked(path)
        try:
            self.db = sqlite3.connect(path, isolation_level=None)
            self._prepare(path)
        except BaseException:
            self.lock.close()
            raise

    def _prepare(self, path: Path) -> None:
        try:
            version = self.db.execute("PRAGMA user_version").fetchone()[0]
            tables = self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} is no database of the bot ({error}): name another file") from None
        if version not in (0, VERSION) or version == 0 and tables:
            raise ValueError(f"{path} is a database of another program or version ({version}): name another file")
        path.chmod(0o600)  # people's talk: the owner's alone
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = NORMAL")
        self.db.execute("PRAGMA secure_delete = ON")
        if version == 0:
            self.db.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;")

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_) -> None:
        self.db.close()
        self.lock.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block's writes or none."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    # Updates in, messages out.

    def receive(self, updates: Iterable[tuple[int, int, str]]) -> None:
        """Writes updates (number, person, JSON) down, those with a known number left out. Durable when it returns."""
        now = time.time()
        self.db.execute("PRAGMA synchronous = FULL")
        with self.transaction():
            self.db.executemany(
                "INSERT OR IGNORE INTO inbox (update_id, person, body, arrived) VALUES (?, ?, ?, ?)",
                [(*update, now) for update in updates],
            )
            self.db.execute("DELETE FROM inbox WHERE body IS NULL AND arrived < ?", (now - KEEP_NUMBERS,))
            self.db.execute("DELETE FROM pace WHERE time < ?", (now - KEEP_NUMBERS,))
        self.db.execute("PRAGMA synchronous = NORMAL")

    def unfinished(self) -> list[int]:
        """People with an update to answer or a message to get."""
        rows = self.db.execute("SELECT person FROM inbox WHERE body IS NOT NULL UNION SELECT person FROM outbox")
        return [person for (person,) in rows]

    def next_update(self, person: int) -> Waiting | None:
        """The person's oldest update that is to be answered; this is counted as a try."""
        with self.transaction():
            row = self.db.execute(
                "UPDATE inbox SET tries = tries + 1 WHERE seq = (SELECT min(seq) FROM inbox WHERE person = ? AND body IS "
                "NOT NULL) RETURNING update_id, body, tries",
                (person,),
            ).fetchone()
            waiting = "SELECT count(*) FROM inbox WHERE person = ? AND body IS NOT NULL"
            return row and Waiting(*row, behind=self.db.execute(waiting, (person,)).fetchone()[0] - 1)

    def finish(self, update: int, person: int, sends: Sequence[tuple[str, str]], write: Callable[[], None]) -> None:
        """An update is answered: `sends` (method, JSON) go to the outbox and `write` writes what else changes, at once."""
        with self.transaction():
            write()
            self.db.execute("UPDATE inbox SET body = NULL, person = NULL WHERE update_id = ?", (update,))
            self.db.executemany(
                "INSERT INTO outbox (person, method, body) VALUES (?, ?, ?)", [(person, *send) for send in sends]
            )

    def next_send(self, person: int) -> tuple[int, str, str] | None:
        """Row, method and JSON of the person's oldest message that is to be sent."""
        return self.db.execute(
            "SELECT seq, method, body FROM outbox WHERE person = ? ORDER BY seq LIMIT 1", (person,)
        ).fetchone()

    def sent(self, seq: int) -> None:
        self.db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))

    # People and their talk.

    def person(self, person: int) -> Person:
        row = self.db.execute("SELECT facts, use_mood, feedback FROM people WHERE person = ?", (person,)).fetchone()
        return Person(person, tuple(json.loads(row[0])), bool(row[1]), bool(row[2])) if row else Person(person)

    def set_person(self, person: Person) -> None:
        self.db.execute(
            "INSERT OR REPLACE INTO people VALUES (?, ?, ?, ?)",
            (person.id, json.dumps(person.facts), person.use_mood, person.feedback),
        )

    def turns(self, person: int) -> list[Turn]:
        """The conversation so far, in order."""
        rows = self.db.execute(
            "SELECT role, text, message_id, kind, time, vote FROM turns WHERE person = ? ORDER BY id", (person,)
        )
        return [Turn(*row) for row in rows]

    def add_turns(self, person: int, turns: Iterable[Turn]) -> None:
        """Adds to the conversation; of more than KEEP_TURNS the oldest are dropped."""
        self.db.executemany(
            "INSERT INTO turns (person, role, text, message_id, kind, time, vote) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(person, turn.role, turn.text, turn.message_id, turn.kind, turn.time, turn.vote) for turn in turns],
        )
        self.db.execute(
            "DELETE FROM turns WHERE person = ? AND id <= (SELECT id FROM turns WHERE person = ? ORDER BY id DESC "
            f"LIMIT 1 OFFSET {KEEP_TURNS})",
            (person, person),
        )

    def edit_turn(self, person: int, message_id: int, text: str) -> None:
        """The person has edited a message of theirs. Nothing where it is not remembered."""
        self.db.execute(
            "UPDATE turns SET text = ? WHERE person = ? AND message_id = ? AND role = 'user'",
            (text, person, message_id),
        )

    def vote(self, person: int, message_id: int, vote: str) -> None:
        """A thumb on the friend's answer to that message."""
        self.db.execute(
            "UPDATE turns SET vote = ? WHERE person = ? AND message_id = ? AND role = 'assistant'",
            (vote, person, message_id),
        )

    def forget_talk(self, person: int) -> None:
        self.db.execute("DELETE FROM turns WHERE person = ?", (person,))

    def forget(self, person: int) -> None:
        """Everything about a person but what still waits in inbox and outbox, which goes when it is done."""
        self.forget_talk(person)
        self.db.execute("DELETE FROM people WHERE person = ?", (person,))
        self.db.execute("DELETE FROM pace WHERE person = ?", (person,))

    def scrub(self) -> None:
        """Empties the write-ahead log, where deleted text stands until then."""
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def pace(self, person: int, sent: float, most: int) -> int:
        """How many of the person's messages of the minute before `sent` count, at most `most` + 1; this one is added."""
        self.db.execute("DELETE FROM pace WHERE person = ? AND time <= ?", (person, sent - 60))
        n = self.db.execute("SELECT count(*) FROM pace WHERE person = ?", (person,)).fetchone()[0]
        if n <= most:
            self.db.execute("INSERT INTO pace VALUES (?, ?)", (person, sent))
        return n


def _locked(path: Path):
    """The open lock file. The lock is the open file's: it ends with the process, however that ends."""
    lock = open(f"{path}.lock", "a+", encoding="ascii")  # noqa: SIM115 (open as long as the store is)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip()
        lock.close()
        raise InUse(f"{path} is in use by another bot (process {owner}): stop that one or name another file") from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
