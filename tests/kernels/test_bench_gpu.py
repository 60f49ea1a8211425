"""`bench.gpu`, the script for a machine with a GPU, runs on the CPU and keeps its rows."""

import json
import subprocess
import sys

import pytest

from helpers.checkout import ROOT, import_from_checkout

bench_gpu = import_from_checkout("bench.gpu.__main__")
SMOKE = ["-m", "bench.gpu", "--device", "cpu", "--smoke"]


def read(folder):
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


def test_every_section_runs_on_the_cpu(tmp_path):
    command = [sys.executable, *SMOKE, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path)
    kinds = {row["what"] for row in rows}
    assert {"device", "copy", "error", "force", "unet", "sample", "recovery"} <= kinds
    assert not {"failed", "cut off"} & kinds
    (device,) = [row for row in rows if row["what"] == "device"]
    assert "NVIDIA" not in device["name"]
    assert max(row["force"] for row in rows if row["what"] == "error") < 0.02
    assert {row["compiled"] for row in rows if row["what"] == "unet"} == {False, True}
    drawn = {row["provider"] for row in rows if row["what"] == "sample"}
    assert drawn == {"independent", "repelled", "diffusers"}
    assert "| native |" in (tmp_path / "gpu.md").read_text()
    assert (tmp_path / "gpu.png").stat().st_size > 10_000


def test_sections_that_need_diffusers_are_skipped_without_it(tmp_path):
    program = "import runpy, sys; sys.modules['diffusers'] = None; sys.argv[0] = 'bench.gpu'\n"
    program += "runpy.run_module('bench.gpu', run_name='__main__')"
    sections = ["--sections", "versions", "unet", "sampling", "recovery"]
    command = [sys.executable, "-c", program, *SMOKE[2:], *sections, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    skipped = [row["skipped"] for row in read(tmp_path) if "skipped" in row]
    assert skipped == ["diffusers is not installed"] * 3


def fails(device, smoke):
    yield {"what": "first"}
    raise RuntimeError("out of luck")


def works(device, smoke):
    for number in range(3):
        yield {"what": "row", "number": number}


@pytest.mark.parametrize(
    ("failing", "after", "later"),
    [
        ("unet", ["sampling"], ["row"] * 3),
        ("versions", ["correctness", "sampling"], ["row"] * 6),
        ("correctness", ["sampling"], []),
    ],
    ids=["continues", "continues after correctness", "stops"],
)
def test_only_a_failed_correctness_check_stops_the_script(
    tmp_path, monkeypatch, failing, after, later
):
    sections = {failing: fails, **dict.fromkeys(after, works)}
    monkeypatch.setattr(bench_gpu, "SECTIONS", sections)
    command = ["bench.gpu", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--sections", *sections])
    with pytest.raises(SystemExit, match=f"failed: {failing}"):
        bench_gpu.main()
    rows = read(tmp_path)
    assert [row["what"] for row in rows] == ["first", "failed", *later]
    assert rows[1]["section"] == failing and "out of luck" in rows[1]["error"]
    assert "out of luck" in (tmp_path / "gpu.md").read_text()


def test_no_row_starts_after_the_time_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_gpu, "SECTIONS", {"sampling": works})
    command = ["bench.gpu", "--device", "cpu", "--out", str(tmp_path), "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", command)
    bench_gpu.main()
    assert [row["what"] for row in read(tmp_path)] == ["row", "cut off"]
