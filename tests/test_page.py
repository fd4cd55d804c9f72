"""chat/page in a real headless Chromium, served by the real server with friend-sft and friend-ppo.

Every test ends by asserting that nothing was logged as an error (which the Content-Security-Policy would do for anything
inline) and that no other host was asked. Not covered: other browsers, and what a screen reader makes of the names.
"""

import asyncio
import contextlib
import json
import re

import pytest

from tests.browser import CONTRAST, PHONE, expect, watched  # first: it skips this module where there is no browser

# isort: split
from chat import server
from chat.engine import Engine
from chat.friend import load_friend
from experiments.screenshot import chromium, serving

MODELS = ["friend-sft", "friend-ppo"]
CONTROLS = {
    "button",
    "textbox",
    "checkbox",
    "combobox",
    "spinbutton",
    "link",
    "meter",
    "region",
    "DisclosureTriangle",
}


class Pace:
    seconds = 0.0  # between two words of a reply


@pytest.fixture(scope="module")
def feedback_file(tmp_path_factory):
    return tmp_path_factory.mktemp("page") / "feedback.jsonl"


@pytest.fixture(scope="module")
def url(feedback_file):
    in_time = server.in_time

    async def slowly(stream):
        async for piece in in_time(stream):
            for word in re.findall(r"\s*\S+|\s+", piece):  # a fast model writes several while one is shown
                yield word
                await asyncio.sleep(Pace.seconds)

    with pytest.MonkeyPatch.context() as patch, Engine(MODELS, dtype="float32") as engine:
        patch.setattr(server, "in_time", slowly)
        with serving(server.make_app(load_friend(engine), feedback_file=str(feedback_file))) as address:
            yield address


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def new_page(browser, url, monkeypatch):
    """Opens the page: new_page(viewport=..., color_scheme=..., expected=r"errors that the test provokes")."""
    monkeypatch.setattr(Pace, "seconds", 0.0)

    def make(**options):
        page = pages.enter_context(watched(browser, url, **options))
        expect(page.locator("#open")).to_be_enabled()
        return page

    with contextlib.ExitStack() as pages:
        yield make


def show_openers(page, facts="keeps bees\nis a nurse in Leeds", greeting="", n=1, seed=1):
    page.locator("#facts").fill(facts)
    page.locator("#greeting").fill(greeting)
    page.evaluate(f"document.getElementById('n').value = {n}; document.getElementById('seed').value = {seed}")
    page.locator("#open").click()
    expect(page.locator(".card")).to_have_count(2 * n)


def begin(page, **scene):
    show_openers(page, **scene)
    page.locator(".pick").last.click()
    expect(page.locator("#say")).to_be_focused()


def say(page, text, wait=True):
    page.locator("#say").fill(text)
    page.keyboard.press("Enter")
    if wait:
        finished(page)


def finished(page):
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator(".writing")).to_have_count(0)


def texts(page) -> list[str]:
    return page.locator(".turn .text").all_text_contents()


def rows(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


# ------------------------------------------------------------------------------------------------- what it does


def test_candidates_of_both_models_side_by_side(new_page, url):
    page = new_page()
    show_openers(page, n=3)
    best = []
    for column, model in zip(page.locator(".column").all(), MODELS, strict=True):
        expect(column.locator("h3")).to_have_text(model)
        asked = {"model": model, "profile": ["keeps bees", "is a nurse in Leeds"], "n": 3, "seed": 1}
        openers = page.request.post(f"{url}openers", data=asked).json()["openers"]
        assert column.locator(".opener").all_text_contents() == [opener["opener"] for opener in openers]
        shown = [float(text.split()[1].replace("−", "-")) for text in column.locator(".score").all_text_contents()]
        assert shown == [round(opener["score"], 2) for opener in openers] == sorted(shown, reverse=True)
        best.append(shown[0])
        for card, opener in zip(column.locator(".card").all(), openers, strict=True):
            assert card.locator(".reactions li > span:first-child").all_text_contents() == list(opener["reactions"])
            widths = card.locator(".track i").evaluate_all(
                "bars => bars.map(bar => bar.getBoundingClientRect().width / bar.parentElement.clientWidth)"
            )
            assert widths == pytest.approx(list(opener["reactions"].values()), abs=0.02)
    winner = page.locator(".card", has=page.locator(".best:visible"))
    expect(winner).to_have_count(1)
    expect(winner.locator(".score")).to_contain_text(f"{max(best):.2f}".replace("-", "−"))
    left, right = (column.bounding_box() for column in page.locator(".column").all())
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"]


def test_pick_and_chat(new_page):
    page = new_page()
    begin(page, greeting="My bees are gone.")
    opener = page.locator(".opener").last.text_content()
    assert texts(page) == ["My bees are gone.", opener]
    expect(page.locator("#with")).to_have_text("with friend-ppo")
    with page.expect_request("**/v1/chat/completions") as asked:
        say(page, "I lost all of them and I feel terrible.")
    body = asked.value.post_data_json
    assert body["model"] == "friend-ppo" and body["profile"] == ["keeps bees", "is a nurse in Leeds"] and body["mood"]
    assert [(m["role"], m["content"]) for m in body["messages"]] == [
        ("user", "My bees are gone."), ("assistant", opener), ("user", "I lost all of them and I feel terrible."),
    ]  # fmt: skip
    assert len(texts(page)) == 4 and texts(page)[-1] not in ("", "(nothing said)")
    expect(page.locator("#mood-name")).to_have_text("comfort")
    assert int(page.locator("#low").get_attribute("aria-valuenow")) > 30


@pytest.mark.slow
def test_a_reply_comes_in_pieces_and_is_told_once(new_page):
    Pace.seconds = 0.05
    page = new_page()
    begin(page)
    page.evaluate("""() => {
      window.told = []; window.seen = new Set();
      new MutationObserver(() => told.push(document.getElementById('told').textContent))
        .observe(document.getElementById('told'), {childList: true, characterData: true, subtree: true});
      new MutationObserver(() => seen.add(document.querySelector('.turn:last-child .text').textContent))
        .observe(document.getElementById('turns'), {childList: true, characterData: true, subtree: true});
    }""")
    say(page, "hello, how are you today?")
    assert page.evaluate("seen.size") > 3
    assert page.evaluate("told") == [f"friend-ppo says: {texts(page)[-1]}"]
    assert page.locator("[aria-live] .text, [role=log]").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize("by", ["Escape", "button"])
def test_stop_in_the_midst(new_page, by):
    page = new_page()
    begin(page)
    Pace.seconds = 30  # what is shown stays at one word until it is stopped, which ends this too
    say(page, "tell me about your day", wait=False)
    expect(page.locator(".writing .text")).not_to_be_empty()
    page.keyboard.press("Escape") if by == "Escape" else page.get_by_role("button", name="Stop").click()
    finished(page)
    stopped = texts(page)[-1]
    assert stopped not in ("", "(nothing said)")
    expect(page.locator(".turn").last.locator(".who")).to_contain_text("stopped")
    expect(page.locator("#say")).to_be_focused()
    Pace.seconds = 0.0
    with page.expect_request("**/v1/chat/completions") as asked:
        say(page, "and then?")
    assert asked.value.post_data_json["messages"][-2] == {"role": "assistant", "content": stopped}
    assert texts(page)[2] == stopped and len(texts(page)) == 5


@pytest.mark.slow
def test_retry_and_edit(new_page):
    page = new_page()
    begin(page)
    say(page, "I keep bees")
    with page.expect_request("**/v1/chat/completions") as asked:
        page.get_by_role("button", name="Retry").click()
        finished(page)
    assert asked.value.post_data_json["messages"][-1]["content"] == "I keep bees"
    assert len(texts(page)) == 3
    page.get_by_role("button", name="Edit").click()
    expect(page.locator("#say")).to_have_value("I keep bees")
    page.keyboard.press("Escape")
    expect(page.locator("#say")).to_have_value("")
    page.get_by_role("button", name="Edit").click()
    say(page, "I sell honey")
    assert texts(page)[1] == "I sell honey" and len(texts(page)) == 3
    expect(page.locator("#editing")).to_be_hidden()


@pytest.mark.slow
def test_an_opener_can_be_retried(new_page):
    page = new_page()
    begin(page)
    with page.expect_request("**/openers"):
        page.get_by_role("button", name="Retry").click()
    finished(page)
    assert len(texts(page)) == 1 and texts(page)[0] not in ("", "(nothing said)")


def test_votes_are_stored_after_the_person_agreed(new_page, feedback_file):
    page = new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/feedback") else None)
    begin(page)
    opener = texts(page)[0]
    say(page, "hello there")
    assert not page.get_by_role("button", name="Good reply").count() and not asked and not rows(feedback_file)

    page.get_by_label("Let this chat teach the friend").check()
    with page.expect_response("**/feedback") as answer:
        page.get_by_role("button", name="Good reply").first.click()
    assert answer.value.status == 204
    expect(page.get_by_role("button", name="Good reply").first).to_have_attribute("aria-pressed", "true")
    row = rows(feedback_file)[-1]
    assert (row["kind"], row["surface"], row["model"], row["response"]) == ("thumb_up", "page", "friend-ppo", opener)
    assert row["profile"] == ["keeps bees", "is a nurse in Leeds"] and row["context"] == []

    with page.expect_response("**/feedback"):
        say(page, "tell me more please")
    row = rows(feedback_file)[-1]
    assert row["kind"] == "continued" and row["reply_words"] == 4 and row["context"] == [opener, "hello there"]
    reply = texts(page)[-1]
    with page.expect_response("**/feedback"):
        page.get_by_role("button", name="Reword").last.click()
        say(page, "What a lovely day!")
    assert [rows(feedback_file)[-1][key] for key in ("kind", "response", "instead")] == [
        "edit",
        reply,
        "What a lovely day!",
    ]
    assert texts(page)[-1] == "What a lovely day!"
    with page.expect_response("**/feedback"):
        say(page, "yes")
        page.get_by_role("button", name="Retry").click()
    finished(page)
    assert rows(feedback_file)[-1]["kind"] == "retry" and len({row["who"] for row in rows(feedback_file)}) == 1
    page.get_by_label("Let this chat teach the friend").uncheck()
    assert not page.get_by_role("button", name="Good reply").count()


@pytest.mark.slow
def test_no_opt_in_box_where_the_server_stores_nothing(new_page):
    page = new_page()
    expect(page.locator("#share-row")).to_be_visible()
    page.route("**/health", lambda route: route.fulfill(json={"status": "ok", "models": MODELS, "feedback": False}))
    page.reload()
    expect(page.locator("#open")).to_be_enabled()
    expect(page.locator("#share-row")).to_be_hidden()


@pytest.mark.slow
def test_care_is_marked_as_such(new_page):
    page = new_page()
    begin(page)
    say(page, "I want to kill myself")
    turn = page.locator(".turn").last
    expect(turn).to_have_class(re.compile("care"))
    expect(turn.locator(".who")).to_contain_text("fixed answer")
    expect(turn.locator(".text")).to_contain_text("emergency number")
    expect(turn.get_by_role("button")).to_have_count(0)
    show_care = new_page()
    show_care.locator("#greeting").fill("I want to kill myself")
    show_care.locator("#open").click()
    expect(show_care.locator(".fixed:visible")).to_have_count(2)
    show_care.locator(".pick").first.click()
    expect(show_care.locator(".turn").last).to_have_class(re.compile("care"))


@pytest.mark.slow
def test_what_is_written_stays_text(new_page):
    page = new_page()
    evil = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    begin(page, facts=evil, greeting=evil)
    say(page, evil)
    assert texts(page)[0] == evil and page.locator("main img, main script").count() == 0


@pytest.mark.slow
def test_surprise_and_one_model(new_page):
    page = new_page()
    before = page.locator("#facts").input_value()
    page.get_by_role("button", name="Surprise me").click()
    assert page.locator("#facts").input_value() not in ("", before)
    page.get_by_role("button", name="Night porter").click()
    expect(page.locator("#facts")).to_have_value(re.compile("^night porter in Krakow\n"))
    page.get_by_label("against").select_option("no other")
    page.evaluate("document.getElementById('n').value = 2")
    page.locator("#open").click()
    expect(page.locator(".card")).to_have_count(2)
    expect(page.locator(".column")).to_have_count(1)


# ------------------------------------------------------------------------------------------------- when it goes wrong


@pytest.mark.slow
def test_nothing_known_is_said_in_words(new_page):
    page = new_page()
    page.locator("#facts").fill(" \n ")
    page.locator("#greeting").fill("")
    page.locator("#open").click()
    expect(page.get_by_role("alert")).to_contain_text("Write a fact")
    expect(page.locator("#facts")).to_be_focused()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "words"),
    [(429, "Wait a few seconds"), (500, "Try again"), (401, "Key of this server"), (None, "start it again")],
)
def test_errors_are_said_in_words_and_the_chat_goes_on(new_page, status, words):
    page = new_page(expected="Failed to load resource")
    begin(page)
    body = {"error": {"message": "no", "type": "x", "param": None, "code": None}}
    answer = (lambda route: route.fulfill(status=status, json=body)) if status else (lambda route: route.abort())
    page.route("**/v1/chat/completions", answer)
    say(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.locator("#key-row")).to_be_visible(visible=status == 401)
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Retry").click()
    finished(page)
    expect(page.locator("#chat-trouble")).to_be_hidden()
    assert len(texts(page)) == 3 and texts(page)[-1] not in ("", "(nothing said)")


@pytest.mark.slow
def test_a_server_that_is_gone_and_a_broken_stream(new_page):
    page = new_page(expected="Failed to load resource")
    begin(page)
    half = 'data: {"choices": [{"delta": {"content": "Half a"}}]}\n\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=half, content_type="text/event-stream"))
    say(page, "hello")
    assert texts(page)[-1] == "Half a"
    expect(page.get_by_role("alert")).to_contain_text("connection broke")
    page.route("**/openers", lambda route: route.abort())
    page.locator("#open").click()
    expect(page.locator("#scene-trouble")).to_contain_text("does not answer")
    expect(page.locator(".waiting")).to_have_count(0)


# ------------------------------------------------------------------------------------------------- who can use it


@pytest.mark.slow
def test_by_keyboard_alone(new_page):
    page = new_page()
    page.evaluate("document.getElementById('n').value = 2")
    order = []
    for _ in range(13):
        page.keyboard.press("Tab")
        order.append(page.evaluate("(document.activeElement.id || document.activeElement.textContent.trim())"))
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) != "none", f"{order[-1]}: focus cannot be seen"
    assert order[0] == "Skip to the conversation" and order[1:3] == ["facts", "greeting"]
    assert order[6:11] == ["surprise", "left", "right", "Sampling", "open"]
    page.locator("#open").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(4)
    page.keyboard.press("Tab")
    picks = page.locator(".pick")
    for key, at in (("ArrowDown", 1), ("ArrowRight", 3), ("ArrowUp", 2), ("ArrowLeft", 0), ("ArrowRight", 2)):
        page.keyboard.press(key)
        expect(picks.nth(at)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#say")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(page.locator("#say")).to_have_value("one\ntwo")
    page.keyboard.press("Enter")
    finished(page)
    assert texts(page)[-2] == "one\ntwo"
    expect(page.locator("#say")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")  # Retry stands before the message field
    finished(page)
    assert len(texts(page)) == len(set(texts(page))) and page.locator(".turn").count() >= 3


@pytest.mark.slow
def test_on_a_phone(new_page):
    page = new_page(viewport=PHONE, has_touch=True, is_mobile=True)

    def fits():
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]

    fits()
    begin(page, facts="a" * 200, greeting="b" * 200, n=2)
    fits()
    say(page, "w" * 300)
    page.get_by_label("Let this chat teach the friend").check()
    fits()
    small = page.locator("button:visible, select:visible, textarea:visible").evaluate_all(
        "all => all.filter(e => Math.min(e.offsetWidth, e.offsetHeight) < 32).map(e => e.outerHTML.slice(0, 80))"
    )
    assert small == []  # WCAG 2.2 asks for 24 pixels


@pytest.mark.slow
def test_every_control_has_a_name_and_there_are_landmarks(new_page):
    page = new_page()
    begin(page)
    page.get_by_label("Let this chat teach the friend").check()
    say(page, "hello")
    page.get_by_text("Sampling", exact=True).click()
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    nodes = [node for node in nodes if not node["ignored"]]
    named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes]
    assert [pair for pair in named if pair[0] in CONTROLS and not pair[1].strip()] == []
    roles = [role for role, _ in named]
    assert {"banner", "main", "region", "meter", "alert", "status"} - set(roles) <= {
        "alert"
    }  # hidden while all is well
    assert {"The person", "Openers", "Conversation"} <= {name for role, name in named if role == "region"}
    assert [name for role, name in named if role == "button"].count("Good reply") == 2
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(new_page, scheme):
    page = new_page(color_scheme=scheme)
    begin(page, n=1)
    page.get_by_label("Let this chat teach the friend").check()
    say(page, "hello")
    say(page, "I want to kill myself")
    page.locator("#facts").fill("")
    page.locator("#greeting").fill("")
    page.locator("#open").click()  # shows the error too
    assert page.evaluate(CONTRAST) == []


@pytest.mark.slow
def test_nothing_moves_for_those_who_asked_for_that(new_page):
    page = new_page(reduced_motion="reduce")
    page.route("**/openers", lambda route: None)  # never answered
    page.locator("#open").click()
    waiting = page.locator(".waiting").first
    expect(waiting).to_be_visible()
    assert waiting.evaluate("e => getComputedStyle(e).animationName") == "none"
    page.keyboard.press("Escape")
    expect(page.locator(".waiting")).to_have_count(0)


@pytest.mark.slow
def test_dark_and_light_differ(new_page):
    ground = "getComputedStyle(document.body).backgroundColor"
    assert new_page(color_scheme="dark").evaluate(ground) != new_page(color_scheme="light").evaluate(ground)


def test_the_page_asks_nobody_else_and_has_nothing_inline(new_page, url):
    page = new_page()
    html = page.request.get(url)
    policy = html.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|https?://", html.text())
    for name in ("page.js", "page.css"):
        assert not re.search(r"https?://|@import|eval\(|innerHTML", page.request.get(url + name).text())
