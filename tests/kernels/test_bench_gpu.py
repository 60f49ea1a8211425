"""The script for a machine with a GPU runs to its end without one."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_section_runs_on_the_cpu(tmp_path):
    command = [sys.executable, "-m", "bench.kernels.gpu", "--device", "cpu", "--smoke"]
    command += ["--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert {"device", "copy", "error", "force", "sampling"} <= {row["what"] for row in rows}
    (device,) = [row for row in rows if row["what"] == "device"]
    assert "NVIDIA" not in device["name"]
    assert max(row["force"] for row in rows if row["what"] == "error") < 0.02
    assert "| native |" in (tmp_path / "gpu.md").read_text()
