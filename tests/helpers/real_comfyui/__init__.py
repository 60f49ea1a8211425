"""ComfyUI itself on the CPU, from the folder that COMFYUI_FOLDER names; see `make comfyui`.

Needs a process of its own: ComfyUI's modules have common names, and torchvision is replaced.
"""

import importlib.machinery
import importlib.util
import logging
import os
import sys
import types

FOLDER = os.environ.get("COMFYUI_FOLDER", "")


def start():
    """Makes ComfyUI's modules importable, without torchvision if it is not installed."""
    # transformers looks for the distribution. It must look before the empty module is there
    import transformers.utils.import_utils as installed

    installed.is_torchvision_available()
    if importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            _add_empty_module(name)
    sys.argv = ["main.py", "--cpu"]
    sys.path.insert(0, FOLDER)
    import comfy.options

    # Without this ComfyUI ignores sys.argv, and looks for CUDA
    comfy.options.enable_args_parsing()
    import comfy.model_management

    logging.getLogger().setLevel(logging.ERROR)


def _add_empty_module(name):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
