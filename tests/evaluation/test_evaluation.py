"""`fastrepulse evaluate`: what is run, kept, measured and shown, on a tiny run."""

import base64
import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib")

import fastrepulse
from fastrepulse.default_model.figures import PROMPTS, Figures
from fastrepulse.default_model.judge import features_of, judge_backbone, load_classifier
from fastrepulse.default_model.rendered import rendered_features
from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.evaluation import Setting, evaluate
from fastrepulse.evaluation.measure import PER_PROMPT, Estimate, Row, better_than, rendered_vendi
from fastrepulse.evaluation.plots import strength_grid
from fastrepulse.evaluation.report import verdict
from fastrepulse.evaluation.runs import MICRO_BATCH_SIZE, Protocol, RunLog, full_captions
from fastrepulse.evaluation.settings import DEFAULT, FULL_CAPTIONS, INDEPENDENT
from fastrepulse.methods import CADS
from fastrepulse.metrics import (
    Distance,
    frechet_distance,
    kernel_distance,
    to_pictures,
    vendi_score,
)

N, STEPS, SEEDS = 3, 2, 2
PROTOCOL = Protocol(N, STEPS)
TINY = {"num_seeds": SEEDS, "num_particles": N, "num_inference_steps": STEPS, "compile": False}
FEW = [INDEPENDENT, DEFAULT, Setting("CADS", "0.5", {"repulsion": CADS(0.5)})]
PROGRAM = f"""
import sys
from fastrepulse.evaluation import Setting, evaluate
from fastrepulse.evaluation.settings import DEFAULT, INDEPENDENT
from fastrepulse.methods import CADS
few = [INDEPENDENT, DEFAULT, Setting("CADS", "0.5", {{"repulsion": CADS(0.5)}})]
evaluate(sys.argv[1], few, **{TINY})
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, evaluate(folder, FEW, **TINY, progress=False)


def test_full_captions_name_every_attribute():
    captions = full_captions(3, 20)
    assert len(captions) == 20 * len(SUBJECTS)
    assert captions == full_captions(3, 20) != full_captions(4, 20)
    planets = captions[:20]
    shortest = len(SUBJECTS[0].prompt.split()) + len(SUBJECTS[0].attributes)
    assert all("planet" in caption for caption in planets)
    assert min(len(caption.split()) for caption in planets) >= shortest
    assert len(set(planets)) > 15


def test_shipped_features_are_of_the_shipped_judge():
    features = rendered_features()
    assert features.shape == (len(SUBJECTS), 200, 128)
    with torch.no_grad():
        judged = load_classifier().subject(features).argmax(dim=2)
    assert (judged == torch.arange(len(SUBJECTS))[:, None]).double().mean() > 0.995


def test_rendered_pictures_of_a_folder(tmp_path):
    heldout = Image.open(Path(__file__).parents[1] / "data" / "heldout.png").convert("RGB")
    tiles = [heldout.crop((0, 64 * i, 64, 64 * i + 64)) for i in range(len(SUBJECTS))]
    np.savez(tmp_path / "heldout.npz", pictures=np.stack([np.asarray(tile) for tile in tiles]))
    features = rendered_features(tmp_path)
    assert features.shape == (len(SUBJECTS), 1, 128)
    torch.testing.assert_close(features[:, 0], features_of(tiles))
    with pytest.raises(FileNotFoundError, match=r"heldout\.npz"):
        rendered_features(tmp_path / "nothing")


def test_rendered_vendi_is_a_mean_over_whole_sets():
    rendered = rendered_features()[:2]
    sets = [rendered[s, i : i + 60] for s in range(2) for i in (0, 60, 120)]
    expected = sum(vendi_score(rows) for rows in sets) / len(sets)
    assert rendered_vendi(rendered, 60) == pytest.approx(expected)


def test_figures_are_those_of_the_pictures(finished):
    rows = {row.setting.title: row for row in finished[1]}
    assert list(rows) == ["full captions", "independent", DEFAULT.title, "CADS, 0.5"]
    images, scores, off = {}, {}, {}
    for title, repulsion in (
        ("independent", None),
        (DEFAULT.title, DEFAULT.arguments["repulsion"]),
    ):
        drawn = [
            fastrepulse.sample(
                list(PROMPTS),
                N,
                repulsion=repulsion,
                seed=seed,
                num_inference_steps=STEPS,
                compile=False,
                progress=False,
            ).images
            for seed in range(SEEDS)
        ]
        figures = [
            Figures.of(pictures[i * N : (i + 1) * N], subject)
            for pictures in drawn
            for i, subject in enumerate(PROMPTS.values())
        ]
        scores[title] = [f.attribute_vendi for f in figures]
        assert rows[title].attribute_vendi == Estimate.of(scores[title])
        for name in PER_PROMPT[1:-1]:
            expected = np.mean([getattr(f, name) for f in figures])
            assert getattr(rows[title], name).mean == pytest.approx(expected), name
        off[title] = np.mean([f.off_data for f in figures])
        assert rows[title].cleanliness == pytest.approx(off[title] / off["independent"])
        images[title] = [image for pictures in drawn for image in pictures]
    gains = [a - b for a, b in zip(scores[DEFAULT.title], scores["independent"], strict=True)]
    assert rows[DEFAULT.title].gain == Estimate.of(gains)
    features = judge_backbone()(to_pictures(images["independent"]))["content"]
    expected = frechet_distance(features, rendered_features().flatten(0, 1), allow_small_sets=True)
    # Features are kept in half precision
    assert rows["independent"].frechet == pytest.approx(expected, rel=1e-3)
    assert set(rows["independent"].to_diverse) == {"content", "location", "style"}


def test_nearer_is_paired_by_seed(finished):
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


def test_tables_say_the_same(finished):
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


def test_plots_name_every_method(finished):
    folder, _ = finished
    for name in ("quality", "spaces"):
        text = " ".join(ElementTree.parse(folder / f"{name}.svg").getroot().itertext())
        for method in ("independent", "default", "CADS", "the default", "attribute Vendi score"):
            assert method in text
        with Image.open(folder / f"{name}.png") as image:
            assert min(image.size) > 400


def test_grid_shows_a_row_a_strength_from_the_same_particles(finished):
    log = RunLog(finished[0], PROTOCOL)
    runs = [log.find(setting, 0) for setting in FEW]
    grid = np.asarray(strength_grid(runs, prompt=2, num_particles=N, columns=2))
    assert grid.shape == (3 * 66 - 2, 90 + 2 * 66 - 2, 3)
    for row, run in enumerate(runs):
        sheet = np.asarray(run.sheet())
        assert sheet.shape == (64 * len(PROMPTS), 64 * N, 3)
        shown = grid[row * 66 : row * 66 + 64, 90 + 66 : 90 + 66 + 64]
        assert (shown == sheet[128:192, 64:128]).all()


def test_what_is_finished_is_not_sampled_again(finished):
    folder, rows = finished
    before = {f: f.stat().st_mtime_ns for f in (folder / "runs").iterdir()}
    assert evaluate(folder, FEW, **TINY, progress=False) == rows
    assert {f: f.stat().st_mtime_ns for f in (folder / "runs").iterdir()} == before


def test_a_line_cut_off_and_a_file_lost_are_sampled_again(finished, tmp_path):
    source = RunLog(finished[0], PROTOCOL)
    result = fastrepulse.sample(
        list(PROMPTS), N, seed=0, num_inference_steps=STEPS, compile=False, progress=False
    )
    log = RunLog(tmp_path, PROTOCOL)
    log.add(DEFAULT, 0, result)
    log.add(DEFAULT, 1, result)
    with log.log.open("a") as file:
        file.write('{"key": {"meth')
    again = RunLog(tmp_path, PROTOCOL)
    assert again.find(DEFAULT, 0).figures == source.find(DEFAULT, 0).figures
    (run,) = [again.find(DEFAULT, 1)]
    run.path.with_name(run.path.name + ".jpg").unlink()
    assert again.find(DEFAULT, 1) is None
    again.add(DEFAULT, 1, result)
    assert RunLog(tmp_path, PROTOCOL).find(DEFAULT, 1).figures == run.figures


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"num_particles": N + 1}, id="N"),
        pytest.param({"num_inference_steps": STEPS + 1}, id="steps"),
        pytest.param({"guidance_scale": 2.5}, id="guidance"),
        pytest.param({"dtype": "bfloat16"}, id="dtype"),
    ],
)
def test_runs_of_another_protocol_are_others(finished, other):
    assert RunLog(finished[0], PROTOCOL).find(DEFAULT, 0) is not None
    assert RunLog(finished[0], replace(PROTOCOL, **other)).find(DEFAULT, 0) is None


def test_guidance_and_dtype_reach_the_model(tmp_path):
    own = Setting("independent", "guidance 1.5", {"guidance_scale": 1.5})
    how = {**TINY, "num_seeds": 1, "guidance_scale": 2.5, "dtype": torch.bfloat16}
    rows = evaluate(tmp_path, [own], **how, progress=False)
    text = (tmp_path / "table.md").read_text()
    assert "guidance 2.5" in text and "weights in bfloat16" in text
    pairs = {row.setting.title: row.pairs for row in rows}
    for title, guidance_scale in ((INDEPENDENT.title, 2.5), (own.title, 1.5)):
        result = fastrepulse.sample(
            list(PROMPTS),
            N,
            repulsion=None,
            guidance_scale=guidance_scale,
            dtype=torch.bfloat16,
            seed=0,
            num_inference_steps=STEPS,
            micro_batch_size=MICRO_BATCH_SIZE["cpu"],
            compile=False,
            progress=False,
        )
        figures = [
            Figures.of(result.images[i * N : i * N + N], subject)
            for i, subject in enumerate(PROMPTS.values())
        ]
        assert pairs[title] == pytest.approx([f.attribute_vendi for f in figures])


def test_killed_and_started_again_it_gives_the_same_tables(finished, tmp_path):
    folder, _ = finished
    log = tmp_path / "runs.jsonl"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = log.read_text()
    assert not (tmp_path / "table.md").exists()

    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    whole = kept[: kept.rfind("\n") + 1]
    assert log.read_text().startswith(whole)
    assert log.read_text().count("\n") == SEEDS * (len(FEW) + 1)
    for name in ("table.csv", "table.json"):
        assert (tmp_path / name).read_text() == (folder / name).read_text()


def row(method, strength, vendi, accuracy, frechet=1.0):
    """A setting with three pairs around a Vendi score."""
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
def test_which_settings_are_better_than_the_default(other, is_better):
    default = row("default", "", 5.0, 1.0, frechet=0.5)
    rows = [row("independent", "", 4.0, 1.0), default, other]
    assert better_than(default, rows) == ([other] if is_better else [])
    lines = verdict(rows)
    assert lines[1].startswith("At an accuracy" if is_better else "No other method")
    assert lines[2].endswith("in 1 of 1 spaces: content.")


IMAGE = re.compile(r'<img [^>]*src="([^"]*)"')


def test_report_holds_all_that_it_shows(finished):
    page = (finished[0] / "report.html").read_text()
    assert "<script" not in page and "<link" not in page and "url(" not in page
    sources = IMAGE.findall(page)
    # Two plots, and for each prompt a grid a method
    assert len(sources) == 2 + 3 * len(PROMPTS) == page.count("src=")
    for source in sources:
        kind, _, content = source.partition(";base64,")
        data = base64.b64decode(content, validate=True)
        if kind == "data:image/svg+xml":
            ElementTree.fromstring(data)
        else:
            assert kind == "data:image/jpeg" and Image.open(BytesIO(data)).size[0] > 64 * N


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_report_opens_in_a_browser_from_disk(finished, tmp_path):
    page = (finished[0] / "report.html").read_text()
    ask = """<script>window.onload = () => { document.body.innerHTML = JSON.stringify({
        images: [...document.images].map(i => i.complete && i.naturalWidth > 0),
        fetched: performance.getEntriesByType("resource").map(r => r.name)
            .filter(name => !name.startsWith("data:")),
        overflow: document.documentElement.scrollWidth - window.innerWidth,
        rows: document.querySelectorAll("tr").length}) }</script></body>"""
    (tmp_path / "asked.html").write_text(page.replace("</body>", ask))
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"),
            *("--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--window-size=1280,1000", "--dump-dom", f"file://{tmp_path}/asked.html"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = json.loads(re.search(r"<body>(.*)</body>", done.stdout, re.DOTALL)[1])
    assert said["images"] == [True] * len(IMAGE.findall(page))
    assert said["fetched"] == [] and said["overflow"] <= 0
    # Two heads, four settings in the first table and three in the second
    assert said["rows"] == 2 + 4 + 3


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        pytest.param({"num_seeds": 0}, ValueError, id="num_seeds"),
        pytest.param({"num_particles": 1}, ValueError, id="num_particles"),
        pytest.param({"guidance_scale": math.nan}, ValueError, id="guidance_scale"),
        pytest.param({"data": "/no/such/folder"}, FileNotFoundError, id="data"),
    ],
)
def test_bad_arguments_are_named_before_the_first_run(arguments, error, tmp_path):
    (name,) = arguments
    with pytest.raises(error, match=name):
        evaluate(tmp_path / "out", FEW, **{**TINY, **arguments})
    assert not (tmp_path / "out").exists()


def test_an_unknown_method_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "fastrepulse", "evaluate", "--out", "out"]
    done = subprocess.run(
        [*command, "--methods", "SVDG"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error:") and "'SVDG'" in done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "fastrepulse", "evaluate", "--out", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "fastrepulse[evaluate]" in done.stderr
    assert done.stderr.count("\n") == 1
