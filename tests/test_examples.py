"""The notebooks run from their first cell to their last, two of the three on request."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = [
    pytest.param(file, id=file.stem, marks=[] if file.stem == "your_pipeline" else pytest.mark.slow)
    for file in sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.ipynb"))
]


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {}
    for number, source in enumerate(code):
        exec(compile(source, f"{notebook.name}, code cell {number}", "exec"), names)
    assert len(code) >= 4 and not any(cell.get("outputs") for cell in cells)
