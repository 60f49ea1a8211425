"""Variables of a job in the environment: a job, stray ones, and a job without partners."""

import socket
import threading

import pytest

from fastrepulse.sampling import distributed
from fastrepulse.sampling.distributed import OtherRankFailed, torchrun_group

JOB = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29501"}


@pytest.fixture
def environment(monkeypatch):
    def of(given):
        for name in JOB:
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)

    return of


@pytest.mark.parametrize(
    "given",
    [
        {"WORLD_SIZE": ""},
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "two"},
        JOB | {"RANK": ""},
        JOB | {"MASTER_PORT": "port"},
        {name: value for name, value in JOB.items() if name != "MASTER_ADDR"},
    ],
    ids=lambda given: "-".join(f"{name}={value}" for name, value in given.items()),
)
def test_stray_variables_are_ignored_with_a_word(given, environment, caplog):
    environment(given)
    with torchrun_group() as group:
        assert group is None
    assert f"WORLD_SIZE={given['WORLD_SIZE']}" in caplog.text


@pytest.mark.parametrize("given", [{}, {"RANK": "0"}, JOB | {"WORLD_SIZE": "1"}])
def test_one_process_says_nothing(given, environment, caplog):
    environment(given)
    with torchrun_group() as group:
        assert group is None
    assert not caplog.records


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_says_for_whom_it_waits_and_gives_up(rank, environment, monkeypatch, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment(JOB | {"RANK": rank, "MASTER_PORT": port})
    monkeypatch.setattr(distributed, "PATIENCE", 0.1)
    monkeypatch.setattr(distributed, "WAIT", 1.0)
    about = f"rank {rank} of 2 waits for the others at 127.0.0.1:{port}"
    with pytest.raises(OtherRankFailed, match=f"{about}, for 1 s in vain"), torchrun_group():
        pass
    assert about in caplog.text
    assert not [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
