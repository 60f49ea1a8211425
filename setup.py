"""Builds the native library; everything else about the package is in pyproject.toml.

The library uses PyTorch's stable ABI. So one build works with every torch from 2.11 on, with or
without CUDA, and with every Python from 3.10 on.
"""

import atexit
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import ExecError

NATIVE = os.environ.get("FASTREPULSE_NATIVE", "1")
"""0 for a wheel without the native library, which fits every platform and needs no torch here."""
if NATIVE not in ("0", "1"):
    raise SystemExit(f"FASTREPULSE_NATIVE must be 0 or 1, got {NATIVE!r}")

SOURCES = ["csrc/ops.cpp", *map(str, sorted(Path("csrc/cpu").rglob("*.cpp")))]
TILES = "csrc/cpu/simd/tiles.cpp"  # compiled once for each instruction set
X86 = platform.machine() in ("x86_64", "AMD64")
INSTRUCTION_SETS = {"baseline": []}
if X86:
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTION_SETS["avx512"] = ["-mfma", *(f"-mavx512{part}" for part in ("f", "dq", "bw", "vl"))]

STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
CUDA_FLAGS = ["-std=c++17", "-O3", "--threads=0", "-Xcompiler=-fPIC,-fvisibility=hidden"]
CUDA_ARCHITECTURES = ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]


def torch_paths() -> tuple[list[str], list[str]]:
    """Returns the folders of torch's headers and of its libraries."""
    try:
        from torch.utils.cpp_extension import include_paths, library_paths
    except ImportError as error:
        raise SystemExit(
            "fastrepulse is built against the torch that is installed. Install torch, setuptools "
            "and wheel first, then: pip install --no-build-isolation ."
        ) from error
    return include_paths(), library_paths()


def find_nvcc() -> str | None:
    """Returns the nvcc to build with, or None for a build without CUDA.

    FASTREPULSE_CUDA is 0 (never), 1 (an error without nvcc) or auto (if nvcc exists, the default).
    The build needs neither a GPU nor a CUDA build of PyTorch.
    """
    wanted = os.environ.get("FASTREPULSE_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"FASTREPULSE_CUDA must be auto, 0 or 1, got {wanted!r}")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)
    if nvcc is None and wanted == "1":
        raise SystemExit("FASTREPULSE_CUDA=1 needs nvcc, in CUDA_HOME or on the PATH")
    return nvcc


def architecture_flags(nvcc: str) -> list[str]:
    """Translates TORCH_CUDA_ARCH_LIST, such as "8.0;9.0 12.0+PTX", for nvcc.

    Without that variable nvcc compiles for all CUDA_ARCHITECTURES that it supports.
    """
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not architectures:
        listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
        known = set(re.findall(r"compute_(\d+)", listed.stdout))
        numbers = [name for name in CUDA_ARCHITECTURES if name.replace(".", "") in known]
        # The newest also as PTX, which newer GPUs compile at run time
        architectures = " ".join(numbers or CUDA_ARCHITECTURES) + "+PTX"
    flags = []
    for name in architectures.replace(";", " ").split():
        match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", name)
        if match is None:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST names {name!r}; it should be like 9.0+PTX")
        number = match[1] + match[2]
        codes = [f"sm_{number}", f"compute_{number}"] if match[3] else [f"sm_{number}"]
        flags += [f"-gencode=arch=compute_{number},code={code}" for code in codes]
    return flags


class BuildNative(build_ext):
    """Compiles the tiles for each instruction set, and the CUDA kernels if nvcc exists."""

    failure: Exception | None = None

    def run(self) -> None:
        """Builds the library; a failed build leaves its reason where the library would be."""
        super().run()
        folders = [Path(self.build_lib, "fastrepulse")]
        if self.inplace:
            folders.append(Path("fastrepulse"))
        for folder in folders:
            reason = folder / "_native_build_failed.txt"
            reason.unlink(missing_ok=True)
            if self.failure:
                for outdated in folder.glob("_native*.so"):
                    outdated.unlink()
                folder.mkdir(parents=True, exist_ok=True)
                reason.write_text(f"{self.failure}\n")
        if self.failure:
            atexit.register(
                print,
                f"\nWARNING: fastrepulse's native library was not built: {self.failure}\n"
                "fastrepulse works without it, but slower. The compiler's messages are above.\n",
                file=sys.stderr,
            )

    def build_extension(self, ext: Extension) -> None:
        try:
            self.compile_and_link(ext)
        except Exception as error:
            self.failure = error
            raise

    def compile_and_link(self, ext: Extension) -> None:
        temporary = Path(self.build_temp)
        temporary.mkdir(parents=True, exist_ok=True)
        compiler = [
            os.environ.get("CXX", "g++"),
            *FLAGS,
            "-Icsrc",
            *os.environ.get("CXXFLAGS", "").split(),
        ]
        x86 = ["-DFASTREPULSE_X86"] if X86 else []
        include_paths, library_paths = torch_paths()
        torch_headers = [f"-isystem{path}" for path in include_paths]
        commands = {
            f"{Path(source).stem}.o": [*compiler, STABLE_ABI, *x86, *torch_headers, source]
            for source in SOURCES
            if source != TILES
        }
        for name, flags in INSTRUCTION_SETS.items():
            isa = f"-DFASTREPULSE_ISA={name}"
            commands[f"tiles_{name}.o"] = [*compiler, *flags, isa, TILES]
        for target, command in commands.items():
            self.spawn([*command, "-c", "-o", str(temporary / target)])
        objects = [str(temporary / target) for target in commands]
        nvcc = find_nvcc()
        if nvcc:
            cuda = str(temporary / "cuda_ops.o")
            try:
                # nvcc requires an equals sign
                headers = [f"-isystem={path}" for path in include_paths]
                flags = [*CUDA_FLAGS, *architecture_flags(nvcc), STABLE_ABI]
                self.spawn([nvcc, *flags, *headers, "csrc/cuda/ops.cu", "-c", "-o", cuda])
                objects.append(cuda)
            except ExecError as error:
                if os.environ.get("FASTREPULSE_CUDA") == "1":
                    raise SystemExit(f"{nvcc} does not compile CUDA's kernels: {error}") from error
                self.warn(f"built without CUDA's kernels, which {nvcc} does not compile: {error}")
                nvcc = None
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        # nvcc finds its static runtime. No run path is needed: torch is loaded before the library.
        linker = [nvcc, "-cudart=static"] if nvcc else compiler
        torch_library = [f"-L{library_paths[0]}", "-ltorch_cpu"]
        self.spawn([*linker, "-shared", *objects, *torch_library, "-o", str(library)])


headers = sorted(map(str, {*Path("csrc").rglob("*.*")} - {*map(Path, SOURCES)}))
library = Extension(
    "fastrepulse._native", SOURCES, depends=headers, py_limited_api=True, optional=True
)
setup(
    ext_modules=[library] if NATIVE == "1" else [],
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if NATIVE == "1" else {},
)
