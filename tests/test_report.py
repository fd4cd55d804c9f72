"""experiments/compare/report.py: its page in a real headless Chromium without network, made of made-up rows.

Every test ends by asserting that nothing was logged as an error and that nobody was asked for anything.
Not covered: other browsers, what a screen reader makes of the names, and that the figures show what they say.
"""

import contextlib
import re

import numpy as np
import pytest
import torch

from tests.browser import CONTRAST, expect, watched  # first: it skips this module where there is no browser

# isort: split
from data.scenes import Scene
from experiments.compare import __main__ as compare
from experiments.compare import report
from experiments.compare.arms import MOOD
from experiments.compare.figures import plt
from experiments.compare.table import tabulate
from experiments.compare.verdict import verdict
from experiments.screenshot import chromium

pytestmark = pytest.mark.slow  # as tests/test_page.py: a browser is slow to come

ARMS = ["base", "sft", MOOD, "best-of-2", "ppo", "human"]
MARKUP = "<script>document.title = 'taken'</script><img src=\"http://outside.example/x.png\" onerror=alert(1)> & you?"
SCENES = [
    Scene("a", ("keeps bees", "is a nurse in Leeds"), "The bees are back!"),
    Scene("b", ("paints <b>cats</b>",)),
    Scene("c", (), "Hello, who is there?"),
]
TEXTS = {
    "base": "bees bees bees",
    "sft": "How are the bees?",
    "ppo": "Tell me about your day!",
    "human": "Hi, neighbour",
}
CURVES = {"ppo": [[{"step": s, "eval/score": 0.1 * s, "eval/kl": 0.5 * s} for s in range(3)] for _ in (1, 2)]}


class Proxy:
    """Expects less of longer openers."""

    labels = ["happiness", "disengaged"]

    def score(self, rows):
        happy_B = torch.tensor([1 / (1 + len(row["response"].split())) for row in rows])
        return torch.logit(happy_B), torch.stack([happy_B, 1 - happy_B], 1)


def made_up():
    """Rows: the pool of SFT's four samples, whose second is the best of the first two; PPO of two seeds, better; the base,
    worse; and somebody who wrote for one scene alone."""
    rng, rows = np.random.default_rng(0), []
    counts = {("base", 0): 2, ("sft", 0): 4, ("ppo", 1): 2, ("ppo", 2): 2, ("human", 0): 1}
    level = {"base": -1.0, "sft": 0.0, "ppo": 0.5, "human": 0.2}
    for (arm, seed), count in counts.items():
        for place, scene in enumerate(SCENES[:1] if arm == "human" else SCENES):
            for sample in range(count):
                opener = f"{TEXTS[arm]} {arm}{seed}-{sample}"
                rows.append({
                    "arm": arm, "seed": seed, "scene": scene.id, "sample": sample, "ended": arm != "base", "tokens": 5,
                    "opener": MARKUP if (arm, place, sample) == ("ppo", 1, 0) else opener, "words": 4 + sample,
                    "proxy": level[arm] + 0.1 * (sample == 1) + 0.01 * rng.normal(), "gold": level[arm] / 2, "kl": None
                    if arm == "human" else float(arm == "ppo"), "base_nats": 2.0, "question": False, "names_profile": 1.0,
                    "copied": False, "profane": False, "run_id": f"id{seed}", "key": f"{arm}-{seed}",
                })  # fmt: skip
    return rows


def write(directory):
    rows = made_up()
    table = tabulate(rows, [], ARMS, [scene.id for scene in SCENES], 2, 50, 1)
    config = compare.CompareConfig(arms=["ppo"], seeds=[1, 2], pool_size=4, samples=2)
    comparison = compare.Comparison(config, SCENES, rows, table, verdict(table, "On made-up numbers."))
    report.write_report(comparison, CURVES, directory, ["A note with <em>marks</em>."])
    return (directory / "report.html").read_text()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    for name in ("frontier", "seeds"):
        plt.imsave(directory / f"{name}.png", np.zeros((30, 90)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "load_scorer", lambda *_, **__: Proxy())
        write(directory)
    return directory


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def new_page(browser, directory):
    def make(**options):
        page = pages.enter_context(watched(browser, (directory / "report.html").as_uri(), offline=True, **options))
        expect(page.locator("#controls")).to_be_visible()
        return page

    with contextlib.ExitStack() as pages:
        yield make


def arms(page):
    return page.locator("#table tbody th").all_inner_texts()


def openers(page):
    return page.locator(".card:visible .opener").all_inner_texts()


def test_a_column_sorts_by_click_and_by_key(new_page):
    page = new_page()
    assert arms(page) == ["base model", "SFT", "SFT, prompt by mood", "best of 2", "PPO", "written for the scenes"]
    header = page.get_by_role("columnheader", name="proxy, gain over SFT", exact=True)
    header.get_by_role("button").click()
    expect(header).to_have_attribute("aria-sort", "descending")
    unknown = ["SFT", "SFT, prompt by mood"]  # SFT has no gain over itself, and the other was not measured
    assert arms(page) == ["PPO", "written for the scenes", "best of 2", "base model", *unknown]
    page.keyboard.press("Enter")
    expect(header).to_have_attribute("aria-sort", "ascending")
    assert arms(page) == ["base model", "best of 2", "written for the scenes", "PPO", *unknown]
    expect(page.get_by_role("status").filter(has_text="Sorted by proxy, gain over SFT, ascending")).to_be_attached()
    page.get_by_role("button", name="arm", exact=True).click()
    assert arms(page) == ["base model", "SFT", "SFT, prompt by mood", "best of 2", "PPO", "written for the scenes"]
    assert page.locator("th[aria-sort]").count() == 1

    expect(page.get_by_role("columnheader", name="self-BLEU")).to_be_hidden()
    page.get_by_label("Every measure").check()
    expect(page.get_by_role("columnheader", name="self-BLEU")).to_be_visible()


def test_the_filter_and_the_choice_of_arms(new_page):
    page = new_page()
    expect(page.locator("#found")).to_have_text("7 openers in 3 scenes; 6 more of arms that are not ticked")
    assert page.locator("fieldset label").all_inner_texts() == [
        "base model",
        "SFT",
        "best of 2",
        "PPO",
        "written for the scenes",
    ]
    page.get_by_label("Filter").fill("neighbour")
    assert openers(page) == ["Hi, neighbour human0-0"]
    expect(page.locator(".scene:visible")).to_have_count(1)
    page.get_by_label("Filter").fill("LEEDS ppo")  # of the profile, and an arm's name
    assert openers(page) == ["Tell me about your day! ppo1-0"]
    page.get_by_label("Filter").fill("bees base")
    assert openers(page) == []
    page.get_by_role("button", name="All", exact=True).click()
    assert openers(page) == ["bees bees bees base0-0"] * 3
    page.get_by_label("Filter").fill("")
    for name in ("base model", "SFT", "PPO"):
        page.get_by_role("checkbox", name=name, exact=True).uncheck()
    # Best of 2 says what the proxy liked best among SFT's first two.
    assert openers(page) == ["How are the bees? sft0-1", "Hi, neighbour human0-0", *["How are the bees? sft0-1"] * 2]


def test_scores_reactions_and_seeds_that_take_turns(new_page):
    page = new_page()
    cards = page.locator(".card[data-arm=ppo]")
    assert cards.locator("h4").all_inner_texts() == ["PPO seed 1", "PPO seed 2", "PPO seed 1"]
    assert re.fullmatch(r"proxy \+0\.\d\d · gold \+0\.25", cards.first.locator(".scores").inner_text())
    reactions = cards.first.get_by_role("list", name="Expected reactions").get_by_role("listitem")
    assert [text.split() for text in reactions.all_inner_texts()] == [
        ["happiness", "14", "%"],
        ["disengaged", "86", "%"],
    ]
    bar = "e => getComputedStyle(e).backgroundSize"
    assert cards.first.locator("i").first.evaluate(bar).startswith("14.3%")
    page.get_by_role("button", name="All", exact=True).click()
    expect(page.locator(".card[data-arm=base] em").first).to_have_text("unfinished")


def test_what_models_and_people_wrote_is_text(new_page):
    page = new_page()
    assert openers(page)[4] == MARKUP
    expect(page.get_by_role("heading", name="paints <b>cats</b>")).to_be_visible()
    expect(page.get_by_text("A note with <em>marks</em>.")).to_be_visible()
    assert page.title().startswith("Does PPO beat") and page.locator("main script, .card img, .note em").count() == 0


def test_it_says_what_it_is_before_the_table(new_page):
    page = new_page()
    table = page.locator("#table").bounding_box()["y"]
    said = [
        "On made-up numbers.",
        "PPO: on the proxy higher than SFT",
        "a judge that no training saw",
        "CPU cores",
        "1, 2",
    ]
    for text in said:
        assert page.get_by_text(text).first.bounding_box()["y"] < table
    for name in ("Date", "Commit", "Hardware", "Training seeds"):
        assert page.locator("dt", has_text=name).bounding_box()["y"] < table
    assert page.locator(".glance dd").first.inner_text().startswith("+0.25")  # gold
    assert page.get_by_text("PPO: its own reward 0.00 to 0.20; KL to SFT, nats 0.00 to 1.00").is_visible()
    for image in page.locator("figure img").all():
        assert image.evaluate("e => e.naturalWidth") == 90 and len(image.get_attribute("alt")) > 50


@pytest.mark.parametrize("width", [320, 375])
def test_a_phone_scrolls_the_table_and_not_the_page(new_page, width):
    page = new_page(viewport={"width": width, "height": 812})
    page.get_by_role("button", name="All", exact=True).click()
    page.get_by_label("Every measure").check()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    box = page.get_by_role("region", name="The arms")
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")
    box.evaluate("e => e.scrollLeft = 600")
    assert page.get_by_role("rowheader", name="PPO", exact=True).bounding_box()["x"] < 40  # the arm's name stays


def test_dark_and_light_by_the_system_and_by_the_button(new_page):
    ground = "getComputedStyle(document.body).backgroundColor"
    shade = "getComputedStyle(document.querySelector('img')).filter"
    dark, light = new_page(color_scheme="dark"), new_page(color_scheme="light")
    colours = [(page.evaluate(ground), page.evaluate(shade)) for page in (dark, light)]
    assert [page.evaluate(CONTRAST) for page in (dark, light)] == [[], []]
    assert colours[0][0] != colours[1][0] and colours[1][1] == "none" != colours[0][1]
    dark.get_by_role("button", name="Light").click()
    light.get_by_role("button", name="Dark").click()
    assert [(page.evaluate(ground), page.evaluate(shade)) for page in (light, dark)] == colours
    expect(dark.get_by_role("button", name="Dark")).to_be_visible()


def test_a_second_page_of_the_same_rows_loads_no_model(directory, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("reactions that are there were computed again")

    first = (directory / "report.html").read_text()
    monkeypatch.setattr(report, "load_scorer", refuse)
    assert write(directory).split('id="openers"')[1] == first.split('id="openers"')[1]
    assert not re.search(r"(src|href)=\"(?!data:|#)", first)


def test_no_gold_no_ppo_and_no_figures(tmp_path, monkeypatch):
    rows = [{**row, "gold": None} for row in made_up() if row["arm"] == "sft"]
    table = tabulate(rows, [], ["sft"], [scene.id for scene in SCENES], 2, 50, 1)
    config = compare.CompareConfig(arms=["sft"], pool_size=4, samples=2)
    monkeypatch.setattr(report, "load_scorer", lambda *_, **__: Proxy())
    report.write_report(compare.Comparison(config, SCENES, rows, table, verdict(table, "")), {}, tmp_path, [])
    html = (tmp_path / "report.html").read_text()
    assert "nothing was trained" in html and "<img" not in html and "gold +" not in html and "PPO against" not in html
