"""CONTRIBUTING's recipes work: toys are added to a copy of the checkout by exactly their steps."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastrepulse import embeddings, integrations, kernels, methods
from fastrepulse.evaluation.settings import FAMILIES, PARTS
from fastrepulse.methods.from_settings import method_from_settings

ROOT = Path(__file__).resolve().parents[1]
COPIED = (".py", ".md", ".toml", ".yml", ".json", ".jsonl")


def text_of(path):
    return (ROOT / path).read_text("utf-8")


def public(room):
    return [name for name in room.__all__ if callable(getattr(room, name))]


class TestNothingIsLeftOut:
    """What a step of a recipe adds is there for everything that the package has."""

    @pytest.mark.parametrize("name", embeddings.names())
    def test_an_embedding_has_a_row(self, name):
        assert f"\n| `{name}` |" in text_of("docs/embeddings.md")

    @pytest.mark.parametrize("name", methods.__all__)
    def test_a_method_has_a_row(self, name):
        assert f"`{name}`" in text_of("docs/methods.md")

    @pytest.mark.parametrize("name", methods.__all__)
    def test_a_method_is_compared(self, name):
        settings = [*PARTS, *(family.at(family.low) for family in FAMILIES)]
        compared = [setting.arguments.get("repulsion") for setting in settings]
        assert name in [type(method).__name__ for method in compared]

    @pytest.mark.parametrize("name", methods.__all__)
    def test_a_method_comes_back_from_its_settings(self, name):
        method = getattr(methods, name)()
        assert method_from_settings(method.settings()).settings() == method.settings()

    @pytest.mark.parametrize("room", [integrations, kernels, methods], ids=lambda r: r.__name__)
    def test_a_public_name_is_in_the_reference(self, room):
        page = text_of("docs/api.md")
        missing = [n for n in public(room) if f"::: {room.__name__}.{n}\n" not in page]
        assert not missing

    def test_a_source_is_compiled(self):
        sources = {path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*.cpp")}
        found = {path for path in sources if path.is_relative_to("csrc/cpu")}
        assert 'Path("csrc/cpu").rglob("*.cpp")' in text_of("setup.py")
        assert found and sources - found == {Path("csrc/ops.cpp")}


def inserted(anchor, text):
    """Returns an edit that puts a text behind the first place where the file has the anchor."""

    def edit(path):
        before = path.read_text("utf-8")
        assert anchor in before, (path, anchor)
        path.write_text(before.replace(anchor, anchor + text, 1), "utf-8")

    return edit


def appended(text):
    return lambda path: path.write_text(path.read_text("utf-8") + text, "utf-8")


def written(name, text):
    return lambda folder: (folder / name).write_text(text, "utf-8")


def regenerated(path):
    root = path.parents[1]
    run(root, "docs/command_line.py")


EMBEDDING = '''
"""A toy."""

from torch import Tensor

from fastrepulse.embeddings.base import Embedding, register


@register
class ToyCorner(Embedding):
    """The upper left corner of every channel, d = C."""

    name = "toy_corner"

    def __call__(self, latents: Tensor) -> Tensor:
        return latents[:, :, :4, :4].mean(dim=(2, 3))
'''
EMBEDDING_TEST = """

def test_toy_corner_by_hand():
    latents = torch.zeros(1, 4, 8, 8)
    latents[0, 1, :4, :2] = 2.0
    assert build("toy_corner")(latents).tolist() == [[0.0, 1.0, 0.0, 0.0]]
"""
METHOD = '''
"""A toy."""

from dataclasses import dataclass

from fastrepulse.methods.base import Method, Particles, Push


@dataclass(frozen=True)
class ToyShrink(Method):
    """Adds -strength * x0 to the score."""

    strength: float = 0.1
    joint = True

    @property
    def acts_on_one(self) -> bool:
        return True

    def push(self, particles: Particles) -> Push:
        return Push.of(-self.strength * particles.denoised, particles)
'''
METHOD_TEST = """

def test_toy_shrink_by_hand_and_in_a_run():
    from fastrepulse.methods import ToyShrink

    x = draw()
    torch.testing.assert_close(change_of(ToyShrink(0.5), x), -0.5 * x)
    how = {"num_inference_steps": 2, "seed": 0, "progress": False}
    alone = fastrepulse.sample("a planet", 1, repulsion=None, **how)
    toy = fastrepulse.sample("a planet", 1, repulsion=ToyShrink(0.5), **how)
    assert not torch.equal(toy.latents, alone.latents)
    assert "ToyShrink" in str(toy.settings)
"""
REFERENCE = '''

def toy_norms_reference(x: Tensor) -> Tensor:
    """Returns ||x_i - mean x||^2, [N]."""
    return (x - x.mean(dim=0)).square().sum(dim=1)
'''
DISPATCH = '''

def toy_norms(backend: str, x: Tensor) -> Tensor:
    """Computes `kernels.toy_norms` by a backend that serves."""
    from fastrepulse.kernels.reference import toy_norms_reference

    return toy_norms_reference(widen(x))
'''
OP = '''

def toy_norms(x: Tensor, *, backend: str | None = None) -> Tensor:
    """Returns ||x_i - mean x||^2, [N]."""
    if x.ndim != 2:
        raise ValueError(f"x must be [N, d], got {tuple(x.shape)}")
    return _toy_norms(x, backend or "auto")


@torch.library.custom_op("fastrepulse::toy_norms", mutates_args=())
def _toy_norms(x: Tensor, backend: str) -> Tensor:
    return dispatch.toy_norms(backend, x)


@_toy_norms.register_fake
def _(x, backend):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[:1])


def _save_toy(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[0])


def _toy_backward(ctx, grad):  # type: ignore[no-untyped-def]
    (x,) = ctx.saved_tensors
    return 2 * grad[:, None] * (x - x.mean(dim=0)) - 2 * (
        grad[:, None] * (x - x.mean(dim=0))
    ).mean(dim=0), None


_toy_norms.register_autograd(_toy_backward, setup_context=_save_toy)
'''
KERNEL_TEST = """
import pytest
import torch

from fastrepulse.kernels import toy_norms
from fastrepulse.kernels.reference import toy_norms_reference
from helpers.tolerances import AGAINST_FLOAT64


@pytest.mark.parametrize(("n", "d"), [(1, 1), (7, 33)])
def test_toy_norms(n, d):
    x = torch.randn(n, d)
    rtol, atol = AGAINST_FLOAT64[torch.float32]
    expected = toy_norms_reference(x.double()).float()
    torch.testing.assert_close(toy_norms(x), expected, rtol=rtol, atol=atol)
    torch.library.opcheck(torch.ops.fastrepulse.toy_norms.default, (x, "auto"))
    assert torch.autograd.gradcheck(toy_norms, (x.double().requires_grad_(),))
    compiled = torch.compile(toy_norms, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), toy_norms(x))
"""
ROW = "| `toy_corner` | C | 0 | the corner | average of a corner |\n"
STEPS = {
    "Add an embedding": {
        "fastrepulse/embeddings/": written("toy.py", EMBEDDING),
        "fastrepulse/embeddings/__init__.py": appended(
            "\nfrom fastrepulse.embeddings import toy  # noqa: E402, F401\n"
        ),
        "tests/methods/test_repulsion.py": inserted("WIDTHS = {\n", '    "toy_corner": 4,\n'),
        "tests/embeddings/test_embeddings.py": appended(EMBEDDING_TEST),
        "docs/embeddings.md": inserted("|---|---|---|---|---|\n", ROW),
        "docs/command-line.md": regenerated,
    },
    "Add a method": {
        "fastrepulse/methods/": written("toy.py", METHOD),
        "fastrepulse/methods/__init__.py": appended(
            "\nfrom fastrepulse.methods.toy import ToyShrink  # noqa: E402\n"
            '\n__all__.append("ToyShrink")\n'
        ),
        "tests/methods/test_methods.py": appended(METHOD_TEST),
        "fastrepulse/evaluation/settings.py": appended(
            "\nfrom fastrepulse.methods import ToyShrink  # noqa: E402\n"
            '\nFAMILIES.append(method_family("toy", ToyShrink, 0.1, 1))\n'
        ),
        "docs/methods.md": appended("\n`ToyShrink`\n"),
        "docs/api.md": appended("\n::: fastrepulse.methods.ToyShrink\n"),
    },
    "Add a kernel": {
        "fastrepulse/kernels/reference.py": appended(REFERENCE),
        "fastrepulse/kernels/dispatch.py": appended(DISPATCH),
        "fastrepulse/kernels/ops.py": appended(OP),
        "fastrepulse/kernels/__init__.py": appended(
            "\nfrom fastrepulse.kernels.ops import toy_norms  # noqa: E402\n"
            '\n__all__.append("toy_norms")\n'
        ),
        "tests/kernels/": written("test_toy_norms.py", KERNEL_TEST),
        "docs/api.md": appended("\n::: fastrepulse.kernels.toy_norms\n"),
    },
}
CHECKED = {
    "Add an embedding": (
        "toy_corner or command_line",
        ["tests/methods/test_repulsion.py", "tests/embeddings/test_embeddings.py"],
    ),
    "Add a method": ("toy or ToyShrink or public_name", ["tests/methods/test_methods.py"]),
    "Add a kernel": ("toy or public_name", ["tests/kernels/test_toy_norms.py"]),
}
"""Of each recipe: which tests to run in the copy, and the files that must have one of them."""


def run(root, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True
    )


def copy_checkout(to):
    """Copies texts and links everything else: weights, images, the native library."""

    def copy(source, target):
        kind = shutil.copyfile if Path(source).suffix in COPIED else os.symlink
        kind(Path(source).resolve(), target)

    skipped = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
    for name in ("fastrepulse", "tests", "docs"):
        shutil.copytree(ROOT / name, to / name, copy_function=copy, ignore=skipped)
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*.py"), *ROOT.glob("*.toml"), ROOT / "mkdocs.yml"]:
        shutil.copyfile(path, to / path.name)
    for name in ("csrc", "bench", "triton_kernels"):
        (to / name).symlink_to(ROOT / name)


def steps_in_contributing(recipe):
    section = text_of("CONTRIBUTING.md").split(f"## {recipe}\n")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. `([^`]+)`", section, re.M)


def follow(recipes, root, leaving_out=None):
    """Adds a toy by each recipe to a copy of the checkout; returns the first problem or None."""
    copy_checkout(root)
    for recipe in recipes:
        for path, edit in STEPS[recipe].items():
            if path != leaving_out:
                edit(root / path)
    selected = " or ".join(CHECKED[recipe][0] for recipe in recipes)
    files = [path for recipe in recipes for path in CHECKED[recipe][1]]
    paths = [path for path in files if (root / path).exists()]
    paths += ["tests/test_docs.py", "tests/test_recipes.py::TestNothingIsLeftOut"]
    done = run(root, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", selected, *paths)
    if done.returncode:
        return done.stdout[-3000:] + done.stderr[-1000:]
    toys = [line for line in done.stdout.splitlines() if "toy" in line and "PASSED" in line]
    without = [path for path in files if not any(line.startswith(path) for line in toys)]
    return f"no test of the toy in {without}" if without else None


@pytest.mark.parametrize("recipe", STEPS)
def test_the_steps_are_those_of_the_recipe(recipe):
    assert steps_in_contributing(recipe) == list(STEPS[recipe])


def test_toys_are_added_by_the_steps_of_the_recipes(tmp_path):
    assert follow(STEPS, tmp_path) is None


@pytest.mark.slow
@pytest.mark.parametrize("recipe", STEPS)
def test_a_toy_is_added_by_the_steps_of_one_recipe_alone(recipe, tmp_path):
    assert follow([recipe], tmp_path) is None


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "step"), [(r, step) for r in STEPS for step in STEPS[r]])
def test_no_step_can_be_left_out(recipe, step, tmp_path):
    assert follow([recipe], tmp_path, leaving_out=step) is not None
