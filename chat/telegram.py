"""The friend in Telegram: aiogram 3, long polling, everything that must not be lost in SQLite (chat.store).

    MODEL=friend-ppo TG_BOT_TOKEN=123456:ABC... python telegram_bot.py          (or make bot)

Environment (token from @BotFather; only TG_BOT_TOKEN is needed):

    TG_BOT_TOKEN            the token; appears in no log and no error
    MODEL                   a run's directory or a shipped name (default friend-ppo)
    TG_ALLOWED_USERS        numbers of the people it talks with, "123, 456" (default: everybody)
    TG_MESSAGES_PER_MINUTE  of one person that are answered (default 20)
    TG_DATABASE             default runs/telegram.sqlite
    FEEDBACK_FILE           rows of those who said /feedback on (default runs/feedback.jsonl)
    TG_API_BASE             another Bot API server than https://api.telegram.org

**Guarantee.** Every message that Telegram delivers is answered once, in order for each person, people in parallel; after
SIGTERM too. After SIGKILL at most the one message that was under way to each person comes again, word for word, and none
is missing. So it is where Telegram took a message and its acknowledgement was lost. After a power cut none is missing
either; those answered since the last update came may come again. How:

1. An update is a committed row of `inbox` before the next getUpdates confirms it. One that Telegram gives again, since
   the process died before it confirmed, is known by its number.
2. One task for each person takes their oldest row. Its answer is one transaction: row emptied, turns added, messages to
   `outbox`. Killed before that, it is answered after the restart as if for the first time; after it, never again.
3. A row of `outbox` goes when Telegram has taken it; 429, 5xx and network errors are waited out. Killed between sending
   and that, the row is sent again: this is the one repetition.
4. SIGTERM stops the polling; what is under way has GRACE seconds to end, and what waits is answered after the restart.

Dropped on purpose: a message to somebody who has blocked the bot, or that Telegram refuses as malformed; an update that
TRIES processes in a row have died of (it gets the kind error). aiogram's own `start_polling` confirms updates before
their handlers end, and its FSM has no say here, so neither is used; its types, filters and handlers are.

**What gets which answer** (private chats): text and captions go to the friend. Stickers, photos, voice and other content
get a line that it reads words only; text mostly in another script, that it speaks English (crisis and "are you a
program?" are looked for before); an unknown command in any script, a pointer to /help. An edit changes what the friend
remembers, silently. Silence: service messages, channels, and groups, where a command alone gets a line that it talks
in private. Whoever is not in TG_ALLOWED_USERS gets their number at /start, then silence. Above the rate: one line a
minute, then silence. A handler's error: a kind line; log and answer hold nobody's words.
"""

import asyncio
import json
import logging
import os
import re
import signal
import sys
import time
import traceback
import unicodedata
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from aiogram import Bot, Dispatcher, F
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.dispatcher.event.bases import UNHANDLED
from aiogram.exceptions import (
    AiogramError,
    TelegramBadRequest,
    TelegramConflictError,
    TelegramEntityTooLarge,
    TelegramForbiddenError,
    TelegramMigrateToChat,
    TelegramNotFound,
    TelegramRetryAfter,
    TelegramUnauthorizedError,
)
from aiogram.filters import Command, CommandObject
from aiogram.methods import (
    AnswerCallbackQuery,
    DeleteWebhook,
    EditMessageReplyMarkup,
    GetMe,
    GetUpdates,
    SendChatAction,
    SendMessage,
    SetMyCommands,
    TelegramMethod,
)
from aiogram.types import (
    BotCommand,
    CallbackQuery,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    LinkPreviewOptions,
    Message,
    ReplyParameters,
    Update,
)

from chat.engine import Engine, TooLong
from chat.feedback import Feedback
from chat.friend import Friend, load_friend
from chat.store import InUse, Person, Store, Turn, Waiting

log = logging.getLogger("telegram")

POLL = 25  # seconds that Telegram holds a getUpdates without updates
GRACE = 8  # seconds that a stop waits for what is under way: less than the ten that docker stop gives
LONGEST = 4096  # UTF-16 units of a message
TRIES = 3
CANDIDATES = 4  # openers, the best of which is sent
PARALLEL = 32  # people thought about at once: the engine's batch
MOST_FACTS, LONGEST_FACT = 8, 120
KINDS = ["message", "edited_message", "callback_query"]
THUMBS = {"up": "👍", "down": "👎"}

COMMANDS = {
    "start": "begin a conversation; I say the first line",
    "reset": "forget this conversation and begin a new one",
    "profile": "what I should know about you",
    "mood": "what I make of your mood",
    "feedback": "help me learn from your thumbs: on or off",
    "privacy": "what is stored, where, and how to delete it",
    "delete": "delete everything about you",
    "help": "this list",
}
WELCOME = (
    "Hello! I am icebreaker, a small program that likes to chat. I am not a person, and I often get things wrong. "
    "/help tells what I can do, /privacy what I remember."
)
HELP = (
    "Just write, in English, and I answer. I read words only: no pictures, no voice. If you edit a message I remember "
    "the new wording but don't answer again.\n\n" + "\n".join(f"/{name}: {text}" for name, text in COMMANDS.items())
)
PRIVACY = (
    "What I remember: your Telegram number, this conversation (the last 200 messages), the facts you gave me with "
    "/profile and your settings. Not your name, phone or pictures.\n\n"
    "Where: in one file on the computer that runs me, readable by whoever runs it. Nothing is sent to anybody else; "
    "Telegram itself sees every message, since bots have no end-to-end encryption.\n\n"
    "Feedback is off unless you turn it on (/feedback on). Then what I said, the talk before it, your facts and your thumb "
    "are kept as training examples, under a scrambled number instead of yours.\n\n"
    "To delete: /reset forgets the conversation, /profile clear the facts, /delete everything, feedback included."
)
PROFILE = (
    "{known}\n\nTo set it: /profile keeps bees; works nights; hates Mondays\n(facts separated by semicolons, "
    f"{MOST_FACTS} at most). /profile clear forgets it."
)
FEEDBACK = (
    "Feedback is {now}. With /feedback on I put thumbs under my messages, and what you like or dislike, with the talk "
    "before it, is kept to train me. /feedback off stops that."
)
UNKNOWN_COMMAND = "I don't know that command. /help lists those that I do."
WORDS_ONLY = "I can only read words, I'm afraid. Tell me about it?"
ENGLISH = "I only speak English so far, sorry! Would you try that?"
TOO_LONG = "That is more than I can read at once. Could you say it in fewer words? (A shorter /profile helps too.)"
NO_WORDS = "I'm at a loss for words. Tell me more?"
SORRY = "Something went wrong on my side, sorry. Would you say that again in a moment?"
SLOWER = "I can't keep up, sorry! I answer {most} messages a minute. Give me a moment, then write again."
PRIVATELY = "I only talk in private: https://t.me/{name}"
NOT_INVITED = (
    "I only talk with people my keeper has invited. Your number, if you want to ask for an invitation: {person}"
)


class Refused(RuntimeError):
    """Telegram does not know the token."""


@dataclass(frozen=True)
class Settings:
    """What the environment says. The token stays out of the repr."""

    token: str
    model: str = "friend-ppo"
    database: Path = Path("runs/telegram.sqlite")
    feedback_file: Path = Path("runs/feedback.jsonl")
    api_base: str | None = None
    allowed: frozenset[int] = frozenset()
    most: int = 20

    def __repr__(self) -> str:
        return f"Settings(model={self.model!r}, database={str(self.database)!r})"

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Settings":
        """Raises ValueError naming the variable and saying what to do, without the token."""
        token = environ.get("TG_BOT_TOKEN", "").strip()
        if not token:
            raise ValueError("TG_BOT_TOKEN is not set: get a token from @BotFather in Telegram and put it there")
        if not re.fullmatch(r"\d+:[A-Za-z0-9_-]+", token):
            raise ValueError("TG_BOT_TOKEN is malformed: it looks like 123456:ABC-def, copied whole from @BotFather")
        api_base = environ.get("TG_API_BASE") or None
        if api_base and not re.match(r"https?://\S+$", api_base):
            raise ValueError(f"TG_API_BASE is {api_base!r}, not a URL that begins with http:// or https://")
        allowed = [word for word in re.split(r"[\s,]+", environ.get("TG_ALLOWED_USERS", "")) if word]
        for word in allowed:
            if not re.fullmatch(r"[0-9]{1,19}", word):
                raise ValueError(f"TG_ALLOWED_USERS: {word!r} is no user's number; write them as 123, 456")
        most = environ.get("TG_MESSAGES_PER_MINUTE") or "20"
        if not re.fullmatch(r"[1-9][0-9]{0,5}", most):
            raise ValueError(f"TG_MESSAGES_PER_MINUTE is {most!r}, not a whole number of 1 or more")
        return cls(
            token,
            environ.get("MODEL") or cls.model,
            Path(environ.get("TG_DATABASE") or cls.database),
            Path(environ.get("FEEDBACK_FILE") or cls.feedback_file),
            api_base,
            frozenset(map(int, allowed)),
            int(most),
        )


def main() -> None:
    try:
        settings = Settings.read(os.environ)
    except ValueError as error:
        sys.exit(f"telegram: {error}")
    start_log(settings.token)
    try:
        # The store first: a second bot is told before it has loaded a model.
        with Store(settings.database) as store, Engine([settings.model]) as engine:
            asyncio.run(serve(settings, load_friend(engine), store))
    except (InUse, Refused, ValueError, OSError) as error:
        log.error("%s", error)
        sys.exit(1)
    except Exception:
        log.exception("the bot ends")  # through the log, which hides the token
        sys.exit(1)


async def serve(settings: Settings, friend: Friend, store: Store) -> None:
    """Answers people until SIGTERM or SIGINT. Raises Refused, and whatever the store raises (a full disk)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.set_default_executor(ThreadPoolExecutor(PARALLEL, "friend"))
    api = {"api": TelegramAPIServer.from_base(settings.api_base)} if settings.api_base else {}
    async with Bot(settings.token, AiohttpSession(timeout=30, **api)) as bot:
        await Telegram(bot, friend, store, settings).run(stop)


class RawUpdates(GetUpdates):
    """getUpdates, its updates as Telegram wrote them: one that aiogram cannot parse stops only itself."""

    __returning__ = list[dict]


@dataclass(frozen=True)
class Answer:
    """What an update leads to: messages, a write that goes with them or not at all, and what follows the commit."""

    sends: Sequence[TelegramMethod] = ()
    write: Callable[[], None] = lambda: None
    then: Callable[[], None] = lambda: None


#: What may stand in the outbox.
METHODS = {kind.__api_method__: kind for kind in (SendMessage, AnswerCallbackQuery, EditMessageReplyMarkup)}
#: A message that met one of these will never be taken.
HOPELESS = (TelegramBadRequest, TelegramForbiddenError, TelegramEntityTooLarge, TelegramMigrateToChat)


class Telegram:
    """One bot. Everything runs in its event loop but the friend, which thinks in threads."""

    def __init__(self, bot: Bot, friend: Friend, store: Store, settings: Settings):
        self.bot, self.friend, self.store, self.settings = bot, friend, store, settings
        self.rows = Feedback(settings.feedback_file)
        self.busy: dict[int, asyncio.Task] = {}  # who is being answered
        self.thinking = asyncio.Semaphore(PARALLEL)
        self.quiet_until = 0.0  # the loop's time; after a 429
        self.stopping = False
        self.failed: asyncio.Future = asyncio.get_running_loop().create_future()
        self.dispatcher = self._dispatcher()

    def _dispatcher(self) -> Dispatcher:
        dispatcher = Dispatcher(disable_fsm=True)
        dispatcher.update.outer_middleware(self.gate)
        on = dispatcher.message
        for name, handler in {
            "start": self.start,
            "reset": self.reset,
            "profile": self.profile,
            "mood": self.mood,
            "feedback": self.feedback,
            "privacy": self.privacy,
            "delete": self.delete,
            "help": self.help,
        }.items():
            on.register(handler, Command(name, ignore_case=True))
        on.register(self.unknown_command, F.text.startswith("/"))
        on.register(self.talk, F.text | F.caption)
        on.register(
            self.words_only,
            F.sticker | F.photo | F.voice | F.video | F.video_note | F.audio | F.animation | F.document | F.contact
            | F.location | F.venue | F.poll | F.dice | F.game | F.story | F.checklist | F.paid_media,
        )  # fmt: skip
        dispatcher.edited_message.register(self.edited, F.text | F.caption)
        dispatcher.callback_query.register(self.voted, F.data.regexp(r"^(up|down):(\d+)$").as_("press"))
        dispatcher.callback_query.register(self.delete_chosen, F.data.in_({"delete:yes", "delete:no"}))
        return dispatcher

    # From Telegram to the inbox, from the inbox to the outbox, from the outbox to Telegram.

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set, or nothing can go on: then raises why."""
        polling = asyncio.create_task(self.poll())
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({polling, stopped, self.failed}, return_when=asyncio.FIRST_COMPLETED)
            log.info("stopping: %d people are being answered", len(self.busy))
            self.stopping = True
            polling.cancel()
            if self.busy:
                await asyncio.wait(self.busy.values(), timeout=GRACE)
        finally:
            tasks = [polling, stopped, *self.busy.values()]
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in (self.failed.done() and self.failed.exception(), ended[0]):
            if isinstance(error, Exception):
                raise error
        log.info("stopped; %d people wait for the next start", len(self.store.unfinished()))

    async def poll(self) -> None:
        """Fetches updates for ever. Each is on disk before the next request confirms it."""
        await self.greet()
        for person in self.store.unfinished():
            self.wake(person)
        offset = None
        while True:
            request = RawUpdates(offset=offset, timeout=POLL, allowed_updates=KINDS)
            updates = await self.insist(request, timeout=POLL + 10)
            rows = [(u["update_id"], sender, json.dumps(u)) for u in updates if (sender := sender_of(u))]
            self.store.receive(rows)
            # Without updates nothing is unconfirmed. Telegram may then go on at a lower number, which an old offset hides.
            offset = updates[-1]["update_id"] + 1 if updates else None
            for person in dict.fromkeys(person for _, person, _ in rows):
                self.wake(person)

    async def greet(self) -> None:
        me = await self.insist(GetMe())
        self.bot._me = me  # what Bot.me() caches: commands to @me need no request
        await self.insist(DeleteWebhook(drop_pending_updates=False))
        await self.insist(
            SetMyCommands(commands=[BotCommand(command=name, description=text) for name, text in COMMANDS.items()])
        )
        log.info("@%s talks as %s", me.username, self.settings.model)

    async def insist(self, request: TelegramMethod, timeout: int | None = None):
        """Repeats a request until Telegram answers it. Raises Refused, and what is HOPELESS."""
        wait = 1.0
        while True:
            try:
                return await self.bot(request, request_timeout=timeout)
            except (TelegramUnauthorizedError, TelegramNotFound):
                told = "Telegram does not know TG_BOT_TOKEN: copy it again from @BotFather"
                raise Refused(told + (" (or mend TG_API_BASE)" if self.settings.api_base else "")) from None
            except TelegramRetryAfter as error:
                log.warning("%s: told to wait %d s", request.__api_method__, error.retry_after)
                if isinstance(request, SendMessage):
                    self.quiet_until = max(self.quiet_until, now() + error.retry_after)
                    await self.quiet()
                else:
                    await asyncio.sleep(error.retry_after)
                continue
            except TelegramConflictError:
                log.error("another program polls with this token: stop it, or the two share the messages")
            except HOPELESS:
                raise
            except AiogramError as error:  # the network, 5xx, a proxy's page instead of JSON
                log.warning("%s: %s; again in %d s", request.__api_method__, type(error).__name__, wait)
            await asyncio.sleep(wait)
            wait = min(2 * wait, 30)

    async def quiet(self) -> None:
        """Waits until Telegram wants to hear of us again. For everybody: it does not say which of its limits was met."""
        while (left := self.quiet_until - now()) > 0:
            await asyncio.sleep(left)

    def wake(self, person: int) -> None:
        if person not in self.busy and not self.stopping:
            self.busy[person] = asyncio.create_task(self.attend(person))

    async def attend(self, person: int) -> None:
        """Sends and answers what is there for one person, one after another, until nothing is."""
        try:
            while True:
                while row := self.store.next_send(person):
                    await self.send(*row)
                if self.stopping or (waiting := self.store.next_update(person)) is None:
                    return
                await self.answer(waiting, person)
        except Exception as error:  # the store's: nothing can be promised any more
            if not self.failed.done():
                self.failed.set_exception(error)
        finally:
            del self.busy[person]

    async def send(self, seq: int, method: str, body: str) -> None:
        await self.quiet()
        try:
            await self.insist(METHODS[method].model_validate_json(body))
        except HOPELESS as error:
            log.warning("%s is dropped: %s", method, type(error).__name__)
        self.store.sent(seq)

    async def answer(self, waiting: Waiting, person: int) -> None:
        try:
            update = Update.model_validate_json(waiting.body, context={"bot": self.bot})
            if waiting.tries > TRIES:
                raise RuntimeError("begun and not ended by several processes")
            answer = await self.dispatcher.feed_update(
                self.bot, update, person=self.store.person(person), behind=waiting.behind
            )
            answer = Answer() if answer is UNHANDLED else answer
        except TooLong:
            answer = sorry(waiting.body, TOO_LONG)
        except Exception as error:
            report(waiting.id, error)
            answer = sorry(waiting.body, SORRY)
        sends = [(send.__api_method__, send.model_dump_json(exclude_unset=True)) for send in answer.sends]
        self.store.finish(waiting.id, person, sends, answer.write)
        try:
            answer.then()
        except (OSError, ValueError) as error:  # a row of feedback is worth no conversation
            report(waiting.id, error)

    # Who is heard.

    async def gate(self, handler, update: Update, data: dict) -> Answer:
        """Groups, uninvited people and floods end here."""
        event, person = update.event, data["person"]
        message = event.message if isinstance(event, CallbackQuery) else event
        if message is None:
            return Answer()
        chat, name = message.chat, (await self.bot.me()).username
        text, sent = update.message and update.message.text or "", message.date.timestamp()
        if chat.type != "private":
            if is_command(text, name) and self.pace(chat.id, sent) == 0:
                return Answer(say(chat.id, PRIVATELY.format(name=name)))
            return Answer()
        if self.settings.allowed and person.id not in self.settings.allowed:
            if is_command(text, name, "start") and self.pace(person.id, sent) == 0:
                return Answer(say(chat.id, NOT_INVITED.format(person=person.id)))
            return Answer()
        if not update.message:  # edits and buttons cost little, and "Delete everything" must always work
            return await handler(update, data)
        count = self.pace(person.id, sent)
        if count < self.settings.most:
            return await handler(update, data)
        return Answer(say(chat.id, SLOWER.format(most=self.settings.most)) if count == self.settings.most else ())

    def pace(self, who: int, sent: float) -> int:
        return self.store.pace(who, sent, self.settings.most)

    # What is answered. Each handler gets who wrote, and how many of their updates wait behind this one.

    async def start(self, message: Message, person: Person) -> Answer:
        return await self.begin(message, person, WELCOME)

    async def reset(self, message: Message, person: Person) -> Answer:
        return await self.begin(message, person)

    async def begin(self, message: Message, person: Person, *before: str) -> Answer:
        """The last conversation is forgotten; the friend opens a new one with the best of its candidates."""
        async with self.typing(message.chat.id), self.thinking:
            found = await asyncio.to_thread(self.friend.open, self.settings.model, person.facts, None, CANDIDATES)
        opener = next((candidate["opener"] for candidate in found if candidate["opener"]), NO_WORDS)
        kind = "model" if len(found) == CANDIDATES else "care"  # a fixed answer is the only one
        last = self.store.turns(person.id)

        def write():
            self.store.set_person(person)
            self.store.forget_talk(person.id)
            self.store.add_turns(person.id, [Turn("assistant", opener, message.message_id, kind, time.time())])

        texts = [send for text in before for send in say(message.chat.id, text)]
        return Answer(
            [*texts, *say(message.chat.id, opener, markup=thumbs(person, kind, message.message_id))],
            write,
            lambda: self.keep(person, "ended", last),
        )

    async def talk(self, message: Message, person: Person, behind: int) -> Answer:
        text = message.text or message.caption
        turns = self.store.turns(person.id)
        sent = message.date.timestamp()
        said = [{"role": turn.role, "content": turn.text} for turn in turns] + [{"role": "user", "content": text}]
        async with self.typing(message.chat.id), self.thinking:
            kind = (await asyncio.to_thread(self.friend.look, said))["kind"]
            if kind == "model" and is_foreign(text):
                return Answer(say(message.chat.id, ENGLISH))
            pieces = self.friend.reply(self.settings.model, person.facts, said, use_mood=person.use_mood)
            reply = "".join([piece async for piece in pieces]).strip() or NO_WORDS
        new = [
            Turn("user", text, message.message_id, "said", sent),
            Turn("assistant", reply, message.message_id, kind, time.time()),
        ]
        went_on = {"reply_words": len(text.split())}
        if turns:
            went_on["reply_seconds"] = max(0.0, sent - turns[-1].time)
        return Answer(
            say(
                message.chat.id,
                reply,
                message.message_id if behind else None,  # in a burst it is else not clear what is answered
                thumbs(person, kind, message.message_id),
            ),
            lambda: self.store.add_turns(person.id, new),
            lambda: self.keep(person, "continued", turns, **went_on) if kind == "model" else None,
        )

    async def words_only(self, message: Message) -> Answer:
        return Answer(say(message.chat.id, WORDS_ONLY))

    async def unknown_command(self, message: Message) -> Answer:
        return Answer(say(message.chat.id, UNKNOWN_COMMAND))

    async def help(self, message: Message) -> Answer:
        return Answer(say(message.chat.id, HELP))

    async def privacy(self, message: Message) -> Answer:
        return Answer(say(message.chat.id, PRIVACY))

    async def profile(self, message: Message, person: Person, command: CommandObject) -> Answer:
        given = " ".join((command.args or "").replace("\n", ";").split())
        if not given:
            facts = "\n".join(f"- {fact}" for fact in person.facts)
            known = f"What I know about you:\n{facts}" if facts else "I know nothing about you yet."
            return Answer(say(message.chat.id, PROFILE.format(known=known)))
        if given.lower() == "clear":
            return self.set(message, replace(person, facts=()), "Forgotten. I know nothing about you now.")
        facts = tuple(fact for part in given.split(";") if (fact := part.strip(" .")))
        if not facts or len(facts) > MOST_FACTS or max(map(len, facts)) > LONGEST_FACT:
            limits = f"I can take 1 to {MOST_FACTS} facts of at most {LONGEST_FACT} letters each. Nothing has changed."
            return Answer(say(message.chat.id, limits))
        known = "\n".join(f"- {fact}" for fact in facts)
        return self.set(message, replace(person, facts=facts), f"I'll keep that in mind:\n{known}")

    async def mood(self, message: Message, person: Person, command: CommandObject) -> Answer:
        if (choice := (command.args or "").strip().lower()) in ("on", "off"):
            now = "I follow your mood again." if choice == "on" else "I no longer let your mood change how I talk."
            return self.set(message, replace(person, use_mood=choice == "on"), now)
        said = [{"role": turn.role, "content": turn.text} for turn in self.store.turns(person.id)]
        mood = (await asyncio.to_thread(self.friend.look, said))["mood"]
        return Answer(
            say(
                message.chat.id,
                f"I'd call our talk {mood['name']} (negative {mood['negative']:.2f}, positive {mood['positive']:.2f}, from "
                f"0 to 1). It is a program's guess, and it {'changes' if person.use_mood else 'does not change'} how I "
                f"talk: /mood {'off' if person.use_mood else 'on'} changes that.",
            )
        )

    async def feedback(self, message: Message, person: Person, command: CommandObject) -> Answer:
        if (choice := (command.args or "").strip().lower()) in ("on", "off"):
            person = replace(person, feedback=choice == "on")
            return self.set(message, person, FEEDBACK.format(now=f"{choice} now"))
        return Answer(say(message.chat.id, FEEDBACK.format(now="on" if person.feedback else "off")))

    def set(self, message: Message, person: Person, text: str) -> Answer:
        return Answer(say(message.chat.id, text), lambda: self.store.set_person(person))

    async def delete(self, message: Message) -> Answer:
        buttons = buttons_of({"delete:yes": "Delete everything", "delete:no": "Keep it"})
        return Answer(
            say(message.chat.id, "Delete this conversation, your facts, settings and feedback?", markup=buttons)
        )

    async def delete_chosen(self, query: CallbackQuery, person: Person) -> Answer:
        sends = pressed(query)
        if query.data == "delete:no":
            return Answer([*sends, *say(query.message.chat.id, "Nothing is deleted.")])

        text = "All of it is deleted. /start begins anew."
        return Answer(
            [*sends, *say(query.message.chat.id, text)],
            lambda: self.store.forget(person.id),
            lambda: self.forget_all(person),
        )

    async def edited(self, message: Message, person: Person) -> Answer:
        text = message.text or message.caption
        return Answer(write=lambda: self.store.edit_turn(person.id, message.message_id, text))

    async def voted(self, query: CallbackQuery, person: Person, press: re.Match) -> Answer:
        vote, message_id = press[1], int(press[2])
        turns = self.store.turns(person.id)
        at = [i for i, turn in enumerate(turns) if turn.role == "assistant" and turn.message_id == message_id]
        if not at or not person.feedback:
            return Answer(pressed(query, "That talk is forgotten." if person.feedback else "Feedback is off."))
        upto = turns[: at[0] + 1]
        return Answer(
            pressed(query, f"{THUMBS[vote]} Thank you!"),
            lambda: self.store.vote(person.id, message_id, vote),
            lambda: None if upto[-1].vote else self.keep(person, f"thumb_{vote}", upto),
        )

    @asynccontextmanager
    async def typing(self, chat: int) -> AsyncIterator[None]:
        """Telegram shows "typing" while the block runs. It is no matter if it does not."""

        async def repeat():
            while True:
                await self.quiet()
                try:
                    await self.bot(SendChatAction(chat_id=chat, action="typing"))
                except TelegramRetryAfter as error:
                    self.quiet_until = max(self.quiet_until, now() + error.retry_after)
                except AiogramError:
                    pass
                await asyncio.sleep(4.5)  # it is shown for five seconds

        task = asyncio.create_task(repeat())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def keep(self, person: Person, kind: str, turns: Sequence[Turn], **more) -> None:
        """A row of feedback on the last of the turns, where it is the model's, the person wants that and nothing in the talk
        was a sign of crisis."""
        if person.feedback and turns and turns[-1].kind == "model" and all(turn.kind != "care" for turn in turns):
            *context, response = [turn.text for turn in turns]
            row = {"kind": kind, "surface": "telegram", "model": self.settings.model, "profile": list(person.facts)}
            self.rows.add({**row, "context": context, "response": response, **more}, str(person.id))

    def forget_all(self, person: Person) -> None:
        """What is not in the store's tables: rows of feedback, and deleted text in the store's log."""
        self.rows.forget(str(person.id))
        self.store.scrub()


# Telegram's objects.


def say(
    chat: int, text: str, reply_to: int | None = None, markup: InlineKeyboardMarkup | None = None
) -> list[SendMessage]:
    """Plain text in as few messages as it takes; the first one quotes, the last one has the buttons."""
    parts = split(text)
    return [
        SendMessage(
            chat_id=chat,
            text=part,
            link_preview_options=LinkPreviewOptions(is_disabled=True),  # no host learns what the model made up
            **({"reply_parameters": reply_parameters(reply_to)} if reply_to and i == 0 else {}),
            **({"reply_markup": markup} if markup and i == len(parts) - 1 else {}),
        )
        for i, part in enumerate(parts)
    ]


def reply_parameters(message_id: int) -> ReplyParameters:
    return ReplyParameters(message_id=message_id, allow_sending_without_reply=True)


def split(text: str, most: int = LONGEST) -> list[str]:
    """Parts of at most `most` UTF-16 units, Telegram's measure, cut after a line, a sentence or a word where one ends in
    the second half, else anywhere between characters."""
    parts = []
    text = text.strip()
    while len(text.encode("utf-16-le")) > 2 * most:
        head = text.encode("utf-16-le")[: 2 * most].decode("utf-16-le", "ignore")  # drops half a character
        ends = [head.rfind(mark) + len(mark) for mark in ("\n", ". ", " ") if head.rfind(mark) >= len(head) // 2]
        at = ends[0] if ends else len(head)
        parts.append(text[:at].rstrip())
        text = text[at:].lstrip()
    return [part for part in (*parts, text) if part]


def thumbs(person: Person, kind: str, message_id: int) -> InlineKeyboardMarkup | None:
    """Buttons under what the model said to that message, for those who want them."""
    if not person.feedback or kind != "model":
        return None
    return buttons_of({f"{vote}:{message_id}": sign for vote, sign in THUMBS.items()})


def buttons_of(texts: dict[str, str]) -> InlineKeyboardMarkup:
    row = [InlineKeyboardButton(text=text, callback_data=data) for data, text in texts.items()]
    return InlineKeyboardMarkup(inline_keyboard=[row])


def pressed(query: CallbackQuery, text: str | None = None) -> list[TelegramMethod]:
    """The button stops spinning, and the message loses its buttons."""
    done = AnswerCallbackQuery(callback_query_id=query.id, **({"text": text} if text else {}))
    return [done, EditMessageReplyMarkup(chat_id=query.message.chat.id, message_id=query.message.message_id)]


def sorry(update: str, text: str) -> Answer:
    """A kind line after an error, where somebody waits for one. Reads the JSON, which aiogram may not have understood."""
    match json.loads(update):
        case {"message": {"chat": {"type": "private", "id": int(chat)}}}:
            return Answer(say(chat, text))
        case {"callback_query": {"id": str(query)}}:
            return Answer([AnswerCallbackQuery(callback_query_id=query, text=text)])
    return Answer()


def sender_of(update: dict) -> int | None:
    """Who sent an update of one of KINDS; None for any other, and for channels, who are nobody."""
    event = next((update[kind] for kind in KINDS if kind in update), {})
    return event.get("from", {}).get("id")


def is_command(text: str, bot: str, name: str = r"\w+") -> bool:
    """Whether a message is a command, to everybody or to the bot of that name."""
    return bool(re.match(rf"/{name}(@{bot})?(\s|$)", text, re.IGNORECASE))


def is_foreign(text: str) -> bool:
    """Whether most of the letters are of another script than Latin."""
    letters = [c for c in text if c.isalpha()]
    return 2 * sum(unicodedata.name(c, "").startswith("LATIN") for c in letters) < len(letters)


def now() -> float:
    return asyncio.get_running_loop().time()


# The log.


def start_log(token: str) -> None:
    """Logs to stderr, the token out of every line, whoever writes it."""
    handler = logging.StreamHandler()
    handler.setFormatter(Discreet(token))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("aiogram.event").setLevel(logging.WARNING)  # a line for each update
    logging.captureWarnings(True)


class Discreet(logging.Formatter):
    """Hides the token, and its secret part alone, which URLs may write otherwise."""

    def __init__(self, token: str):
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self.secret = re.compile(rf"(\d+(:|%3A))?{re.escape(token.partition(':')[2])}", re.IGNORECASE)

    def format(self, record: logging.LogRecord) -> str:
        return self.secret.sub("<token>", super().format(record))


def report(update: int, error: Exception) -> None:
    """An error's kind and place, not its message, which may hold what somebody wrote."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f"{place[0].filename}:{place[0].lineno}" if place else "nowhere"
    log.error("update %d: %s at %s", update, type(error).__name__, where)
