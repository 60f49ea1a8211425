"""Builds the native library; everything else about the package is in pyproject.toml.

It is built against PyTorch's stable ABI, so that one library serves every torch from 2.13 on and
every Python from 3.10 on.
"""

import os
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from torch.utils.cpp_extension import include_paths, library_paths
except ImportError as error:
    raise SystemExit(
        "fastrepulse is built against the torch that is installed. Install torch, setuptools and "
        "wheel first, then: pip install --no-build-isolation ."
    ) from error

SOURCES = ["gram.cpp", "instruction_set.cpp", "median_sq_distance.cpp", "ops.cpp", "panel.cpp"]
SOURCES += ["rbf_repulsion.cpp"]
X86 = platform.machine() in ("x86_64", "AMD64")
INSTRUCTION_SETS = {"baseline": []}
if X86:
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTION_SETS["avx512"] = ["-mfma", *(f"-mavx512{part}" for part in ("f", "dq", "bw", "vl"))]

DEFINES = ["-DTORCH_TARGET_VERSION=0x020d000000000000", "-DPy_LIMITED_API=0x030a0000"]
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]


class BuildNative(build_ext):
    """Compiles the tiles once for each instruction set, beside the other sources."""

    def build_extension(self, ext: Extension) -> None:
        temporary = Path(self.build_temp)
        temporary.mkdir(parents=True, exist_ok=True)
        compiler = [os.environ.get("CXX", "g++"), *FLAGS]
        torch_headers = [f"-isystem{path}" for path in include_paths()]
        objects = []
        for source in SOURCES:
            objects.append(temporary / f"{source}.o")
            x86 = ["-DFASTREPULSE_X86"] if X86 else []
            command = [*compiler, *DEFINES, *x86, *torch_headers, "-c", f"csrc/{source}"]
            self.spawn([*command, "-o", str(objects[-1])])
        for name, flags in INSTRUCTION_SETS.items():
            objects.append(temporary / f"tiles_{name}.o")
            command = [*compiler, *flags, f"-DFASTREPULSE_ISA={name}", "-c", "csrc/tiles.cpp"]
            self.spawn([*command, "-o", str(objects[-1])])
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # No run path: the library is loaded where torch already is
        torch_library = [f"-L{library_paths()[0]}", "-ltorch_cpu"]
        self.spawn([*compiler, "-shared", *map(str, objects), *torch_library, "-o", str(target)])


sources = [f"csrc/{name}" for name in [*SOURCES, "tiles.cpp"]]
headers = sorted(str(path) for path in Path("csrc").glob("*.h"))
setup(
    ext_modules=[
        Extension(
            "fastrepulse._native", sources, depends=headers, py_limited_api=True, optional=True
        )
    ],
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
