"""The page in a headless Chromium: takes the README's picture of it, real answers of friend-sft and friend-ppo.

    apt-get install chromium fonts-inter && pip install playwright==1.55.0
    python -m experiments.screenshot                        # -> experiments/figures/page.png

`serving` and `chromium` are the tests' (tests/test_page.py) too.
"""

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

from chat.engine import Engine
from chat.friend import load_friend
from chat.server import Impatient, make_app

FIGURE = Path(__file__).parent / "figures" / "page.png"
INSTALL = "apt-get install chromium && pip install playwright==1.55.0"
SIZE = {"width": 1280, "height": 860}


def main(path: Path = FIGURE) -> None:
    with (
        Engine(["friend-sft", "friend-ppo"]) as engine,
        serving(make_app(load_friend(engine))) as url,
        chromium() as browser,
    ):
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
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


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
