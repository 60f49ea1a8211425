"""What nvcc makes of the CUDA sources: that they compile, and within which resources."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

from helpers.compilers import failing_nvcc

CSRC = Path(__file__).resolve().parents[2] / "csrc"
NVCC = shutil.which("nvcc")
# The sources are the same for all architectures
ARCHITECTURES = [90] + [
    pytest.param(number, marks=pytest.mark.slow) for number in (80, 86, 89, 100, 120)
]

THREADS = {"narrow_repulsion": 128, "median_rbf_repulsion": 512}
"""A block; 256 in the other kernels."""


def resources(output):
    """Yields (mangled kernel name, spilled bytes, registers, static shared memory) of ptxas -v."""
    pattern = (
        r"Function properties for (\w+)\n"
        r".*?(\d+) bytes spill stores, (\d+) bytes spill loads\n.*?Used (\d+) registers([^\n]*)"
    )
    for name, stores, loads, registers, rest in re.findall(pattern, output, re.DOTALL):
        shared = re.search(r"(\d+) bytes smem", rest)
        yield name, int(stores) + int(loads), int(registers), int(shared[1]) if shared else 0


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH")
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids="sm_{}".format)
def test_kernels_fit_the_architecture(architecture, tmp_path):
    command = [NVCC, "-c", str(CSRC / "cuda" / "ops.cu"), "-o", str(tmp_path / "cuda_ops.o")]
    flags = ["-std=c++17", "-O3", f"-arch=sm_{architecture}", "-Xcompiler=-fPIC", "-Xptxas=-v"]
    defines = ["-DTORCH_TARGET_VERSION=0x020d000000000000", "-Werror=all-warnings"]
    paths = [f"-isystem={path}" for path in include_paths()]
    done = subprocess.run(
        [*command, *flags, *defines, *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kernels = list(resources(done.stderr))
    # Of every dtype; 4 widths of rows; and 5 kernels that do not depend on the dtype
    assert len(kernels) == 3 * (4 + 5) + 5
    for name, spilled, registers, shared in kernels:
        # Shared memory is all dynamic: what it takes is asserted in the sources
        assert (spilled, shared) == (0, 0), name
        # At least two blocks share the 64 Ki registers of a multiprocessor
        threads = next((threads for kernel, threads in THREADS.items() if kernel in name), 256)
        assert registers * threads <= 32 * 1024, (name, registers)


def test_an_nvcc_that_cannot_is_an_error_where_cuda_is_asked_for(tmp_path):
    asked = failing_nvcc(tmp_path)
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    # The compiler of C++ writes nothing: nvcc fails before anything is linked
    environment = {**os.environ, "CUDA_HOME": str(tmp_path), "FASTREPULSE_CUDA": "1", "CXX": "true"}
    environment.pop("TORCH_CUDA_ARCH_LIST", None)
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", *folders], cwd=CSRC.parent, env=environment
    )
    # Of the architectures that one knows
    assert re.findall(r",code=(\S+)", asked.read_text()) == ["sm_80", "sm_90", "compute_90"]
    assert done.returncode != 0
    assert not list(tmp_path.glob("lib/fastrepulse/_native*"))
