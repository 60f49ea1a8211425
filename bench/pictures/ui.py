"""Takes the screenshots of docs/ui.md in a browser.

python -m bench.pictures.ui

Needs the extras `ui` and `test`, and Chromium.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from fastrepulse import load_model
from fastrepulse.ui import launch

DOCS = Path(__file__).parents[2] / "docs"
HIDE_CARET = "* { caret-color: transparent !important; }"


def show(tab: Any, name: str, full_page: bool = False) -> None:
    """Takes a screenshot of the tab."""
    tab.add_style_tag(content=HIDE_CARET)
    tab.wait_for_timeout(700)
    tab.screenshot(path=DOCS / f"ui-{name}.jpg", type="jpeg", quality=82, full_page=full_page)


def draw(tab: Any, session: Any) -> None:
    """Draws a batch and waits until the page shows it."""
    count = len(session.drawn)
    tab.get_by_role("button", name="Draw", exact=True).click()
    while len(session.drawn) == count:
        tab.wait_for_timeout(100)
    tab.get_by_text("different of").first.wait_for()
    tab.wait_for_timeout(1000)


def main() -> None:
    chromium = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page, address = launch(
            load_model(), None, Path(folder), "a potted plant", None, False, block=False
        )
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 720})
        tab.goto(address)
        tab.get_by_role("button", name="Advanced").click()
        tab.get_by_label("Seed").fill("3")
        tab.get_by_role("button", name="Advanced").click()
        session = page.session(tab.evaluate("sessionStorage.getItem('fastrepulse')"))
        draw(tab, session)
        tab.evaluate("scrollTo(0, 0)")
        show(tab, "compare")
        tab.locator("#repelled .thumbnail-item").nth(9).click()
        tab.get_by_role("button", name="More like it", exact=True).click()
        tab.locator("#like .thumbnail-item").wait_for()
        tab.get_by_label("Compare with").uncheck()
        draw(tab, session)
        show(tab, "steer", full_page=True)
        tab.set_viewport_size({"width": 390, "height": 844})
        tab.get_by_text("different of").first.scroll_into_view_if_needed()
        show(tab, "phone")
        browser.close()
        page.blocks.close()


if __name__ == "__main__":
    main()
