"""Dockerfile, .dockerignore and compose.yaml, without Docker.

The slow test replays the Dockerfile's instructions below a directory: its RUN lines by sh, its COPY of what .dockerignore
lets through, then its CMD, HEALTHCHECK and the bot, as a user without rights where root runs the tests and that user may
run this python. Packages come from TORCH_INDEX (default: PyPI's) and pip's own index.
Not covered: the base image itself (its libraries, its python), layers, the read-only root that compose asks for.
"""

import asyncio
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from fnmatch import translate
from pathlib import Path

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from tests.fake_telegram import FakeTelegram
from tests.test_house import PACKAGES, files_of, imports

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Dockerfile").read_text()
SECRET = re.compile(r"token|key|secret|password", re.IGNORECASE)
#: The directories that the Dockerfile names; the replay has them below its own.
PLACES = re.compile(r"(?<![\w./])/(opt/icebreaker|build|app|state)\b")
UID = 10001
NOBODY = {"user": UID, "group": UID, "extra_groups": []}


def instructions(name: str | None = None) -> list:
    """(instruction, value) in order; of one name, its values."""
    parser = DockerfileParser(fileobj=io.BytesIO(TEXT.encode()))
    found = [(i["instruction"], i["value"]) for i in parser.structure if i["instruction"] != "COMMENT"]
    return [value for kind, value in found if kind == name] if name else found


def variables(value: str) -> dict[str, str]:
    """Of ENV or ARG."""
    return dict(word.split("=", 1) for word in shlex.split(value))


def lets_through(path: str, rules: list[str]) -> bool:
    """Whether .dockerignore leaves a file in the context: the last rule that matches it or a folder above it decides."""
    parts = path.split("/")
    above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    ignored = False
    for rule in rules:
        pattern = rule.lstrip("!")
        names = parts if pattern.startswith("**/") else above
        if any(re.match(translate(pattern.removeprefix("**/")), name) for name in names):
            ignored = not rule.startswith("!")
    return not ignored


def rules() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_would_say_something(tmp_path):
    (tmp_path / "Dockerfile").write_text(TEXT.replace("python:3.11-slim AS", "python AS"))
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode != 0 and "DL3006" in done.stdout


def test_the_image_is_of_a_pinned_base_in_two_stages_and_of_a_user_without_rights():
    assert [value.split()[0] for value in instructions("FROM")] == ["python:3.11-slim"] * 2
    kinds = [kind for kind, _ in instructions()]
    last = kinds[len(kinds) - kinds[::-1].index("FROM") :]
    assert instructions("USER") == [f"{UID}:{UID}"] and "USER" in last
    assert "pip" not in " ".join(value for _, value in instructions()[-len(last) :]), "no installing in the last stage"
    assert json.loads(instructions("CMD")[0])[:3] == ["python", "-m", "chat.server"]


def test_pins_are_the_makefiles():
    makefile = (ROOT / "Makefile").read_text()
    pins = re.findall(r"\b[a-z0-9-]+==\S+", " ".join(instructions("RUN")))
    assert len(pins) == 2 and all(pin in makefile for pin in pins)
    assert "[dev]" not in TEXT


def test_no_secret_is_baked_in():
    names = [name for kind in ("ENV", "ARG") for value in instructions(kind) for name in variables(value)]
    assert names and not [name for name in names if SECRET.search(name)]
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    for service in compose["services"].values():
        given = service["environment"]
        given = given if isinstance(given, dict) else dict.fromkeys(given)
        assert any(SECRET.search(name) for name in given)
        assert all(value is None for name, value in given.items() if SECRET.search(name)), "from the environment alone"


@pytest.mark.parametrize(
    ("path", "is_in"),
    (
        ("pyproject.toml", True), ("telegram_bot.py", True), ("chat/page/index.html", True), ("models/mood.yaml", True),
        ("models/pretrained/friend-base/model.safetensors", True), ("experiments/run.py", True),
        (".env", False), ("chat/.env", False), ("chat/.env.local", False), (".git/config", False),
        (".venv/bin/python", False),
        ("runs/telegram.sqlite", False), ("tests/conftest.py", False), ("chat/__pycache__/server.pyc", False),
        ("data/table.tmp", False), ("README.md", False),
    ),
)  # fmt: skip
def test_the_context_has_what_the_image_needs_and_no_more(path, is_in):
    assert lets_through(path, rules()) == is_in


def test_the_image_has_every_package_that_the_server_and_the_bot_import():
    copied = {value.split()[-1].strip("./") for value in instructions("COPY")}
    for part in copied & PACKAGES - {"experiments"} | {"experiments.run"}:
        for file in files_of(part):
            assert {name.split(".")[0] for name in imports(file.read_text())} <= copied, file


def test_compose_runs_both_without_rights():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    server, bot = compose["services"]["server"], compose["services"]["bot"]
    assert all(port.startswith("127.0.0.1:") for port in server["ports"]) and "ports" not in bot
    assert "state:/state" in bot["volumes"] and "state" in compose["volumes"]
    env = {name: value for text in instructions("ENV") for name, value in variables(text).items()}
    assert env["TG_DATABASE"].startswith("/state/") and env["FEEDBACK_FILE"].startswith("/state/")
    assert bot["healthcheck"] == {"disable": True} and "healthcheck" not in server
    for service in (server, bot):
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["init"]


class Image:
    """The Dockerfile replayed below `root`: `env` and `cwd` as its last stage leaves them."""

    def __init__(self, root: Path):
        self.root, self.cwd, self.env = root, root, {}
        arguments = {}
        for kind, value in instructions():
            if kind == "ARG":
                arguments |= variables(value)
                # The index that this machine's pip reaches; what the Dockerfile names differs in torch's build alone.
                arguments["TORCH_INDEX"] = os.environ.get("TORCH_INDEX", "https://pypi.org/simple")
            elif kind == "FROM":
                self.env, self.cwd = {}, root
            elif kind == "ENV":
                self.env |= {name: self.moved(text) for name, text in variables(value).items()}
            elif kind == "WORKDIR":
                self.cwd = Path(self.moved(value))
                self.cwd.mkdir(parents=True, exist_ok=True)
            elif kind == "COPY":
                self.copy(*value.split())
            elif kind == "RUN":
                command = self.moved(re.sub(r"--mount=\S+", "", value)).strip()
                # The base image's python is this one's.
                path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
                done = subprocess.run(
                    ["sh", "-ec", command], cwd=self.cwd, env={**outside(), **self.env, **arguments, "PATH": path},
                    capture_output=True, text=True,
                )  # fmt: skip
                assert done.returncode == 0, f"RUN {command}\n{done.stdout[-3000:]}{done.stderr[-6000:]}"
        self.env["PATH"] = self.env["PATH"].replace("$PATH", "/usr/local/bin:/usr/bin:/bin")

    def moved(self, text: str) -> str:
        return PLACES.sub(rf"{self.root}/\1", text)

    def copy(self, *words: str) -> None:
        *flags, source, target = words
        if any(flag.startswith("--from") for flag in flags):
            assert source == target and Path(self.moved(source)).is_dir()  # a stage's files lie where the next one's do
            return
        modes = [int(flag.removeprefix("--chmod="), 8) for flag in flags if flag.startswith("--chmod")]
        files = (
            [ROOT / source]
            if (ROOT / source).is_file()
            else sorted(f for f in (ROOT / source).rglob("*") if f.is_file())
        )
        files = [file for file in files if lets_through(file.relative_to(ROOT).as_posix(), rules())]
        assert files, f"COPY {source}: nothing of it is in the context"
        for file in files:
            there = self.cwd / file.relative_to(ROOT)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, there)
            for mode in modes:
                there.chmod(mode)

    def start(self, command: list[str], port: int, **env: str) -> subprocess.Popen:
        """A container's process: its environment, its folder, its user."""
        who = NOBODY if may_run(self.moved("/opt/icebreaker/bin/python")) else {}
        return subprocess.Popen(
            ["env", *(word.replace("8000", str(port)) for word in command)], cwd=self.cwd, text=True, **who,
            env={**self.env, "OMP_NUM_THREADS": "1", **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, command: list[str], port: int = 8000, **env: str) -> tuple[int, str]:
        process = self.start(command, port, **env)
        said, _ = process.communicate(timeout=300)
        return process.returncode, said


def may_run(python: str) -> bool:
    """Whether a user without rights may start it: not where this machine's python lies in somebody's home."""
    try:
        return os.geteuid() == 0 and subprocess.run([python, "-c", ""], **NOBODY).returncode == 0
    except PermissionError:
        return False


def outside() -> dict[str, str]:
    """What a build needs of this machine: how to reach an index."""
    return {
        k: v
        for k, v in os.environ.items()
        if re.match(r"PIP_|SSL_|REQUESTS_|HOME$|TMPDIR$|.*_proxy$", k, re.IGNORECASE)
    }


def free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return any_port.getsockname()[1]


def ask(port: int, key: str | None) -> tuple[int, str]:
    body = {"model": "friend-ppo", "messages": [{"role": "user", "content": "Hello there!"}], "max_tokens": 8}
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def image():
    root = Path(tempfile.mkdtemp(prefix="image-"))  # not tmp_path: another user must be able to enter it
    try:
        root.chmod(0o755)
        yield Image(root)
    finally:
        shutil.rmtree(root)


@pytest.mark.slow
def test_the_server_starts_in_the_image(image):
    """It refuses to without a key; with one, HEALTHCHECK turns good, the key is asked for, and SIGTERM ends it."""
    command, port = json.loads(instructions("CMD")[0]), free_port()
    code, said = image.run(command, port)
    assert code != 0 and "API_KEY" in said
    check = json.loads(instructions("HEALTHCHECK")[0].split("CMD", 1)[1])
    assert image.run(check, port)[0] != 0
    server = image.start(command, port, API_KEY="of-the-test")
    try:
        end = time.monotonic() + 300
        while image.run(check, port)[0] != 0:
            assert server.poll() is None and time.monotonic() < end, server.communicate()[0]
        assert ask(port, None)[0] == 401
        code, said = ask(port, "of-the-test")
        assert code == 200 and json.loads(said)["choices"][0]["message"]["content"], said
        server.send_signal(signal.SIGTERM)
        said, _ = server.communicate(timeout=60)
        assert "Traceback" not in said and "of-the-test" not in said
    finally:
        server.kill()


@pytest.mark.slow
def test_the_bot_starts_in_the_image(image):
    """It greets somebody, its database is in /state, and SIGTERM ends it well."""
    command = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["bot"]["command"]

    async def talk() -> tuple[int, str]:
        async with FakeTelegram() as telegram:
            telegram.say(7, "/start")
            bot = image.start(shlex.split(command) if isinstance(command, str) else command, 8000,
                              TG_BOT_TOKEN=telegram.token, TG_API_BASE=telegram.base)  # fmt: skip
            try:
                replies = await telegram.replies(7, 2, timeout=300)
                assert all(reply["text"] for reply in replies)
                bot.send_signal(signal.SIGTERM)
                said, _ = await asyncio.to_thread(bot.communicate, timeout=60)
                assert telegram.token not in said
                return bot.returncode, said
            finally:
                bot.kill()

    code, said = asyncio.run(talk())
    assert code == 0, said
    assert (image.root / "state" / "telegram.sqlite").exists()
