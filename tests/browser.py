"""A headless Chromium for tests of pages. A module that imports this is skipped where there is none, unless
REQUIRE_CHROMIUM is set."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

INSTALL = "apt-get install chromium && pip install playwright==1.55.0"
missing = None if any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))) else "chromium"
try:
    from playwright.sync_api import Browser, Page, expect
except ImportError:
    missing = "playwright"
if missing and os.environ.get("REQUIRE_CHROMIUM"):
    raise RuntimeError(f"{missing} is missing: {INSTALL}")
if missing:
    pytest.skip(f"{missing} is missing: {INSTALL}", allow_module_level=True)

MS = 60_000  # that a step may take before the test fails: a busy machine fails none
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 860}
expect.set_options(timeout=MS)


@contextmanager
def watched(browser: Browser, url: str, expected: str = "$^", viewport: dict = DESK, **options) -> Iterator[Page]:
    """`url` in a context of its own. Fails at the end if something was logged as an error or a warning that does not match
    `expected`, if a dialog came up, or if another address was asked for anything."""
    context = browser.new_context(viewport=viewport, **options)
    context.set_default_timeout(MS)
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss()))
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(("data:", url)) else None)
    page.goto(url)
    try:
        yield page
    finally:
        context.close()
    wrong = [line for line in wrong if not re.search(expected, line)]
    assert not wrong, "the page logged, showed or asked for:\n" + "\n".join(wrong)


#: Texts below 4.5:1 against the nearest background behind them (WCAG 1.4.3), and borders of fields below 3:1 (1.4.11).
CONTRAST = """() => {
  const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, part, i) => sum + part * linear(c[i] / 255), 0);
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const ground = (e) => rgb(getComputedStyle(e).backgroundColor);
  const behind = (e) => (ground(e)[3] === 0 ? behind(e.parentElement) : ground(e));
  const wrong = [];
  for (const e of document.body.querySelectorAll("*")) {
    if (!e.checkVisibility() || e.closest(".unseen, .skip, template, svg")) continue;
    const style = getComputedStyle(e);
    const isField = e.matches("input:not([type=checkbox]), textarea, select");
    const says = isField || [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (says && !e.disabled && ratio(rgb(style.color), behind(e)) < 4.5) wrong.push(e.outerHTML.slice(0, 90));
    if (isField && ratio(rgb(style.borderTopColor), behind(e.parentElement)) < 3) wrong.push("border of " + e.id);
  }
  return wrong;
}"""
