"""A build of the native library that fails says so, and so does the package afterwards."""

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from fastrepulse import native
from fastrepulse.cli.app import app, console

ROOT = Path(__file__).resolve().parents[1]


def test_a_failed_build_gives_its_reason_at_the_end_and_in_info(tmp_path, monkeypatch):
    folder = tmp_path / "lib" / "fastrepulse"
    folder.mkdir(parents=True)
    (folder / "_native.abi3.so").touch()  # of an earlier build
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", *folders],
        cwd=ROOT,
        env={**os.environ, "CXX": "false"},
        capture_output=True,
        text=True,
        check=True,
    )
    (warning,) = (line for line in done.stderr.splitlines()[-4:] if "WARNING" in line)
    assert "not built" in warning and "false' failed" in warning
    assert not list(folder.glob("*.so"))

    monkeypatch.setattr(native, "__file__", str(folder / "native.py"))
    reason = native.why_unavailable.__wrapped__()
    assert "not built" in reason and "false' failed" in reason
    monkeypatch.setattr(native, "why_unavailable", lambda: reason)
    # The console took its width from the environment when it was imported
    monkeypatch.setattr(console, "width", 400)
    assert reason in CliRunner().invoke(app, ["info"]).output
