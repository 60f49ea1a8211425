"""The memory of a run stays within the free memory or a given budget."""

import os
import subprocess
import sys

import pytest
import torch

import fastrepulse
from fastrepulse.sampling import memory
from fastrepulse.sampling.memory import OUTPUTS_KEPT, Budget, bytes_of, free_memory, weights_of

MB = 10**6


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (123, 123),
        ("6GB", 6 * 10**9),
        ("6 gb", 6 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("500M", 500 * MB),
        ("2KiB", 2048),
        ("1000", 1000),
        ("1000 B", 1000),
    ],
)
def test_sizes_are_read(given, expected):
    assert bytes_of(given) == expected


@pytest.mark.parametrize(
    ("given", "error"),
    [
        *(
            (wrong, ValueError)
            for wrong in ("", "GB", "six GB", "-6GB", "6 TiBs", "0", "1e9", 0, -1)
        ),
        *((wrong, TypeError) for wrong in (1.5, True, [6])),
    ],
)
def test_invalid_sizes_are_refused(given, error):
    with pytest.raises(error, match="memory must be"):
        fastrepulse.sample("a robot", 2, memory=given)


def test_the_default_budget_is_the_free_memory(monkeypatch):
    model = fastrepulse.load_model()
    for free, micro_batch, decoded in ((2**34, 32, 32), (2**25, 2, 2), (0, 1, 1)):
        monkeypatch.setattr(memory, "free_memory", lambda _, free=free: free)
        budget = Budget(model, 8, (4, 16, 16), None)
        assert (budget.micro_batch_size(), budget.decode_batch_size()) == (micro_batch, decoded)


def test_a_given_budget_overrides_the_free_memory(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda _: 2**40)
    model = fastrepulse.load_model()
    weights = weights_of(model)
    sizes = []
    for more in (10, 40, 160, 640):
        budget = Budget(model, 8, (4, 16, 16), weights + more * MB)
        sizes.append((budget.micro_batch_size(), budget.decode_batch_size()))
    assert sizes == sorted(sizes) and sizes[0][0] < sizes[1][0] < sizes[2][0]
    # Latents count too
    crowd = Budget(model, 2000, (4, 16, 16), weights + 40 * MB)
    assert crowd.micro_batch_size() < sizes[1][0]


def test_outputs_kept_by_a_multistep_scheduler_count():
    model = fastrepulse.load_model()
    budget = weights_of(model) + 60 * MB
    euler, multistep = (
        Budget(model, 2000, (4, 16, 16), budget, name).micro_batch_size()
        for name in ("euler", "dpm++")
    )
    assert multistep < euler
    # The same number of outputs as diffusers' scheduler keeps
    stepper = model.scheduler("dpm++", 5)
    assert len(stepper.model_outputs) == OUTPUTS_KEPT["dpm++"]


def test_too_little_memory_for_one_particle_is_refused_before_any_step(capsys):
    with pytest.raises(ValueError, match=r"memory must be at least 3\d MB .* got 20 MB"):
        fastrepulse.sample("a robot", 2, memory="20MB", progress=True)
    assert "denoise" not in capsys.readouterr().err


def test_memory_cached_by_pytorch_counts_as_free(monkeypatch):
    sizes = {"mem_get_info": (3, 80), "memory_reserved": 20, "memory_allocated": 12}
    for name, size in sizes.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    assert free_memory(torch.device("cuda")) == 3 + 20 - 12


MEMINFO = "MemTotal: 2000 kB\nMemAvailable: 1000 kB\n"
V1 = "5:cpu,cpuacct:/x\n4:memory:{}\n"
V2_FILES = ("memory.max", "memory.current", "inactive_file")
V1_FILES = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.mark.parametrize(
    ("cgroup", "folder", "names", "limit", "expected"),
    [
        pytest.param("0::/\n", "", V2_FILES, "700000", 450_000, id="container"),
        pytest.param("0::/user/app\n", "user", V2_FILES, "700000", 450_000, id="parent"),
        pytest.param("0::/\n", "", V2_FILES, "300000", 50_000, id="almost full"),
        pytest.param("0::/\n", "", V2_FILES, "200000", 0, id="above the limit"),
        pytest.param("0::/\n", "", V2_FILES, "9000000", 1_024_000, id="above the host"),
        pytest.param("0::/\n", "", V2_FILES, "max", 1_024_000, id="no limit"),
        pytest.param("0::/\n", "other", V2_FILES, "700000", 1_024_000, id="another group"),
        pytest.param(V1.format("/a"), "memory/a", V1_FILES, "700000", 450_000, id="version 1"),
        pytest.param(V1.format("/docker/1"), "memory", V1_FILES, "700000", 450_000, id="host path"),
        pytest.param(V1.format("/"), "memory", V1_FILES, str(2**63 - 4096), 1_024_000, id="v1 max"),
    ],
)
def test_a_container_s_limit_counts(cgroup, folder, names, limit, expected, tmp_path):
    group = tmp_path / "sys/fs/cgroup" / folder
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    (group / names[0]).write_text(limit + "\n")
    (group / names[1]).write_text("300000\n")
    (group / "memory.stat").write_text(f"anon 1\n{names[2]} 50000\n")
    assert free_memory(torch.device("cpu"), tmp_path) == expected


PROGRAM = """
import sys, torch, fastrepulse
from fastrepulse.sampling.memory import weights_of

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

torch.set_num_threads(1)
how = {"num_inference_steps": 1, "height": 256, "width": 256, "compile": False, "progress": False}
model = fastrepulse.load_model()
# Memory that Python and the libraries take once
fastrepulse.sample("a robot", 1, micro_batch_size=1, **how)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
fastrepulse.sample("a robot", 8, memory=int(sys.argv[1]), out=sys.argv[2], **how)
print(status("VmHWM") - before + weights_of(model))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("promised", [250 * MB, pytest.param(500 * MB, marks=pytest.mark.slow)])
def test_peak_memory_stays_within_the_budget(promised, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(promised), str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout)
    assert 0.2 * promised < peak <= promised, peak
