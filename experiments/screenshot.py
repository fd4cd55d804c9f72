"""The README's pictures of the page, in a headless Chromium, and of the terminal: real answers of the shipped models.

    apt-get install chromium fonts-inter && pip install playwright==1.55.0
    python -m experiments.screenshot            # -> experiments/figures/page.png, terminal.svg

`serving` and `chromium` are the tests' (tests/browser.py, tests/test_page.py) too.
"""

import io
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console

from chat.engine import Engine
from chat.friend import Friend, load_friend
from chat.server import Impatient, make_app
from chat.terminal import Terminal, TerminalConfig

FIGURES = Path(__file__).parent / "figures"
INSTALL = "apt-get install chromium && pip install playwright==1.55.0"
SIZE = {"width": 1280, "height": 860}


#: What the person types in the picture of the terminal.
TALK = """/profile three-legged cat called Tripod; lives in Oulu; speech therapist
He fell off the sofa again, but he is fine.
/score
I can't sleep since my father went into hospital.
/mood
/quit
"""


def main(figures: Path = FIGURES) -> None:
    with Engine(["friend-sft", "friend-ppo"]) as engine:
        friend = load_friend(engine)
        for picture, name in ((picture_of_page, "page.png"), (picture_of_terminal, "terminal.svg")):
            path = figures / name
            picture(friend, path)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def picture_of_page(friend: Friend, path: Path) -> None:
    with serving(make_app(friend)) as url, chromium() as browser:
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(url)
        page.get_by_role("button", name="Table tennis").click()
        page.get_by_text("Sampling", exact=True).click()
        page.get_by_label("Openers each").fill("2")
        page.get_by_label("Seed").fill("1")
        page.get_by_text("Sampling", exact=True).click()
        page.get_by_role("button", name="Open").click()
        page.locator(".best:visible").wait_for()
        page.locator(".column").last.get_by_role("button").first.click()
        for message in ("He taught me to play. Now he wants a rematch tomorrow.", "I am a bit nervous, to be honest."):
            page.get_by_label("Your message").fill(message)
            page.keyboard.press("Enter")
            page.get_by_role("button", name="Retry").wait_for()
            time.sleep(0.5)  # for the mood
        page.mouse.move(0, 0)
        page.screenshot(path=path)


def picture_of_terminal(friend: Friend, path: Path) -> None:
    console = Console(record=True, force_terminal=True, width=96, file=io.StringIO(), highlight=False)
    typed, sys.stdin = sys.stdin, io.StringIO(TALK)
    try:
        Terminal(friend, TerminalConfig(models=["friend-ppo"], seed=1), console).run()
    finally:
        sys.stdin = typed
    console.save_svg(str(path), title="make chat")


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The app on a free port of 127.0.0.1, in a thread; gives its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        settings = uvicorn.Config(
            app, http=Impatient, ws="none", lifespan="off", log_level="warning", timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium without a window. Raises FileNotFoundError with the line that installs it."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise FileNotFoundError(f"no Chromium on this machine: {INSTALL}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        try:
            yield browser
        finally:
            browser.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
