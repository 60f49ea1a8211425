"""What the documentation says can be followed: lengths, links, code."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += [ROOT / "fastrepulse/default_model/README.md", ROOT / "bench/diversity/README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
OLD_PHRASES = ("what it is told", "taken for granted", "surely higher", "what is paid")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_short_and_their_links_and_code_hold(page):
    text = page.read_text("utf-8")
    assert len(text.splitlines()) <= (130 if page == ROOT / "README.md" else 250)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, str(page), "exec")
    assert not [phrase for phrase in OLD_PHRASES if phrase in text.lower()]


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert all(f"({name})" in index for name in pages)


def test_anchors_are_headings():
    for page in PAGES:
        for target, anchor in re.findall(
            r"\]\(([^)\s#]*\.md)#([^)\s]+)\)", page.read_text("utf-8")
        ):
            headings = re.findall(r"^#+ (.+)$", (page.parent / target).read_text("utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, (page.name, target, anchor)
