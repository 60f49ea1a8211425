"""The choice among the weights in a folder with several variants."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fastrepulse
from fastrepulse import models

PARTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def folder(tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(models.DEFAULT_MODEL, copy)
    return copy


def plain(folder, part):
    return folder / part / f"{PARTS[part]}.safetensors"


def add_variant(folder, variant, parts=PARTS, keep=True):
    """Adds a variant of the weights, with 1 added to each tensor to tell it apart."""
    for part in parts:
        weights = {name: tensor + 1 for name, tensor in load_file(plain(folder, part)).items()}
        metadata = {"format": "pt"}
        save_file(weights, plain(folder, part).with_suffix(f".{variant}.safetensors"), metadata)
        if not keep:
            plain(folder, part).unlink()


def shift_of(model):
    """Mean difference between the weights of each part and the shipped model's."""
    shipped = models.load_model()
    return {
        part: round(
            (
                next(getattr(model, part).parameters()).float()
                - next(getattr(shipped, part).parameters())
            )
            .mean()
            .item(),
            2,
        )
        for part in PARTS
    }


@pytest.mark.parametrize(
    ("variants", "keep", "chosen"),
    [
        # The chosen variant for each of DTYPES
        (["fp16"], True, ["", "fp16", ""]),
        (["fp16"], False, ["fp16", "fp16", "fp16"]),
        (["bf16"], False, ["bf16", "bf16", "bf16"]),
        (["bf16"], True, ["", "", "bf16"]),
        (["fp16", "bf16"], False, ["fp16", "fp16", "bf16"]),
        (["non_ema"], True, ["", "", ""]),
        (["non_ema"], False, ["non_ema", "non_ema", "non_ema"]),
        (["fp16", "non_ema"], False, ["fp16", "fp16", "fp16"]),
        (["ema_only"], False, ["ema_only", "ema_only", "ema_only"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_the_best_variant_for_the_dtype_is_loaded(folder, variants, keep, chosen):
    for variant in variants:
        add_variant(folder, variant)
    if not keep:
        for part in PARTS:
            plain(folder, part).unlink()
    for dtype, variant in zip(DTYPES, chosen, strict=True):
        model = models.load_model(folder, dtype=dtype)
        assert model.dtype == dtype
        assert model.variants == ({part: variant for part in PARTS} if variant else {})
        assert shift_of(model) == {part: 1.0 if variant else 0.0 for part in PARTS}


def test_parts_may_have_different_variants_and_the_settings_list_them(folder):
    add_variant(folder, "fp16", ["text_encoder"], keep=False)
    model = models.load_model(folder)
    assert shift_of(model) == {"unet": 0.0, "vae": 0.0, "text_encoder": 1.0}
    result = fastrepulse.sample("a face", 1, model=model, num_inference_steps=1, progress=False)
    assert result.settings["variants"] == {"text_encoder": "fp16"}


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_weights_are_loaded(folder, variant):
    shipped = models.load_model()
    for part in ("unet", "text_encoder"):
        plain(folder, part).unlink()
        how = {"max_shard_size": "2MB" if part == "unet" else "500KB", "variant": variant}
        getattr(shipped, part).save_pretrained(folder / part, **how)
        assert len(list((folder / part).glob("*-of-*.safetensors"))) > 1
    model = models.load_model(folder)
    assert shift_of(model) == dict.fromkeys(PARTS, 0.0)
    assert set(model.variants.values()) == ({variant} if variant else set())
    lost = sorted((folder / "unet").glob("*-of-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ValueError, match=rf"lacks {lost.name} in 'unet'"):
        models.load_model(folder, dtype=torch.float64)


def test_an_unreadable_index_of_shards_is_refused(folder):
    plain(folder, "unet").unlink()
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"index\.json' cannot be read"):
        models.load_model(folder)


def test_a_folder_of_symbolic_links_is_loaded(folder, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(f for f in sorted(folder.rglob("*")) if f.is_file()):
        blob = blobs / f"{number:064x}"
        file.rename(blob)
        file.symlink_to(blob)
    assert shift_of(models.load_model(folder)) == dict.fromkeys(PARTS, 0.0)


def test_extra_files_of_macos_are_ignored(folder):
    for part in PARTS:
        add_variant(folder, "fp16", [part])
        for file in list((folder / part).iterdir()):
            (file.parent / f"._{file.name}").write_bytes(b"\0\5\26\7")
        (folder / part / ".DS_Store").write_bytes(b"\0")
    assert shift_of(models.load_model(folder)) == dict.fromkeys(PARTS, 0.0)
    for part in PARTS:
        plain(folder, part).unlink()
        plain(folder, part).with_suffix(".fp16.safetensors").unlink()
    with pytest.raises(ValueError, match="no safetensors weights in 'unet'"):
        models.load_model(folder, dtype=torch.float64)


def test_the_shipped_model_is_recognised_if_the_package_is_a_symbolic_link(tmp_path):
    (tmp_path / "fastrepulse").symlink_to(Path(fastrepulse.__file__).parent)
    program = (
        "from fastrepulse.models import DEFAULT_MODEL, load_model\n"
        "model = load_model()\n"
        "assert model.name == str(DEFAULT_MODEL) and model.vocabulary"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
