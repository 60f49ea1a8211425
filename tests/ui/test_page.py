"""The page in a browser, used as a person uses it."""

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrepulse import load_model
from helpers.browsers import needs_browser, open_browser

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")
pytestmark = needs_browser
DRAWN = "different of"
expect = sync_api.expect
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    from fastrepulse.ui import launch

    folder = tmp_path_factory.mktemp("explored")
    page, address = launch(load_model(), None, folder, "a robot", None, False, block=False)
    yield page, address
    page.blocks.close()


@pytest.fixture(scope="module")
def browser():
    with open_browser() as chromium:
        yield chromium


@pytest.fixture
def tab(browser, served):
    page = open_tab(browser, served[1])
    yield page
    page.context.close()


def open_tab(browser, address, width=1280):
    page = browser.new_context(viewport={"width": width, "height": 720}).new_page()
    page.set_default_timeout(60_000)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    expect(page.get_by_role("button", name="Draw", exact=True)).to_be_enabled()
    return page


def set_number(tab, label, value):
    field = tab.get_by_label(f"number input for {label}")
    field.fill(str(value))
    field.blur()


def ask(tab, prompt="a robot", count=3, steps=4, seed=5):
    """Fills in what a batch is asked for, so that it is quickly drawn."""
    tab.get_by_label("Prompt", exact=True).fill(prompt)
    set_number(tab, "How many pictures", count)
    if not tab.get_by_label("number input for Steps").is_visible():
        tab.get_by_role("button", name="Advanced").click()
    set_number(tab, "Steps", steps)
    tab.get_by_label("Seed").fill(str(seed))


def draw(tab, session):
    """Draws a batch and waits until it is there to see."""
    count = len(session.drawn)
    tab.get_by_role("button", name="Draw", exact=True).click()
    see(tab, session, count + 1)


def see(tab, session, count):
    deadline = time.monotonic() + 60
    while len(session.drawn) < count:
        assert time.monotonic() < deadline and session.error is None
        tab.wait_for_timeout(50)
    last = session.drawn[-1]
    expect(tab.get_by_text(re.compile("^Drawing"))).to_have_count(0)
    expect(tab.get_by_text(DRAWN)).to_have_count(len(last.images))


def session_of(served, tab):
    return served[0].session(tab.evaluate("sessionStorage.getItem('fastrepulse')"))


def choose(tab, number, kind="repelled"):
    tab.locator(f"#{kind} .thumbnail-item").nth(number - 1).click()
    expect(tab.get_by_text(f"Chosen: picture {number},")).to_be_visible()


def test_draw_compare_steer_stop_reload_and_repeat(tab, served, tmp_path):
    ask(tab)
    session = session_of(served, tab)
    draw(tab, session)
    for kind in ("repelled", "independent"):
        assert tab.locator(f"#{kind} .thumbnail-item").count() == 3
    assert "show a robot" in tab.get_by_text(DRAWN).first.inner_text()
    # Pick two, and draw unlike them
    for number in (1, 3):
        choose(tab, number)
        tab.get_by_role("button", name="More unlike it").click()
        expect(tab.locator("#unlike .thumbnail-item")).to_have_count(1 if number == 1 else 2)
    draw(tab, session_of(served, tab))
    batch = session.drawn[1].batch
    assert len(list(batch.unlike.iterdir())) == 2 and batch.like is None
    # Copy the command and run it
    tab.get_by_role("tab", name="Reproduce").click()
    command = tab.locator(".cm-content").first.inner_text().replace("\n", "")
    line = [sys.executable, "-m", *shlex.split(command), "--out", str(tmp_path / "again")]
    subprocess.run(line, check=True, capture_output=True)
    for i, image in enumerate(session.drawn[1].images["repelled"]):
        again = Image.open(tmp_path / "again" / f"{i:05d}.png")
        assert np.array_equal(np.asarray(again), np.asarray(image))
    # Stop in the middle, and find it all again after a reload
    set_number(tab, "Steps", 100)
    tab.get_by_role("button", name="Draw", exact=True).click()
    expect(tab.get_by_alt_text("What the batch is heading for")).to_be_visible()
    tab.get_by_role("button", name="Stop").click()
    expect(tab.get_by_text("Stopped: this is what the batch was heading for")).to_be_visible()
    assert session.drawn[2].stopped
    tab.reload()
    expect(tab.locator("#unlike .thumbnail-item")).to_have_count(2)
    tab.get_by_role("tab", name="History").click()
    expect(tab.locator("#history .thumbnail-item")).to_have_count(3)
    tab.locator("#history .thumbnail-item").first.click()
    expect(tab.get_by_text(DRAWN)).to_have_count(2)
    assert session_of(served, tab) is session and not tab.errors


def test_a_reload_in_the_middle_loses_nothing(tab, served):
    ask(tab, steps=60)
    tab.get_by_role("button", name="Draw", exact=True).click()
    expect(tab.get_by_alt_text("What the batch is heading for")).to_be_visible()
    tab.reload()
    expect(tab.get_by_text(re.compile("^Drawing"))).to_be_visible()
    tab.get_by_role("button", name="Stop").click()
    expect(tab.get_by_text("Stopped: this is what the batch was heading for")).to_be_visible()
    assert len(session_of(served, tab).drawn) == 1


def test_two_tabs_do_not_mix(browser, served, tab):
    other = open_tab(browser, served[1])
    ask(tab, "a robot")
    ask(other, "a planet", count=2)
    for page in (tab, other):
        page.get_by_role("button", name="Draw", exact=True).click()
    for page in (tab, other):
        see(page, session_of(served, page), 1)
    assert [d.batch.prompt for d in session_of(served, tab).drawn] == ["a robot"]
    assert [d.batch.prompt for d in session_of(served, other).drawn] == ["a planet"]
    assert other.locator("#repelled .thumbnail-item").count() == 2
    other.context.close()


def test_a_click_on_the_map_is_where_the_next_batch_goes(tab, served):
    ask(tab)
    draw(tab, session_of(served, tab))
    tab.locator("#map img").click(position={"x": 200, "y": 150})
    expect(tab.locator("#like .thumbnail-item")).to_have_count(1)
    draw(tab, session_of(served, tab))
    assert len(list(session_of(served, tab).drawn[1].batch.like.iterdir())) == 1
    tab.get_by_role("button", name="Forget these pictures").click()
    expect(tab.locator("#like")).to_be_hidden()
    assert session_of(served, tab).picked == {"unlike": [], "like": []}


def test_pictures_are_taken_from_the_disk(tab, served, tmp_path):
    Image.new("RGB", (80, 120), "green").save(tmp_path / "green.png")
    (tmp_path / "broken.png").write_bytes(b"broken")
    tab.get_by_role("button", name="Pictures from the disk").click()
    files = [str(tmp_path / name) for name in ("green.png", "broken.png")]
    tab.locator("#files input[type=file]").set_input_files(files)
    for file in ("green.png", "broken.png"):
        expect(tab.get_by_role("cell", name=file)).to_be_visible()
    tab.get_by_role("button", name="Like these files", exact=True).click()
    expect(tab.locator("#like .thumbnail-item")).to_have_count(1)
    expect(tab.get_by_text(re.compile("broken.* cannot be read"))).to_be_visible()
    assert session_of(served, tab).picked["like"][0].size == (64, 64)


def test_what_is_wrong_is_a_message_and_nothing_is_lost(tab, served):
    ask(tab)
    draw(tab, session_of(served, tab))
    tab.get_by_label("Seed").fill("seven")
    tab.get_by_role("button", name="Draw", exact=True).click()
    expect(tab.get_by_text(re.compile("seed must be a whole number"))).to_be_visible()
    tab.get_by_label("Seed").fill("7")
    tab.get_by_role("button", name="More like it").click()
    expect(tab.get_by_text("click on a picture first", exact=False)).to_be_visible()
    tab.get_by_label("Prompt", exact=True).fill("")
    tab.get_by_role("button", name="Draw", exact=True).click()
    expect(tab.get_by_text(re.compile("prompt must say something"))).to_be_visible()
    assert tab.locator("#repelled .thumbnail-item").count() == 3
    assert len(session_of(served, tab).drawn) == 1


@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_a_screen_and_a_phone_and_has_a_name_for_everything(browser, served, width):
    tab = open_tab(browser, served[1], width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    unnamed = tab.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, select")]
            .filter(e => e.checkVisibility())
            .filter(e => !(e.labels?.length || e.ariaLabel || e.title || e.innerText?.trim()
                || e.getAttribute("aria-labelledby")))
            .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert not unnamed
    # By keyboard alone
    tab.get_by_label("Prompt", exact=True).focus()
    reached = set()
    for _ in range(20):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.innerText"))
    assert {"Draw", "Stop"} <= reached
    tab.context.close()


def test_nothing_leaves_this_machine(browser, served):
    page, address = served
    asked = []
    tab = browser.new_page()
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(address)
    expect(tab.get_by_role("button", name="Draw", exact=True)).to_be_enabled()
    elsewhere = [u for u in asked if not u.startswith((address.rstrip("/"), "data:", "blob:"))]
    assert asked and not elsewhere
    assert page.blocks.server_name == "127.0.0.1" and not page.blocks.share
    assert not page.blocks.analytics_enabled
    tab.close()


def test_files_of_the_machine_are_not_served(served):
    import urllib.error
    import urllib.request

    for path in ("/etc/hostname", str(Path(__file__))):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{served[1]}gradio_api/file={path}")
        assert error.value.code == 403
