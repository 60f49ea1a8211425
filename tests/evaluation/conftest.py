"""Fixtures of the evaluation's tests."""

import pytest

pytest.importorskip("matplotlib")

from fastrepulse.evaluation import evaluate
from helpers.evaluated import FEW, TINY


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, evaluate(folder, FEW, **TINY, progress=False)
