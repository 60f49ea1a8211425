"""The page in a browser, used like a person."""

import re
import shlex
import time
from pathlib import Path

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
    """Fills in the settings of a small batch."""
    tab.get_by_label("Prompt", exact=True).fill(prompt)
    set_number(tab, "Number of images", count)
    if not tab.get_by_label("number input for Steps").is_visible():
        tab.get_by_role("button", name="Advanced").click()
    set_number(tab, "Steps", steps)
    tab.get_by_label("Seed").fill(str(seed))


def draw(tab, session):
    """Draws a batch and waits until the page shows it."""
    count = len(session.drawn)
    tab.get_by_role("button", name="Draw", exact=True).click()
    wait_for_batches(tab, session, count + 1)


def wait_for_batches(tab, session, count):
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
    expect(tab.get_by_text(f"Chosen: image {number},")).to_be_visible()


def test_draw_compare_steer_reproduce_stop_and_reload(tab, served):
    ask(tab)
    session = session_of(served, tab)
    draw(tab, session)
    for kind in ("repelled", "independent"):
        assert tab.locator(f"#{kind} .thumbnail-item").count() == 3
    assert "show a robot" in tab.get_by_text(DRAWN).first.inner_text()
    # Draw a batch unlike two images
    for number in (1, 3):
        choose(tab, number)
        tab.get_by_role("button", name="More unlike it").click()
        expect(tab.locator("#unlike .thumbnail-item")).to_have_count(1 if number == 1 else 2)
    draw(tab, session_of(served, tab))
    batch = session.drawn[1].batch
    assert len(list(batch.unlike.iterdir())) == 2 and batch.like is None
    # The page shows the batch's command; test_session.py runs such a command
    tab.get_by_role("tab", name="Reproduce").click()
    command = tab.locator(".cm-content").first.inner_text().replace("\n", "")
    assert shlex.split(command) == shlex.split(batch.as_command(None))
    # Stop in the middle, then reload
    set_number(tab, "Steps", 100)
    tab.get_by_role("button", name="Draw", exact=True).click()
    expect(tab.get_by_alt_text("Preview of the batch")).to_be_visible()
    tab.get_by_role("button", name="Stop").click()
    expect(tab.get_by_text("Stopped: these are the predicted images at that step")).to_be_visible()
    assert session.drawn[2].stopped
    tab.reload()
    expect(tab.locator("#unlike .thumbnail-item")).to_have_count(2)
    tab.get_by_role("tab", name="History").click()
    expect(tab.locator("#history .thumbnail-item")).to_have_count(3)
    tab.locator("#history .thumbnail-item").first.click()
    expect(tab.get_by_text(DRAWN)).to_have_count(2)
    assert session_of(served, tab) is session and not tab.errors


def test_a_reload_during_a_run_loses_nothing(tab, served):
    ask(tab, steps=60)
    tab.get_by_role("button", name="Draw", exact=True).click()
    expect(tab.get_by_alt_text("Preview of the batch")).to_be_visible()
    tab.reload()
    expect(tab.get_by_text(re.compile("^Drawing"))).to_be_visible()
    tab.get_by_role("button", name="Stop").click()
    expect(tab.get_by_text("Stopped: these are the predicted images at that step")).to_be_visible()
    assert len(session_of(served, tab).drawn) == 1


def test_two_tabs_have_separate_sessions(browser, served, tab):
    other = open_tab(browser, served[1])
    ask(tab, "a robot")
    ask(other, "a planet", count=2)
    for page in (tab, other):
        page.get_by_role("button", name="Draw", exact=True).click()
    for page in (tab, other):
        wait_for_batches(page, session_of(served, page), 1)
    assert [d.batch.prompt for d in session_of(served, tab).drawn] == ["a robot"]
    assert [d.batch.prompt for d in session_of(served, other).drawn] == ["a planet"]
    assert other.locator("#repelled .thumbnail-item").count() == 2
    other.context.close()


def test_a_click_on_the_map_adds_the_nearest_image_to_the_next_batch(tab, served):
    ask(tab)
    draw(tab, session_of(served, tab))
    tab.locator("#map img").click(position={"x": 200, "y": 150})
    expect(tab.locator("#like .thumbnail-item")).to_have_count(1)
    draw(tab, session_of(served, tab))
    assert len(list(session_of(served, tab).drawn[1].batch.like.iterdir())) == 1
    tab.get_by_role("button", name="Remove these images").click()
    expect(tab.locator("#like")).to_be_hidden()
    assert session_of(served, tab).picked == {"unlike": [], "like": []}


def test_images_from_disk(tab, served, tmp_path):
    Image.new("RGB", (80, 120), "green").save(tmp_path / "green.png")
    (tmp_path / "broken.png").write_bytes(b"broken")
    tab.get_by_role("button", name="Images from disk").click()
    files = [str(tmp_path / name) for name in ("green.png", "broken.png")]
    tab.locator("#files input[type=file]").set_input_files(files)
    for file in ("green.png", "broken.png"):
        expect(tab.get_by_role("cell", name=file)).to_be_visible()
    tab.get_by_role("button", name="Like these files", exact=True).click()
    expect(tab.locator("#like .thumbnail-item")).to_have_count(1)
    expect(tab.get_by_text(re.compile("broken.* cannot be read"))).to_be_visible()
    assert session_of(served, tab).picked["like"][0].size == (64, 64)


def test_wrong_inputs_show_a_message_and_lose_nothing(tab, served):
    ask(tab)
    draw(tab, session_of(served, tab))
    tab.get_by_label("Seed").fill("seven")
    tab.get_by_role("button", name="Draw", exact=True).click()
    expect(tab.get_by_text(re.compile("seed must be a whole number"))).to_be_visible()
    tab.get_by_label("Seed").fill("7")
    tab.get_by_role("button", name="More like it").click()
    expect(tab.get_by_text("click an image first", exact=False)).to_be_visible()
    tab.get_by_label("Prompt", exact=True).fill("")
    tab.get_by_role("button", name="Draw", exact=True).click()
    expect(tab.get_by_text(re.compile("prompt must not be empty"))).to_be_visible()
    assert tab.locator("#repelled .thumbnail-item").count() == 3
    assert len(session_of(served, tab).drawn) == 1


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_a_screen_and_a_phone_and_labels_every_control(browser, served, width):
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
    # Reachable by keyboard
    tab.get_by_label("Prompt", exact=True).focus()
    reached = set()
    for _ in range(20):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.innerText"))
    assert {"Draw", "Stop"} <= reached
    tab.context.close()


def test_the_page_requests_nothing_from_other_machines(browser, served):
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


def test_other_files_of_the_machine_are_not_served(served):
    import urllib.error
    import urllib.request

    for path in ("/etc/hostname", str(Path(__file__))):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{served[1]}gradio_api/file={path}")
        assert error.value.code == 403
