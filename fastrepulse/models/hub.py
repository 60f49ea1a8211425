"""Downloads a model from the Hugging Face hub: one variant of the weights, and configurations."""

from pathlib import Path

import torch

from fastrepulse.models.folder import choose_variant, components_of, variants_among, weights_files

CONFIGURATIONS = ("*.json", "*.txt")
"""Configurations and vocabularies, which are small files."""


def download(hub_id: str, dtype: torch.dtype) -> Path:
    """Downloads the best weights for a dtype, and returns the local folder.

    Without a connection, an earlier download is used.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=list(CONFIGURATIONS)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise OSError(
            "model must be a folder in diffusers' layout, a safetensors file or a hub id "
            f"'owner/name', got {hub_id!r}: there is no folder of that name here, and the download "
            f"from the hub failed: {error}"
        ) from None
    try:
        files = HfApi().list_repo_files(hub_id)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return folder
    wanted: list[str] = []
    for part in components_of(folder):
        own = [file.removeprefix(f"{part}/") for file in files if file.startswith(f"{part}/")]
        variants = variants_among(own, part)
        if not variants:
            raise ValueError(f"model {hub_id!r} has no safetensors weights in {part!r}")
        names = weights_files(own, part, choose_variant(variants, dtype))
        wanted += [f"{part}/{name}" for name in names]
    return Path(snapshot_download(hub_id, allow_patterns=wanted))
