"""A judge on loopback that speaks OpenAI's chat completions, as much as experiments/judge.py needs.

    with FakeJudge(lambda prompt: "Because. [[1]]") as judge:
        ... base_url=judge.url, api_key=judge.key ...

`answer` gets a prompt and gives the text, or what is to go wrong: a status, a (status, headers), a float (seconds of silence
before the answer, which is then "[[1]]"), or bytes (the body as it is). A wrong key is answered 401, and the message quotes
it, as OpenAI's does; another body than a chat's 400.
"""

import json
import threading
import time
from collections.abc import Callable

from tests.loopback import Loopback


class FakeJudge(Loopback):
    """prompts: what was asked, in order. bodies: the requests' bodies. most: how many were answered at a time, at most."""

    key = "sk-of-the-tests-alone"

    def __init__(self, answer: Callable):
        super().__init__()
        self.url += "/v1"
        self.answer, self.prompts, self.bodies = answer, [], []
        self.most = self._now = 0
        self._lock = threading.Lock()

    def reply(self, method: str, path: str, headers, raw: bytes) -> tuple[int, dict[str, str], object]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return self.judged(path, headers, raw)
        finally:
            with self._lock:
                self._now -= 1

    def judged(self, path: str, headers, raw: bytes) -> tuple[int, dict[str, str], object]:
        given = headers.get("Authorization")
        if given != f"Bearer {self.key}":
            return _error(401, f"Incorrect API key provided: {given}")
        body = json.loads(raw)
        if path != "/v1/chat/completions" or body.keys() != {"model", "messages", "temperature", "max_tokens"}:
            return _error(400, f"cannot answer {path} with {sorted(body)}")
        prompt = body["messages"][-1]["content"]
        with self._lock:
            self.prompts.append(prompt)
            self.bodies.append(body)
        found = self.answer(prompt)
        if isinstance(found, float):
            time.sleep(found)
            found = "[[1]]"
        if isinstance(found, int):
            return _error(found, "out of order")
        if isinstance(found, tuple):
            status, headers = found
            return status, headers, b"slow down"
        if isinstance(found, bytes):
            return 200, {"Content-Type": "text/html"}, found
        choice = {"index": 0, "message": {"role": "assistant", "content": found}, "finish_reason": "stop"}
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
        return 200, {}, answer


def _error(status: int, message: str) -> tuple[int, dict[str, str], dict]:
    error = {"message": message, "type": "error", "param": None, "code": None}
    return status, {}, {"error": error}
