"""What importing costs, what may import what, and what the built package holds."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel

import fastrepulse
from fastrepulse.kernels import dispatch
from fastrepulse.sampling.loop import DenoiseLoop
from helpers.compilers import failing_nvcc

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fastrepulse"
TRITON_KERNELS = ROOT / "triton_kernels"


def test_import_is_light():
    # Processor time: other processes on the machine do not count
    program = (
        "import torch, time; start = time.process_time(); import fastrepulse, sys;"
        "print(time.process_time() - start);"
        "print([m for m in ('diffusers', 'transformers', 'triton') if m in sys.modules])"
    )

    def seconds():
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
        needed, loaded = done.stdout.splitlines()
        assert loaded == "[]"
        return float(needed)

    assert any(seconds() < 0.5 for _ in range(3))


@pytest.mark.skipif(not shutil.which("nm"), reason="binutils are not installed")
def test_the_library_needs_no_more_of_torch_than_its_oldest_release_has():
    """The names are those of the C interface in torch 2.11.0's libtorch_cpu.so, without operators.

    The interface of C++ is another one in every release.
    """
    from fastrepulse import native

    if native.why_unavailable():
        pytest.skip(native.why_unavailable())
    (library,) = Path(native.__file__).parent.glob("_native*.so")
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
    )
    needed = {line.split()[-1] for line in listed.stdout.splitlines()}
    there = set((ROOT / "tests/data/torch_2_11_symbols.txt").read_text("utf-8").split())
    assert {name for name in needed if re.match("(aoti_)?torch_", name)} <= there
    assert not [name for name in needed if re.match("_ZNK?(2at|3c10|5torch)", name)]


def test_bad_input_fails_within_a_second_before_any_model_work(tmp_path):
    pickled = tmp_path / "pickled"
    shutil.copytree(PACKAGE / "default_model" / "weights", pickled)
    for weights in pickled.rglob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    program = (
        "import fastrepulse, time, sys; start = time.process_time()\n"
        "R = fastrepulse.Repulsion\n"
        "for bad in (dict(num_particles=0), dict(prompt=[]), dict(num_inference_steps=-1),"
        " dict(repulsion='x'), dict(model='/nothing'), dict(model=sys.argv[1]),"
        " lambda: R(strength=float('nan')), lambda: R(window=(1, 2))):\n"
        "    try: bad() if callable(bad) else fastrepulse.sample(**{'prompt': 'a planet', **bad})\n"
        "    except (ValueError, OSError): pass\n"
        "    else: raise AssertionError(bad)\n"
        "print(time.process_time() - start, 'diffusers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(pickled)],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    seconds, loaded = done.stdout.split()
    assert float(seconds) < 1 and loaded == "False"


# From the cellar up: a room may import from those on its own line and above, never from below
LAYERS = [
    {
        "checks",
        "files",
        "native",
        "noise",
        "naive",
        "out_of_memory",
        "safetensors_record",
        "torch_settings",
        "version",
        "triton_kernels",
        "metrics",
    },
    {"kernels", "layers"},
    {"schedule", "default_model"},
    {"embeddings", "models"},
    {"methods", "shipped_models"},
    {"integrations"},
    {"sampling"},
    {"demo", "evaluation", "ui"},
    {"cli", "__init__"},
    {"__main__"},
]
WITH_DIFFUSERS = (
    "fastrepulse.models.load",
    "fastrepulse.models.model",
    "fastrepulse.models.single_file",
    "fastrepulse.layers.attention",
)


def room_of(module):
    return [*module.split("."), "__init__"][1]


def layer_of(module):
    (height,) = (i for i, rooms in enumerate(LAYERS) if room_of(module) in rooms)
    return height


def imported(tree):
    """Every module that a file imports, whichever way it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "fastrepulse":
            yield from (f"fastrepulse.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE))
)
def test_imports_run_downwards(file):
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for name in imported(ast.parse(file.read_text())):
        if name.startswith("fastrepulse."):
            assert layer_of(name) <= layer_of(module), name
        if name.split(".")[0] == "diffusers":
            assert module in WITH_DIFFUSERS or room_of(module) == "integrations"


def test_rooms_make_no_circle():
    arrows = {}
    for file in PACKAGE.rglob("*.py"):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        names = [n for n in imported(ast.parse(file.read_text())) if n.startswith("fastrepulse.")]
        arrows.setdefault(room_of(module), set()).update(room_of(name) for name in names)
    left = {room: others - {room} for room, others in arrows.items()}
    while left:
        free = [room for room, others in left.items() if not others & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for room in free:
            del left[room]


def test_what_stands_alone():
    naive = imported(ast.parse((PACKAGE / "naive.py").read_text()))
    assert {name.split(".")[0] for name in naive} <= {"torch", "collections", "itertools", "math"}
    assert len((PACKAGE / "naive.py").read_text().splitlines()) <= 110
    tops = {path.stem for path in PACKAGE.glob("*.py")}
    layout = (
        "__init__ __main__ checks cli demo files naive native noise out_of_memory "
        "safetensors_record schedule torch_settings version"
    )
    assert tops <= set(layout.split())


@pytest.mark.parametrize("file", sorted(TRITON_KERNELS.glob("*.py")), ids=lambda f: f.name)
def test_triton_kernels_import_torch_triton_and_each_other(file):
    for name in imported(ast.parse(file.read_text())):
        allowed = ("torch", "triton", "functools", "dataclasses")
        assert name.split(".")[0] in allowed or name.startswith("fastrepulse.triton_kernels."), name


def test_a_default_step_crosses_at_most_eight_functions():
    """Counts functions of ours from the loop down to the UNet and to the kernel."""
    root = str(PACKAGE)
    model = fastrepulse.load_model()
    depths = {"UNet": [], "kernel": []}

    def record(frame, event, argument):
        code = frame.f_code
        if event != "call" or code not in ends:
            return
        names = []
        while frame.f_code is not DenoiseLoop.run.__code__:
            if frame.f_code.co_filename.startswith(root) and frame.f_code.co_name != "<listcomp>":
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        depths[ends[code]].append(len(names) + 1)

    ends = {
        UNet2DConditionModel.forward.__code__: "UNet",
        dispatch.median_rbf_repulsion.__code__: "kernel",
    }
    sys.setprofile(record)
    try:
        fastrepulse.sample("a robot", 3, model=model, num_inference_steps=8, progress=False)
    finally:
        sys.setprofile(None)
    assert depths["UNet"] and depths["kernel"]
    assert max(depths["UNet"]) <= 8 and max(depths["kernel"]) <= 8


def test_nothing_is_unpickled():
    for file in (*PACKAGE.rglob("*.py"), *TRITON_KERNELS.rglob("*.py")):
        text = file.read_text()
        assert "torch.load" not in text and "pickle.load" not in text, file


def test_the_wheel_holds_the_model_and_no_stray_package(tmp_path):
    """Built beside an nvcc that fails, which costs the CUDA kernels alone."""
    asked = failing_nvcc(tmp_path)
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "demo", "out", "*.so")
    shutil.copytree(ROOT, source, ignore=ignored)
    build = [
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(
        [sys.executable, "-m", "pip", *build],
        check=True,
        capture_output=True,
        env={
            **os.environ,
            "CUDA_HOME": str(tmp_path),
            "FASTREPULSE_CUDA": "auto",
            # The library is never run
            "CXXFLAGS": "-O0",
        },
    )
    assert asked.exists()
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp310-abi3-" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "fastrepulse/_native.abi3.so" in names
    shipped = [f for f in PACKAGE.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    assert {str(f.relative_to(ROOT)) for f in shipped} <= names
    kernels = {f"fastrepulse/triton_kernels/{f.name}" for f in TRITON_KERNELS.glob("*.py")}
    assert kernels and kernels <= names
    assert any(name.endswith("unet/diffusion_pytorch_model.safetensors") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fastrepulse"}
