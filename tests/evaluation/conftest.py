"""Fixtures of the evaluation's tests."""

import shutil

import pytest
from filelock import FileLock

pytest.importorskip("matplotlib")

from fastrepulse.evaluation import evaluate
from helpers.evaluated import FEW, TINY


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
    """The folder and the rows of a tiny evaluation.

    The first of several workers samples it. The others copy its runs and only measure them.
    """
    folder = tmp_path_factory.mktemp("evaluation")
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "sampled"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            evaluate(folder, FEW, **TINY, progress=False)
            shutil.copytree(folder, shared)
    shutil.copytree(shared, folder, dirs_exist_ok=True)
    return folder, evaluate(folder, FEW, **TINY, progress=False)
