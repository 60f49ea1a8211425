"""A build of the native library that fails says so, and so does the package afterwards."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
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


def without_torch(folder, *command, **environment):
    """Runs a command of setup.py where torch cannot be imported."""
    program = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path('setup.py')"
    return subprocess.run(
        [sys.executable, "-c", program, *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_source_distribution_without_torch_makes_a_wheel_for_every_platform(tmp_path):
    source = tmp_path / "source"
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "demo", "out", "*.so", "docs")
    shutil.copytree(ROOT, source, ignore=left_out)
    done = without_torch(source, "-q", "sdist", "-d", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    for folder in ("csrc", "triton_kernels"):
        needed = {file.relative_to(ROOT) for file in (ROOT / folder).rglob("*.*")}
        found = {file.relative_to(unpacked) for file in (unpacked / folder).rglob("*.*")}
        assert {path for path in needed if "__pycache__" not in path.parts} <= found

    done = without_torch(unpacked, "-q", "bdist_wheel", "-d", str(tmp_path), FASTREPULSE_NATIVE="0")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "fastrepulse/triton_kernels/__init__.py" in names
    assert not [name for name in names if "_native." in name]


def test_the_native_library_without_torch_is_refused_with_the_way_to_build_it(tmp_path):
    done = without_torch(
        ROOT, "build_ext", "--build-lib", str(tmp_path), "--build-temp", "/nowhere"
    )
    assert done.returncode == 1 and "pip install --no-build-isolation ." in done.stderr
