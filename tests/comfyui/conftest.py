"""Makes ComfyUI importable before the tests are collected."""

from pathlib import Path

from helpers import real_comfyui

if real_comfyui.FOLDER and Path(real_comfyui.FOLDER, "comfy").is_dir():
    real_comfyui.start()
