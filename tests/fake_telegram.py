"""A Bot API server on loopback, as strict as Telegram's where the bot could notice, with the people who write to the bot.

    async with FakeTelegram() as telegram:
        ... the bot, with TG_API_BASE=telegram.base and TG_BOT_TOKEN=telegram.token ...
        telegram.say(person=7, text="hello")
        reply = (await telegram.replies(7, 1))[0]

Kept from the real one (core.telegram.org/bots/api): the envelope and its errors (400, 401, 403, 404, 409, 429 with
retry_after), GET and POST, JSON, form and multipart bodies, method names in any case, getUpdates with offset, limit,
timeout and allowed_updates, an update given again until a higher offset confirms it, one getUpdates at a time, webhooks
in the way of polling, at most 4,096 UTF-16 units of text, and chats that nobody opened. Not there: formatting,
files, and the day after which updates are dropped.
"""

import asyncio
import json
import time
from collections import defaultdict
from itertools import count

from aiohttp import web

TOKEN = "4242:AAfake-Token_of-the-tests"
NAME = "icebreaker_test_bot"


class BotError(Exception):
    """An answer that is not ok."""

    def __init__(self, code: int, description: str, **parameters):
        super().__init__(description)
        self.code, self.description, self.parameters = code, description, parameters


class FakeTelegram:
    """The server, and everything that its people saw. For one event loop.

    sent: messages of the bot, in order, each as Telegram shows it, with "at" (time.monotonic()) added.
    calls: every request: (method, body, time.monotonic()).
    refused: every answer that was not ok: (method, the error, time.monotonic()).
    webhook: set while not None: polling is then refused, until deleteWebhook.
    """

    def __init__(self, token: str = TOKEN):
        self.token = token
        self.updates: list[dict] = []
        self.sent: list[dict] = []
        self.calls: list[tuple[str, dict, float]] = []
        self.refused: list[tuple[str, BotError, float]] = []
        self.webhook: str | None = None
        self.blocked: set[int] = set()
        self.commands: list[dict] = []
        self._refusals: dict[str, list[BotError]] = defaultdict(list)
        self._opened: set[int] = set()
        self._update_ids, self._message_ids = count(1000), count(1)
        self._allowed: list[str] | None = None
        self._changed = asyncio.Condition()
        self._poll: asyncio.Task | None = None
        self._slow: dict[str, float] = {}

    async def __aenter__(self) -> "FakeTelegram":
        app = web.Application()
        app.router.add_route("*", "/bot{token}/{method}", self._request)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.base = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_) -> None:
        await self._runner.cleanup()

    # What people do.

    def say(self, person: int, text: str | None = None, *, chat: dict | None = None, **content) -> int:
        """A message to the bot: text, or other content (sticker={...}). Returns its number."""
        chat = chat or private(person)
        self._opened.add(chat["id"])
        message = {
            "message_id": next(self._message_ids),
            "from": user(person),
            "chat": chat,
            "date": int(time.time()),
            **({"text": text} if text is not None else {}),
            **content,
        }
        if text and text.startswith("/"):
            length = len(text.split()[0])
            message["entities"] = [{"type": "bot_command", "offset": 0, "length": length}]
        self.update(message=message)
        return message["message_id"]

    def edit(self, person: int, message_id: int, text: str) -> None:
        now = int(time.time())
        message = {"message_id": message_id, "from": user(person), "chat": private(person), "date": now, "text": text}
        self.update(edited_message={**message, "edit_date": now})

    def press(self, person: int, message: dict, label: str) -> None:
        """Presses the button whose text is `label` under a message of the bot. AssertionError where there is none."""
        buttons = [b for row in message.get("reply_markup", {}).get("inline_keyboard", []) for b in row]
        data = [button["callback_data"] for button in buttons if button["text"] == label]
        assert data, f"no button {label!r} under {message}"
        shown = {key: value for key, value in message.items() if key != "at"}
        query = {"id": str(next(self._update_ids)), "from": user(person), "chat_instance": "1", "message": shown}
        self.update(callback_query={**query, "data": data[0]})

    def update(self, **event) -> int:
        """Any update: its kind and its object. Returns its number. One that the bot did not ask for is not given to it."""
        update_id = next(self._update_ids)
        if self._allowed is None or set(event) & set(self._allowed):
            self.updates.append({"update_id": update_id, **event})
            self._notify()
        return update_id

    def refuse(self, method: str, code: int, description: str = "", times: int = 1, **parameters) -> None:
        """The next requests of a method get an error: refuse("sendMessage", 429, retry_after=1)."""
        description = description or {429: "Too Many Requests: retry later"}.get(code, "Internal Server Error")
        self._refusals[method.lower()] += [BotError(code, description, **parameters)] * times

    def slow(self, method: str, seconds: float) -> None:
        """Requests of a method are answered that much later (and are done at once)."""
        self._slow[method.lower()] = seconds

    # What people see.

    def to(self, person: int) -> list[dict]:
        """The bot's messages in a chat."""
        return [message for message in self.sent if message["chat"]["id"] == person]

    async def replies(self, person: int, n: int, timeout: float = 30.0) -> list[dict]:
        """The bot's messages in a chat, once there are n of them. AssertionError when that takes too long."""
        await self.until(lambda: len(self.to(person)) >= n, timeout)
        return self.to(person)

    async def until(self, holds, timeout: float = 30.0) -> None:
        async def wait():
            async with self._changed:
                await self._changed.wait_for(holds)

        try:
            await asyncio.wait_for(wait(), timeout)
        except TimeoutError:
            seen = [(message["chat"]["id"], message["text"]) for message in self.sent[-12:]]
            raise AssertionError(f"not within {timeout} s; the bot's last messages: {seen}") from None

    def asked(self, method: str) -> list[dict]:
        """The bodies of a method's requests so far."""
        return [body for name, body, _ in self.calls if name == method.lower()]

    # The server.

    async def _request(self, request: web.Request) -> web.Response:
        method = request.match_info["method"].lower()
        try:
            if request.match_info["token"] != self.token:
                raise BotError(401, "Unauthorized")
            body = await body_of(request)
            self.calls.append((method, body, time.monotonic()))
            self._notify()
            if self._refusals[method]:
                raise self._refusals[method].pop(0)
            do = {
                "getme": self._get_me,
                "getupdates": self._get_updates,
                "sendmessage": self._send_message,
                "sendchataction": self._send_chat_action,
                "setmycommands": self._set_my_commands,
                "deletewebhook": self._delete_webhook,
                "answercallbackquery": self._answer_callback_query,
                "editmessagereplymarkup": self._edit_message_reply_markup,
            }.get(method)
            if do is None:
                raise BotError(404, "Not Found")
            result = await do(body)
            await asyncio.sleep(self._slow.get(method, 0))
            return web.json_response({"ok": True, "result": result})
        except BotError as error:
            self.refused.append((method, error, time.monotonic()))
            answer = {"ok": False, "error_code": error.code, "description": error.description}
            if error.parameters:
                answer["parameters"] = error.parameters
            return web.json_response(answer, status=error.code)

    async def _get_me(self, body: dict) -> dict:
        return {"id": 4242, "is_bot": True, "first_name": "icebreaker", "username": NAME}

    async def _get_updates(self, body: dict) -> list[dict]:
        if self.webhook is not None:
            raise BotError(409, "Conflict: can't use getUpdates method while webhook is active")
        if self._poll is not None:
            self._poll.cancel()  # the older request gets the error, as Telegram does it
        poll = self._poll = asyncio.create_task(self._wait_for_updates(body))
        try:
            return await poll
        except asyncio.CancelledError:
            if not poll.cancelled():  # the client went away
                poll.cancel()
                raise
            raise BotError(409, "Conflict: terminated by other getUpdates request") from None
        finally:
            if self._poll is poll:
                self._poll = None

    async def _wait_for_updates(self, body: dict) -> list[dict]:
        if body.get("allowed_updates"):
            self._allowed = body["allowed_updates"]
        if offset := int(body.get("offset") or 0):
            self.updates = [update for update in self.updates if update["update_id"] >= offset]
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self.updates), int(body.get("timeout") or 0))
            except TimeoutError:
                return []
        return self.updates[: int(body.get("limit") or 100)]

    async def _send_message(self, body: dict) -> dict:
        chat, text = self._chat(body), body.get("text", "")
        if not text.strip():
            raise BotError(400, "Bad Request: message text is empty")
        if len(text.encode("utf-16-le")) > 2 * 4096:
            raise BotError(400, "Bad Request: message is too long")
        bot = await self._get_me({})
        message = {
            "message_id": next(self._message_ids),
            "from": bot,
            "chat": private(chat) if chat > 0 else {"id": chat, "type": "group", "title": "a group"},
            "date": int(time.time()),
            "text": text,
        }
        if "reply_markup" in body:
            message["reply_markup"] = body["reply_markup"]
        if "reply_parameters" in body:
            message["reply_to_message"] = {**message, "message_id": body["reply_parameters"]["message_id"]}
        self.sent.append({**message, "at": time.monotonic()})
        self._notify()
        return message

    async def _send_chat_action(self, body: dict) -> bool:
        self._chat(body)
        return True

    async def _set_my_commands(self, body: dict) -> bool:
        self.commands = body["commands"]
        return True

    async def _delete_webhook(self, body: dict) -> bool:
        self.webhook = None
        return True

    async def _answer_callback_query(self, body: dict) -> bool:
        if "callback_query_id" not in body:
            raise BotError(400, "Bad Request: query is too old and response timeout expired or query ID is invalid")
        return True

    async def _edit_message_reply_markup(self, body: dict) -> dict:
        found = [m for m in self.to(self._chat(body)) if m["message_id"] == int(body["message_id"])]
        if not found:
            raise BotError(400, "Bad Request: message to edit not found")
        if found[0].get("reply_markup") == body.get("reply_markup"):
            raise BotError(400, "Bad Request: message is not modified")
        found[0].pop("reply_markup", None)
        return {key: value for key, value in found[0].items() if key != "at"}

    def _chat(self, body: dict) -> int:
        chat = int(body.get("chat_id") or 0)
        if chat in self.blocked:
            raise BotError(403, "Forbidden: bot was blocked by the user")
        if chat not in self._opened:
            raise BotError(400, "Bad Request: chat not found")
        return chat

    def _notify(self) -> None:
        async def notify():
            async with self._changed:
                self._changed.notify_all()

        self._notifying = asyncio.ensure_future(notify())  # kept: a task that nobody holds may be collected


async def body_of(request: web.Request) -> dict:
    """Query and body; values that are JSON (arrays, objects, numbers) are read as such, text stays text."""
    found = dict(request.query)
    if request.content_type == "application/json":
        return {**found, **await request.json()}
    found |= {key: value for key, value in (await request.post()).items() if isinstance(value, str)}
    return {key: read(value) if key != "text" else value for key, value in found.items()}


def read(value: str):
    try:
        return json.loads(value)
    except ValueError:
        return value


def user(person: int) -> dict:
    return {"id": person, "is_bot": False, "first_name": f"Person {person}", "language_code": "en"}


def private(person: int) -> dict:
    return {"id": person, "type": "private", "first_name": f"Person {person}"}
