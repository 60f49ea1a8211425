"""What importing costs, what may import what, and what the built package holds."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fastrepulse"


def test_import_is_light():
    program = (
        "import torch, time; start = time.perf_counter(); import fastrepulse, sys;"
        "print(time.perf_counter() - start);"
        "print([m for m in ('diffusers', 'transformers', 'triton') if m in sys.modules])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/"
        ).stdout.splitlines()
        for _ in range(3)
    ]
    assert all(output[1] == "[]" for output in outputs)
    assert min(float(output[0]) for output in outputs) < 0.5


def test_bad_input_fails_within_a_second_before_any_model_work():
    program = (
        "import fastrepulse, time, sys; start = time.perf_counter()\n"
        "for bad in ({'num_particles': 0}, {'repulsion': 'x'}, {'num_inference_steps': -1},"
        " {'model': '/nothing'}):\n"
        "    try: fastrepulse.sample('a planet', **bad)\n"
        "    except (ValueError, OSError): pass\n"
        "    else: raise AssertionError(bad)\n"
        "print(time.perf_counter() - start, 'diffusers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/"
    )
    seconds, loaded = done.stdout.split()
    assert float(seconds) < 1 and loaded == "False"


# Lower layers first: a module may import from layers above its own line, never from below
LAYERS = [
    {"fastrepulse.reference", "fastrepulse.metrics", "fastrepulse.default_model"},
    {"fastrepulse.kernels", "fastrepulse.embeddings", "fastrepulse.schedule"},
    {"fastrepulse.denoiser", "fastrepulse.repulsion", "fastrepulse.models"},
    {"fastrepulse.results"},
    {"fastrepulse.sampling"},
    {"fastrepulse.demo"},
    {"fastrepulse.cli", "fastrepulse"},
]


def layer_of(module):
    parts = module.split(".")
    for depth in range(min(len(parts), 2), 0, -1):
        for height, modules in enumerate(LAYERS):
            if ".".join(parts[:depth]) in modules:
                return height
    raise AssertionError(f"{module} is in no layer")


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE))
)
def test_imports_run_downwards(file):
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastrepulse."):
            assert layer_of(node.module) <= layer_of(module), node.module
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.split(".")[0] == "diffusers" for name in names):
            assert module == "fastrepulse.models" or ".default_model.train" in module


def test_nothing_is_unpickled():
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text()
        assert "torch.load" not in text and "pickle.load" not in text, file


@pytest.mark.slow
def test_the_wheel_holds_the_model(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for part in ("unet", "vae", "text_encoder"):
        assert any(
            n.startswith(f"fastrepulse/default_model/weights/{part}/")
            and n.endswith(".safetensors")
            for n in names
        )
    assert not any(name.startswith("triton_kernels/") for name in names)
