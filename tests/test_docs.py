"""The documentation can be followed: plain sentences, working links, code that compiles."""

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")]
PAGES += [ROOT / "fastrepulse" / room / "README.md" for room in ("default_model", "shipped_models")]
PAGES += [ROOT / "fastrepulse/integrations/comfyui/README.md"]
PAGES += sorted((ROOT / "bench/diversity").glob("*.md")) + sorted(DOCS.glob("*.md"))
WORDS_PER_SENTENCE = 25


def text_of(page):
    return page.read_text("utf-8")


def sentences(markdown):
    """Returns the sentences of a page as lists of words; code, tables and headings are left out."""
    markdown = re.sub(r"```.*?```", "\n\n", markdown, flags=re.DOTALL)
    lines = [
        "" if re.match(r"\s*(#|\||:::|!\[|<)", line) else line for line in markdown.splitlines()
    ]
    prose = "\n".join(lines)
    prose = re.sub(r"`[^`\n]*(\n[^`\n]*)?`", "code", prose)
    prose = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", prose)
    found = []
    for paragraph in re.split(r"\n\s*\n|\n\s*(?=[-*] |\d+\. )", prose):
        for sentence in re.split(r"(?<=[.!?])[*_)\"”]*\s+", paragraph.strip()):
            words = re.findall(r"\w[\w'’.,%×-]*", sentence)
            if words:
                found.append(words)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
class TestEveryPage:
    def test_sentences_are_short_on_average(self, page):
        found = sentences(text_of(page))
        average = sum(map(len, found)) / max(len(found), 1)
        longest = " ".join(max(found, key=len, default=[]))
        assert average <= WORDS_PER_SENTENCE, longest

    def test_links_lead_to_files(self, page):
        for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
            if not target.startswith(("http", "#")):
                assert (page.parent / target.partition("#")[0]).exists(), target

    def test_anchors_lead_to_headings(self, page):
        for target, anchor in re.findall(r"\]\(([^)\s#]*\.md)?#([^)\s]+)\)", text_of(page)):
            linked = page.parent / target if target else page
            headings = re.findall(r"^#+ (.+)$", text_of(linked), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, (target, anchor)

    def test_python_blocks_compile(self, page):
        for block in re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL):
            compile(block, str(page), "exec")


def test_long_sentences_are_found():
    assert [len(each) for each in sentences("One two. Three four five?\n\n- six\n- seven")] == [
        2,
        3,
        1,
        1,
    ]
    assert sentences("# A heading\n\n| a | table |\n\n```console\n$ code\n```\n") == []


def test_the_readme_is_short():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 150


def test_the_index_and_the_site_name_every_page():
    index, site = text_of(DOCS / "README.md"), text_of(ROOT / "mkdocs.yml")
    pages = {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    assert not [name for name in pages if f"({name})" not in index or f": {name}" not in site]


def warnings_of(path):
    """Yields the longest fixed part of every warning in a module."""
    for node in ast.walk(ast.parse(text_of(path))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("warning", "warn"):
            texts = [
                each.value
                for argument in node.args[:1]
                for each in ast.walk(argument)
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            ]
            parts = [part for text in texts for part in re.split(r"%[a-z]", text)]
            yield max(parts, key=len, default="").strip(" ;:,'")


def test_every_warning_is_explained():
    modules = [*(ROOT / "fastrepulse").rglob("*.py"), ROOT / "setup.py"]
    said = [text for path in modules for text in warnings_of(path)]
    page = text_of(DOCS / "troubleshooting.md")
    assert len(said) > 10 and "" not in said
    assert not [text for text in said if text not in page]


def test_the_command_line_reference_is_what_the_commands_say():
    written = runpy.run_path(str(DOCS / "command_line.py"))["reference"]()
    assert text_of(DOCS / "command-line.md") == written, "run: python docs/command_line.py"


def test_every_promise_of_the_security_page_has_its_test():
    promised = re.findall(r"`(test_\w+)` \|$", text_of(ROOT / "SECURITY.md"), re.M)
    sources = [file.read_text("utf-8") for file in (ROOT / "tests").rglob("test_*.py")]
    missing = [name for name in promised if not any(f"def {name}(" in text for text in sources)]
    assert len(promised) >= 8 and not missing
