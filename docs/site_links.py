"""MkDocs hook: pages of docs/ link to files elsewhere in the repository, and the site needs them.

A repository browser follows `../bench/README.md` by itself. For the site this hook adds the file
under repository/ and rewrites the link, and does the same for the links of an added page.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)\s#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Adds every file outside docs/ that a page links to."""
    waiting = [Path(file.abs_src_path) for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        for target in _targets(waiting.pop()):
            if target in seen or target.is_relative_to(DOCS):
                continue
            seen.add(target)
            files.append(File.generated(config, _site_path(target), abs_src_path=str(target)))
            if target.suffix == ".md":
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites the links of a page to where the site has their targets."""
    source = Path(page.file.abs_src_path)
    here = os.path.dirname(page.file.src_uri)

    def rewritten(match: re.Match[str]) -> str:
        target = _resolved(source, match[2])
        if target is None:
            return match[0]
        return match[1] + os.path.relpath(_site_path(target), here or ".")

    return LINK.sub(rewritten, markdown)


def _targets(page: Path) -> list[Path]:
    """Returns the files in the repository that a page links to."""
    links = LINK.findall(page.read_text("utf-8"))
    return [target for _, link in links if (target := _resolved(page, link)) is not None]


def _resolved(page: Path, link: str) -> Path | None:
    """Returns the file that a link leads to, or None unless it is a file of the repository."""
    target = (page.parent / link).resolve()
    in_repository = "://" not in link and target.is_relative_to(ROOT)
    return target if in_repository and target.is_file() else None


def _site_path(target: Path) -> str:
    """Returns the path of a file in the site's sources."""
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    return f"repository/{target.relative_to(ROOT).as_posix()}"
