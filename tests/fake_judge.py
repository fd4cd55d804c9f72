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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeJudge:
    """prompts: what was asked, in order. bodies: the requests' bodies. most: how many were answered at a time, at most."""

    key = "sk-of-the-tests-alone"

    def __init__(self, answer: Callable):
        self.answer, self.prompts, self.bodies = answer, [], []
        self.most = self._now = 0
        self._lock = threading.Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                with judge._lock:
                    judge._now += 1
                    judge.most = max(judge.most, judge._now)
                status, headers, body = judge.reply(self)
                with judge._lock:
                    judge._now -= 1
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # the client has stopped waiting

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> "FakeJudge":
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def reply(self, request: BaseHTTPRequestHandler) -> tuple[int, dict, bytes]:
        raw = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        given = request.headers.get("Authorization")
        if given != f"Bearer {self.key}":
            return _error(401, f"Incorrect API key provided: {given}")
        body = json.loads(raw)
        if request.path != "/v1/chat/completions" or body.keys() != {"model", "messages", "temperature", "max_tokens"}:
            return _error(400, f"cannot answer {request.path} with {sorted(body)}")
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
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()


def _error(status: int, message: str) -> tuple[int, dict, bytes]:
    error = {"message": message, "type": "error", "param": None, "code": None}
    return status, {"Content-Type": "application/json"}, json.dumps({"error": error}).encode()
