"""The server: a friend over HTTP, as OpenAI's clients speak it, with openers, moods, feedback and the page.

    python -m chat.server --run runs/tiny/ppo-s1                    # then open http://127.0.0.1:8000
    python -m chat.server --run friend-ppo friend-sft --port 9000   # several models on one base
    API_KEY=... python -m chat.server --run friend-ppo --host 0.0.0.0

    client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
    client.chat.completions.create(model="friend-ppo", messages=[{"role": "user", "content": "Hello!"}])

A system message replaces the model's instruction and the mood's; `extra_body={"profile": [facts], "mood": False}` says
more. Signs of crisis, and the question what this is, are answered before any model (chat/care.py). What cannot be done is
refused in OpenAI's form, {"error": {"message", "type", "param", "code"}}, never answered by guessing: an unknown key is an
error too. On a loopback address requests must come from this machine's own pages and programs; on any other, and wherever
API_KEY is set, `Authorization: Bearer <API_KEY>` is asked for, but for the page's files and /health.
"""

import argparse
import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import os
import secrets
import sys
import time
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import torch
import transformers
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from transformers import HfArgumentParser
from uvicorn.protocols.http.h11_impl import H11Protocol

from chat.engine import Busy, Engine, Stream, TooLong, UnknownModel
from chat.feedback import Feedback
from chat.friend import MAX_NEW_TOKENS, Friend, load_friend
from data.feedback import KINDS
from models.sampling import printable

PAGE = Path(__file__).parent / "page"
PAGE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}
#: On every answer: the page loads nothing from elsewhere and stands in nobody's frame.
SAFETY = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

# Limits of a request. What the window cannot hold is cut from the oldest turn; these are against abuse.
BODY_BYTES, BODY_SECONDS = 256 * 1024, 10
HEAD_SECONDS = 10
TURNS, TURN_CHARACTERS = 200, 8_000
FACTS, FACT_CHARACTERS = 50, 500
TOKENS = 256  # of an answer
CANDIDATES = 16
ANSWER_SECONDS = 60  # then what there is of the answer is all
REQUEST_SECONDS = 90  # then the connection is closed, however slowly its client reads


@dataclass
class ServeConfig:
    """Models on one base in, a server out."""

    run: list[str] = field(
        metadata={"help": "runs, shipped names or paths, all on one base; the first is the page's default"}
    )
    host: str = field(
        default="127.0.0.1", metadata={"help": "any address but a loopback one needs API_KEY in the environment"}
    )
    port: int = field(default=8000, metadata={"help": "0 takes a free one"})
    scorer: str | None = field(
        default=None, metadata={"help": "a reward; default: the one a PPO run was trained on, else friend-reward"}
    )
    feedback_file: str | None = field(
        default=None,
        metadata={"help": "JSON lines: what people did with answers is appended; without it nothing is stored"},
    )

    def __post_init__(self):
        if not is_loopback(self.host) and not os.environ.get("API_KEY"):
            raise ValueError(
                f"host {self.host} can be reached by others: set API_KEY in the environment to what clients must send "
                "(python -c 'import secrets; print(secrets.token_urlsafe())' makes one), or leave --host out"
            )


def main(config: ServeConfig) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))  # one core for requests: threads that wait spin
    warnings.simplefilter("ignore", FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with Engine(config.run, config.scorer) as engine:
        app = make_app(load_friend(engine), os.environ.get("API_KEY"), config.feedback_file)
        server_of(app, config.host, config.port).run()


def server_of(app: FastAPI, host: str, port: int) -> "Server":
    """To be `run()` until SIGINT or SIGTERM; what is being answered then has five seconds."""
    settings = uvicorn.Config(
        app,
        host,
        port,
        http=Impatient,
        ws="none",
        lifespan="off",
        log_level="warning",  # no access log: what people do is their own
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    return Server(settings)


class Server(uvicorn.Server):
    """Says where to open it; `url` once it has started."""

    url: str

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            print(f"Open {self.url} in a browser (Ctrl+C stops)", flush=True)


class Impatient(H11Protocol):
    """A connection is closed when a request's head is not there after HEAD_SECONDS."""

    patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self.patience = self.loop.call_later(HEAD_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering and self.patience:
            self.patience.cancel()
            self.patience = None
        elif not is_answering and not self.patience:
            self.patience = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.patience:
            self.patience.cancel()
        super().connection_lost(exc)


# ------------------------------------------------------------------------------------------------ what is asked and said


class Strict(BaseModel):
    """No unknown keys, no numbers as text."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Said = Annotated[str, Field(max_length=TURN_CHARACTERS)]
Profile = Annotated[list[Annotated[str, Field(max_length=FACT_CHARACTERS, pattern=r"\S")]], Field(max_length=FACTS)]
Name = Annotated[str, Field(max_length=500, description="one of GET /v1/models")]
Temperature = Annotated[float, Field(ge=0, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class Part(Strict):
    type: Literal["text"]
    text: Said


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Said | Annotated[list[Part], Field(max_length=16)]
    name: Annotated[str, Field(max_length=100)] | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class StreamOptions(Strict):
    include_usage: bool = False


class ChatRequest(Strict):
    """OpenAI's chat completion. Sampling is by temperature alone: what would ask for more must have its neutral value."""

    model: Name
    messages: Annotated[list[Message], Field(min_length=1, max_length=TURNS)]
    max_tokens: Annotated[int, Field(ge=1, le=TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=TOKENS)] | None = None
    temperature: Temperature | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    profile: Profile = []
    mood: bool = True
    # Taken, and of no effect:
    user: Annotated[str, Field(max_length=500)] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    # Taken at the value that changes nothing:
    n: Literal[1] | None = None
    top_p: Annotated[float, Field(ge=1, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    stop: Annotated[list[str], Field(max_length=0)] | None = None
    logprobs: Literal[False] | None = None
    tools: Annotated[list[str], Field(max_length=0)] | None = None


class OpenersRequest(Strict):
    model: Name
    profile: Profile = []
    greeting: Annotated[str, Field(max_length=TURN_CHARACTERS, pattern=r"\S")] | None = None
    n: Annotated[int, Field(ge=1, le=CANDIDATES)] = 1
    temperature: Temperature | None = None
    seed: Seed | None = None


class Turn(Strict):
    role: Literal["user", "assistant"]
    content: Said


class FeedbackRequest(Strict):
    """A row of data/feedback.py; `who` is whatever tells this person from others, and is stored as a salted hash."""

    kind: Literal[KINDS]
    surface: Literal["page", "api"] = "page"
    model: Name
    profile: Profile = []
    context: Annotated[list[Said], Field(max_length=TURNS)] = []
    response: Annotated[str, Field(max_length=TURN_CHARACTERS, pattern=r"\S")]
    instead: Annotated[str, Field(max_length=TURN_CHARACTERS)] | None = None
    who: Annotated[str, Field(max_length=100, pattern=r"\S")]
    reply_seconds: Annotated[float, Field(ge=0, lt=1e9)] | None = None
    reply_words: Annotated[int, Field(ge=0, lt=10**9)] | None = None


class MoodRequest(Strict):
    turns: Annotated[list[Turn], Field(max_length=TURNS)]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "icebreaker"


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Opener(BaseModel):
    opener: str
    score: float | None
    reactions: dict[str, float] | None
    ended: bool


class Openers(BaseModel):
    model: str
    openers: list[Opener]


class MoodName(BaseModel):
    name: str
    negative: float
    positive: float


class Mood(BaseModel):
    kind: Literal["model", "care", "honesty"]
    mood: MoodName


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    models: list[str]
    feedback: bool  # whether POST /feedback stores what it is given


class ErrorText(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Error(BaseModel):
    error: ErrorText


# ------------------------------------------------------------------------------------------------ the app


def make_app(friend: Friend, key: str | None = None, feedback_file: str | None = None) -> FastAPI:
    """The app over a friend. `key` is what clients must send; without one they must be on this machine."""
    refused = {"4XX": {"model": Error, "description": "refused, in OpenAI's form"}}
    app = FastAPI(
        title="icebreaker", docs_url=None, redoc_url=None, responses=refused
    )  # their pages load from elsewhere
    app.add_middleware(Gate, key=key, open_paths={"/health", *page_files()})
    started = int(time.time())
    names = friend.engine.names
    feedback = Feedback(feedback_file) if feedback_file else None

    def check_model(name: str) -> None:
        friend.engine.instruction(name)  # raises UnknownModel

    @app.get("/health")
    def health() -> Health:
        return Health(models=names, feedback=feedback is not None)

    @app.get("/v1/models")
    def models() -> Models:
        return Models(data=[Model(id=name, created=started) for name in names])

    @app.get("/v1/models/{name:path}")
    def model(name: str) -> Model:
        check_model(name)
        return Model(id=name, created=started)

    streaming = {200: {"content": {"text/event-stream": {}}, "description": "whole, or as events with `stream`"}}

    @app.post("/v1/chat/completions", response_model=ChatAnswer, responses=streaming)
    async def complete(asked: ChatRequest, request: Request):
        stream = await run_in_threadpool(answer, friend, asked)
        if not asked.stream:
            return await whole(asked.model, stream, request)
        include_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return StreamingResponse(
            events(asked.model, stream, include_usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    @app.post("/openers")
    def openers(asked: OpenersRequest) -> Openers:
        if not asked.profile and asked.greeting is None:
            raise Refused(400, "profile and greeting are both empty: the opener has nothing to start from", "profile")
        check_model(asked.model)
        found = friend.open(
            asked.model, asked.profile, asked.greeting, n=asked.n, seed=asked.seed, temperature=asked.temperature
        )
        return Openers(model=asked.model, openers=found)

    @app.post("/mood")
    def mood(asked: MoodRequest) -> Mood:
        return Mood(**friend.look([turn.model_dump() for turn in asked.turns]))

    @app.post("/feedback", status_code=204)
    def store(row: FeedbackRequest) -> None:
        if feedback is None:
            raise Refused(403, "this server stores no feedback: it was started without --feedback_file")
        check_model(row.model)
        try:
            feedback.add(row.model_dump(exclude={"who"}), row.who)
        except ValueError as error:
            raise Refused(400, str(error)) from None

    for path, file in page_files().items():
        app.add_route(path, page_answer(file), include_in_schema=False)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


def answer(friend: Friend, asked: ChatRequest) -> Stream:
    """Starts what answers a request: the model, or a fixed text. Raises what `Engine.ask` does."""
    instruction, messages = None, asked.messages
    if messages[0].role in ("system", "developer"):
        instruction, messages = messages[0].text, messages[1:]
    for i, message in enumerate(messages, len(asked.messages) - len(messages)):
        if message.role in ("system", "developer"):
            raise Refused(400, f"message {i} is the {message.role}'s: only the first may be", f"messages.{i}.role")
    friend.engine.instruction(asked.model)  # raises UnknownModel, also where no model will be needed
    reply = friend.prepare(
        asked.model,
        asked.profile,
        [{"role": message.role, "content": message.text} for message in messages],
        use_mood=asked.mood,
        temperature=0.7 if asked.temperature is None else asked.temperature,
        seed=asked.seed,
        max_new_tokens=asked.max_completion_tokens or asked.max_tokens or MAX_NEW_TOKENS,
        instruction=instruction,
    )
    return friend.engine.ask(reply.ask) if reply.ask else Stream.of(reply.text)


async def whole(model: str, stream: Stream, request: Request) -> dict:
    """A chat completion; a client that leaves before it is there stops the model."""

    async def stop_when_gone() -> None:
        await request.receive()  # the body is read: what comes next is the disconnect
        stream.cancel()

    watch = asyncio.create_task(stop_when_gone())
    try:
        text = "".join([piece async for piece in in_time(stream)])
    finally:
        watch.cancel()
    choice = {"message": {"role": "assistant", "content": text}, "index": 0, "finish_reason": finish_reason(stream)}
    return {**head(model, "chat.completion"), "choices": [choice], "usage": usage(stream)}


async def events(model: str, stream: Stream, include_usage: bool) -> AsyncIterator[str]:
    """A chat completion as server-sent events. Closing this stops the model."""
    start = head(model, "chat.completion.chunk")

    def event(delta: dict, reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return f"data: {json.dumps({**start, 'choices': [choice]})}\n\n"

    try:
        yield event({"role": "assistant", "content": ""})
        async for piece in in_time(stream):
            yield event({"content": piece})
        yield event({}, finish_reason(stream))
        if include_usage:
            yield f"data: {json.dumps({**start, 'choices': [], 'usage': usage(stream)})}\n\n"
    except RuntimeError:
        yield f"data: {json.dumps(error_body('the generation failed', type='server_error'))}\n\n"
    finally:
        stream.cancel()
    yield "data: [DONE]\n\n"


async def in_time(stream: Stream) -> AsyncIterator[str]:
    """The pieces of ANSWER_SECONDS; then the generation is cancelled."""
    timer = asyncio.get_running_loop().call_later(ANSWER_SECONDS, stream.cancel)
    try:
        async for piece in stream:
            yield piece
    finally:
        timer.cancel()


def finish_reason(stream: Stream) -> str:
    """In OpenAI's words, where an answer that was cut short has only "length"."""
    return "stop" if stream.finish_reason == "stop" else "length"


def usage(stream: Stream) -> dict:
    prompt, completion = stream.prompt_tokens, stream.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def head(model: str, kind: str) -> dict:
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}


def page_files() -> dict[str, Path]:
    """The page's files by path, "/" the index: only these exist, whatever a path says."""
    files = {f"/{file.name}": file for file in sorted(PAGE.glob("*")) if file.suffix in PAGE_TYPES}
    return {"/": PAGE / "index.html", **files} if "/index.html" in files else files


def page_answer(file: Path):
    async def send(request: Request) -> Response:
        return FileResponse(file, media_type=PAGE_TYPES[file.suffix], headers={"Cache-Control": "no-cache"})

    return send


# ------------------------------------------------------------------------------------------------ what is refused


class Refused(Exception):
    """An answer that is no answer: a status, what is wrong, and which key."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


class Gate:
    """Before the app: who may ask (key, or this machine), how much, how slowly; and the headers of every answer.

    ASGI middleware. It reads the whole body, so that nothing behind it waits for a slow client.
    """

    def __init__(self, app, key: str | None, open_paths: set[str]):
        self.app, self.key, self.open_paths = app, key, open_paths

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        has_started = False

        async def send_safely(message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                message["headers"] = [
                    *message["headers"],
                    *((k.lower().encode(), v.encode()) for k, v in SAFETY.items()),
                ]
            await send(message)

        try:
            self.check(scope["path"], Headers(scope=scope))
            body = await self.read(Headers(scope=scope), receive)
            rest = [{"type": "http.request", "body": body, "more_body": False}]

            async def replay():
                return rest.pop() if rest else await receive()

            async with asyncio.timeout(REQUEST_SECONDS):
                await self.app(scope, replay, send_safely)
        except Refused as refusal:
            await error_answer(refusal)(scope, receive, send_safely)
        except TimeoutError:
            if has_started:
                raise  # the connection is closed
            refusal = Refused(408, f"not done after {REQUEST_SECONDS} seconds", code="timeout")
            await error_answer(refusal)(scope, receive, send_safely)
        except Exception:
            if has_started:
                raise
            logging.getLogger("uvicorn.error").exception("%s %s failed", scope["method"], scope["path"])
            body = error_body("the server failed; its log says why", "server_error")
            await JSONResponse(body, 500)(scope, receive, send_safely)

    def check(self, path: str, headers: Headers) -> None:
        """Raises Refused: without the key, or, where none is asked for, from another site's page (DNS rebinding)."""
        if self.key:
            given = headers.get("authorization", "").encode("latin-1")  # as it came
            if path not in self.open_paths and not hmac.compare_digest(given, f"Bearer {self.key}".encode()):
                raise Refused(
                    401, "the API key is missing or wrong: Authorization: Bearer <API_KEY>", code="invalid_api_key"
                )
            return
        host = hostname(f"//{headers.get('host', '')}")
        origin = hostname(headers.get("origin", "http://localhost"))
        if not is_loopback(host):
            raise Refused(403, "without a key only this machine's own address is answered", "host", "host_not_allowed")
        if not is_loopback(origin):
            raise Refused(403, "pages of other sites may not ask this server", "origin", "origin_not_allowed")

    async def read(self, headers: Headers, receive) -> bytes:
        """The body, at most BODY_BYTES in BODY_SECONDS. Raises Refused."""
        too_much = Refused(413, f"the body is larger than {BODY_BYTES} bytes", code="request_too_large")
        if headers.get("content-length", "0").isdecimal() and int(headers.get("content-length", "0")[:20]) > BODY_BYTES:
            raise too_much
        body = b""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > BODY_BYTES:
                        raise too_much
                    if not message.get("more_body", False):
                        return body
        except TimeoutError:
            raise Refused(408, f"the body was not there after {BODY_SECONDS} seconds", code="timeout") from None


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return False


def hostname(url: str) -> str:
    with contextlib.suppress(ValueError):
        return urlsplit(url).hostname or ""
    return ""


def error_body(
    message: str, type: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict:
    message, param = (text and printable(text) for text in (message, param))
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def error_answer(refusal: Refused) -> JSONResponse:
    type = {401: "authentication_error", 429: "rate_limit_error"}.get(refusal.status, "invalid_request_error")
    headers = {"Retry-After": "1"} if refusal.status == 429 else {}
    headers |= {"Connection": "close"} if refusal.status in (408, 413) else {}  # the rest of the body is not read
    return JSONResponse(error_body(refusal.message, type, refusal.param, refusal.code), refusal.status, headers=headers)


async def on_refused(_, error: Refused) -> Response:
    return error_answer(error)


async def on_unknown_model(_, error: UnknownModel) -> Response:
    return error_answer(Refused(404, str(error), "model", "model_not_found"))


async def on_too_long(_, error: TooLong) -> Response:
    return error_answer(Refused(400, str(error), "messages", "context_length_exceeded"))


async def on_busy(_, error: Busy) -> Response:
    return error_answer(Refused(429, str(error), code="busy"))


async def on_invalid(_, error: RequestValidationError) -> Response:
    """Names the first wrong key; what was sent is not repeated."""
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:])[:200]
    return error_answer(Refused(400, f"{param or 'the body'}: {first['msg']}", param or None, first["type"]))


async def on_http(_, error: HTTPException) -> Response:
    answer = error_answer(Refused(error.status_code, str(error.detail)))
    answer.headers.update(error.headers or {})
    return answer


HANDLERS = {
    Refused: on_refused,
    UnknownModel: on_unknown_model,
    TooLong: on_too_long,
    Busy: on_busy,
    RequestValidationError: on_invalid,
    HTTPException: on_http,
}


class Raw(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The docstring as it was written."""


if __name__ == "__main__":
    try:
        main(*HfArgumentParser(ServeConfig, description=__doc__, formatter_class=Raw).parse_args_into_dataclasses())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"chat.server: {error}")
