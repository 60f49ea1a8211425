"""`fastrepulse evaluate`: sampling, resuming, measuring and refusals, on a tiny evaluation."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastrepulse
from fastrepulse.default_model.figures import PROMPTS, Figures
from fastrepulse.default_model.judge import features_of, load_classifier, spaces_of
from fastrepulse.default_model.rendered import rendered_features
from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.evaluation import Setting, evaluate
from fastrepulse.evaluation.measure import PER_PROMPT, Estimate
from fastrepulse.evaluation.runs import MICRO_BATCH_SIZE, RunLog, full_captions
from fastrepulse.evaluation.settings import DEFAULT, INDEPENDENT
from fastrepulse.metrics import frechet_distance
from helpers.evaluated import FEW, PROGRAM, PROTOCOL, SEEDS, STEPS, TINY, N


def test_full_captions_name_every_attribute():
    captions = full_captions(3, 20)
    assert len(captions) == 20 * len(SUBJECTS)
    assert captions == full_captions(3, 20) != full_captions(4, 20)
    planets = captions[:20]
    shortest = len(SUBJECTS[0].prompt.split()) + len(SUBJECTS[0].attributes)
    assert all("planet" in caption for caption in planets)
    assert min(len(caption.split()) for caption in planets) >= shortest
    assert len(set(planets)) > 15


def test_the_judge_recognises_the_shipped_rendered_pictures():
    features = rendered_features()
    assert features.shape == (len(SUBJECTS), 200, 128)
    with torch.no_grad():
        judged = load_classifier().subject(features).argmax(dim=2)
    assert (judged == torch.arange(len(SUBJECTS))[:, None]).double().mean() > 0.995


def test_rendered_pictures_from_a_folder(tmp_path):
    heldout = Image.open(Path(__file__).parents[1] / "data" / "heldout.png").convert("RGB")
    tiles = [heldout.crop((0, 64 * i, 64, 64 * i + 64)) for i in range(len(SUBJECTS))]
    np.savez(tmp_path / "heldout.npz", pictures=np.stack([np.asarray(tile) for tile in tiles]))
    features = rendered_features(tmp_path)
    assert features.shape == (len(SUBJECTS), 1, 128)
    torch.testing.assert_close(features[:, 0], features_of(tiles))
    with pytest.raises(FileNotFoundError, match=r"heldout\.npz"):
        rendered_features(tmp_path / "nothing")


def test_figures_equal_direct_measurements(finished):
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
    features = spaces_of(images["independent"])["content"]
    expected = frechet_distance(features, rendered_features().flatten(0, 1), allow_small_sets=True)
    # Features are kept in half precision
    assert rows["independent"].frechet == pytest.approx(expected, rel=1e-3)
    assert set(rows["independent"].to_diverse) == {"content", "location", "style"}


def test_finished_runs_are_not_sampled_again(finished):
    folder, rows = finished
    before = {f: f.stat().st_mtime_ns for f in (folder / "runs").iterdir()}
    assert evaluate(folder, FEW, **TINY, progress=False) == rows
    assert {f: f.stat().st_mtime_ns for f in (folder / "runs").iterdir()} == before


def test_truncated_lines_and_missing_files_are_ignored(finished, tmp_path):
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
def test_runs_with_other_shared_settings_are_not_found(finished, other):
    assert RunLog(finished[0], PROTOCOL).find(DEFAULT, 0) is not None
    assert RunLog(finished[0], replace(PROTOCOL, **other)).find(DEFAULT, 0) is None


def test_guidance_scale_and_dtype_reach_the_model(tmp_path):
    own = Setting("independent", "guidance 1.5", {"guidance_scale": 1.5})
    how = {**TINY, "num_seeds": 1, "num_particles": 2, "num_inference_steps": 1}
    how |= {"guidance_scale": 2.5, "dtype": torch.bfloat16}
    rows = evaluate(tmp_path, [own], **how, progress=False)
    text = (tmp_path / "table.md").read_text()
    assert "guidance 2.5" in text and "weights in bfloat16" in text
    pairs = {row.setting.title: row.pairs for row in rows}
    for title, guidance_scale in ((INDEPENDENT.title, 2.5), (own.title, 1.5)):
        result = fastrepulse.sample(
            list(PROMPTS),
            2,
            repulsion=None,
            guidance_scale=guidance_scale,
            dtype=torch.bfloat16,
            seed=0,
            num_inference_steps=1,
            micro_batch_size=MICRO_BATCH_SIZE["cpu"],
            compile=False,
            progress=False,
        )
        figures = [
            Figures.of(result.images[i * 2 : i * 2 + 2], subject)
            for i, subject in enumerate(PROMPTS.values())
        ]
        assert pairs[title] == pytest.approx([f.attribute_vendi for f in figures])


def test_a_killed_evaluation_resumes_to_the_same_tables(finished, tmp_path):
    folder, _ = finished
    log = tmp_path / "runs.jsonl"
    # Some runs were finished before
    shutil.copytree(folder / "runs", tmp_path / "runs")
    done_before = (folder / "runs.jsonl").read_text().splitlines(keepends=True)[:-2]
    log.write_text("".join(done_before))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= len(done_before) + 1):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = log.read_text()
    assert not (tmp_path / "table.md").exists()

    evaluate(tmp_path, FEW, **TINY, progress=False)
    whole = kept[: kept.rfind("\n") + 1]
    assert log.read_text().startswith(whole)
    assert log.read_text().count("\n") == SEEDS * (len(FEW) + 1)
    for name in ("table.csv", "table.json"):
        assert (tmp_path / name).read_text() == (folder / name).read_text()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        pytest.param({"num_seeds": 0}, ValueError, id="num_seeds"),
        pytest.param({"num_particles": 1}, ValueError, id="num_particles"),
        pytest.param({"guidance_scale": math.nan}, ValueError, id="guidance_scale"),
        pytest.param({"data": "/no/such/folder"}, FileNotFoundError, id="data"),
    ],
)
def test_bad_arguments_are_refused_by_name_before_the_first_run(arguments, error, tmp_path):
    (name,) = arguments
    with pytest.raises(error, match=name):
        evaluate(tmp_path / "out", FEW, **{**TINY, **arguments})
    assert not (tmp_path / "out").exists()


def test_an_unknown_method_gives_a_one_line_error_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "fastrepulse", "evaluate", "--out", "out"]
    done = subprocess.run(
        [*command, "--methods", "SVDG"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error:") and "'SVDG'" in done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_without_matplotlib_the_error_names_the_extra(tmp_path):
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
