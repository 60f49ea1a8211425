"""The output of an evaluation: tables, plots, grids and the report."""

import base64
import csv
import json
import re
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fastrepulse.default_model.figures import PROMPTS
from fastrepulse.evaluation import Setting
from fastrepulse.evaluation.measure import PER_PROMPT, Estimate, Row, better_than
from fastrepulse.evaluation.plots import strength_grid
from fastrepulse.evaluation.report import verdict
from fastrepulse.evaluation.runs import RunLog
from fastrepulse.evaluation.settings import DEFAULT, FULL_CAPTIONS, INDEPENDENT
from fastrepulse.metrics import Distance, kernel_distance
from helpers.browsers import needs_browser, open_browser
from helpers.evaluated import FEW, PROTOCOL, SEEDS, N

IMAGE = re.compile(r'<img [^>]*src="([^"]*)"')


def test_the_decrease_of_distance_is_paired_by_seed(finished):
    log = RunLog(finished[0], PROTOCOL)
    rows = {row.setting.title: row for row in finished[1]}
    for space, nearer in rows[DEFAULT.title].nearer.items():
        gains = []
        for seed in range(SEEDS):
            ours, independent, diverse = (
                log.find(setting, seed).features()[space]
                for setting in (DEFAULT, INDEPENDENT, FULL_CAPTIONS)
            )
            gains.append(kernel_distance(independent, diverse) - kernel_distance(ours, diverse))
        assert nearer == Estimate.of(gains)
    assert all(by == Estimate(0, 0, 0) for by in rows["independent"].nearer.values())


def test_all_table_formats_have_the_same_figures(finished):
    folder, rows = finished
    records = json.loads((folder / "table.json").read_text())
    with (folder / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for name in PER_PROMPT:
        assert [r[name] for r in records] == [getattr(row, name).mean for row in rows]
        lows = [float(line[f"{name}_low"]) for line in lines]
        assert lows == [getattr(row, name).low for row in rows]
    assert lines[0]["content_frechet"] == "" and float(lines[1]["content_frechet"]) > 0
    text = (folder / "table.md").read_text()
    assert text.count("\n| CADS | 0.5 |") == 2 and text.count("\n| full captions |") == 1


def test_plots_name_all_methods(finished):
    folder, _ = finished
    for name in ("quality", "spaces"):
        text = " ".join(ElementTree.parse(folder / f"{name}.svg").getroot().itertext())
        for method in ("independent", "default", "CADS", "attribute Vendi score"):
            assert method in text
        with Image.open(folder / f"{name}.png") as image:
            assert min(image.size) > 400


def test_a_grid_has_a_row_per_run_and_a_column_per_particle(finished):
    log = RunLog(finished[0], PROTOCOL)
    runs = [log.find(setting, 0) for setting in FEW]
    grid = np.asarray(strength_grid(runs, prompt=2, num_particles=N))
    assert grid.shape == (3 * 66 - 2, 90 + N * 66 - 2, 3)
    for row, run in enumerate(runs):
        sheet = np.asarray(run.sheet())
        assert sheet.shape == (64 * len(PROMPTS), 64 * N, 3)
        shown = grid[row * 66 : row * 66 + 64, 90 + 66 : 90 + 66 + 64]
        assert (shown == sheet[128:192, 64:128]).all()


def row(method, strength, vendi, accuracy, frechet=1.0):
    """Returns a row with three pairs around a Vendi score."""
    pairs = [vendi - 0.1, vendi, vendi + 0.1]
    estimate, share = Estimate.of(pairs), Estimate.of([accuracy])
    distance = {"content": Distance(frechet, frechet)}
    setting = DEFAULT if method == "default" else Setting(method, strength)
    return Row(
        setting,
        attribute_vendi=estimate,
        coverage=share,
        most_common=share,
        accuracy=share,
        off_data=share,
        vendi=estimate,
        similarity=share,
        gain=estimate,
        cleanliness=1.0,
        frechet=1.0,
        kernel=1.0,
        recall=1.0,
        covered=1.0,
        to_diverse=distance,
        nearer={"content": Estimate.of([1 - frechet])},
        pairs=pairs,
    )


@pytest.mark.parametrize(
    ("other", "is_better"),
    [
        pytest.param(row("SVGD", "1", 5.2, 1.0), True, id="more-diverse"),
        pytest.param(row("SVGD", "1", 5.2, 0.995), True, id="within-one-point"),
        pytest.param(row("SVGD", "1", 5.2, 0.98), False, id="less-accurate"),
        pytest.param(row("SVGD", "1", 5.0, 1.0), False, id="the-same"),
        pytest.param(row("SVGD", "1", 4.0, 1.0), False, id="less-diverse"),
        pytest.param(row("repulsion", "9", 6.0, 1.0), False, id="its-own-method"),
    ],
)
def test_the_report_names_settings_that_are_better_than_the_default(other, is_better):
    default = row("default", "", 5.0, 1.0, frechet=0.5)
    rows = [row("independent", "", 4.0, 1.0), default, other]
    assert better_than(default, rows) == ([other] if is_better else [])
    lines = verdict(rows)
    assert lines[1].startswith("Other methods with" if is_better else "No other method")
    assert lines[2].endswith("in 1 of 1 spaces: content.")


def test_the_report_is_self_contained(finished):
    page = (finished[0] / "report.html").read_text()
    assert "<script src" not in page and "<link" not in page and "url(" not in page
    sources = IMAGE.findall(page)
    # Two plots, and a grid for each prompt and method
    assert len(sources) == 2 + 3 * len(PROMPTS) == page.count("src=")
    for source in sources:
        kind, _, content = source.partition(";base64,")
        data = base64.b64decode(content, validate=True)
        if kind == "data:image/svg+xml":
            ElementTree.fromstring(data)
        else:
            assert kind == "data:image/jpeg" and Image.open(BytesIO(data)).size[0] > 64 * N


@needs_browser
def test_the_report_opens_from_disk_sorts_tables_and_shows_images(finished):
    path = finished[0] / "report.html"
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
        images = page.evaluate("[...document.images].map(i => !i.src || i.naturalWidth > 0)")
        # The images of the page and the image under the pointer
        assert images == [True] * (len(IMAGE.findall(path.read_text())) + 1)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        # Two header rows, four settings in the first table and three in the second
        assert page.locator("tr").count() == 2 + 4 + 3
        table = page.locator("table").first

        def column(number):
            cells = table.locator(f"td:nth-child({number})").all_inner_texts()
            return [float(re.match(r"[-+.\d]+", cell)[0]) for cell in cells]

        titles = table.locator("th").all_inner_texts()
        number = 1 + next(i for i, title in enumerate(titles) if "attribute Vendi" in title)
        before = column(number)
        for order, how in ((True, "descending"), (False, "ascending")):
            table.locator("th button").nth(number - 1).click()
            assert column(number) == sorted(before, reverse=order)
            assert table.locator(f"th[aria-sort={how}]").count() == 1
        table.locator("th button").first.click()
        names = table.locator("td:first-child").all_inner_texts()
        assert names == sorted(names, key=str.lower)
        shown = page.locator("#shown")
        assert not shown.is_visible()
        table.locator("tr[data-method=CADS]").first.hover()
        assert shown.is_visible() and shown.evaluate("i => i.naturalWidth > 0")
        assert not errors
