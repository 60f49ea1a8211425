"""Fixtures: the shipped model in diffusers' pipeline, and the ComfyUI node in its own folder."""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch

from fastrepulse import integrations, models

FOLDER = Path(integrations.__file__).parent / "comfyui"


@pytest.fixture(scope="module")
def pipeline():
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(
        models.DEFAULT_MODEL, torch_dtype=torch.float32
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    """The folder as ComfyUI loads it: copied, and imported by its path."""
    folder = tmp_path_factory.mktemp("custom_nodes") / "fastrepulse"
    shutil.copytree(FOLDER, folder)
    name = "custom_nodes_fastrepulse"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for loaded in [each for each in sys.modules if each.split(".")[0] == name]:
        del sys.modules[loaded]


@pytest.fixture(scope="session")
def node(package):
    return package.NODE_CLASS_MAPPINGS["FastRepulse"]()


@pytest.fixture
def page(monkeypatch):
    """What the page would show, by node."""
    shown = []
    instance = SimpleNamespace(send_progress_text=lambda text, node: shown.append((node, text)))
    server = SimpleNamespace(PromptServer=SimpleNamespace(instance=instance))
    monkeypatch.setitem(sys.modules, "server", server)
    return shown
