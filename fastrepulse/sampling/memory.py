"""How much fits: the micro-batch that a device can take, and where all latents lie."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def choose_micro_batch_size(unet: Any, latent_shape: Sequence[int]) -> int:
    """Returns how many particles go through a UNet at once, by the memory that is free.

    A guided particle is reckoned at 60 times the activations of the UNet's first layer.
    """
    _, height, width = latent_shape
    activations = height * width * unet.config.block_out_channels[0]
    particle = 60 * activations * torch.finfo(unet.dtype).bits // 8
    return _fitting(particle, unet.device)


def choose_decode_batch_size(vae: Any, latent_shape: Sequence[int]) -> int:
    """Returns how many latents are decoded at once, by the memory that is free.

    A picture is reckoned at 8 times the activations of the decoder's last layers.
    """
    _, height, width = latent_shape
    channels = vae.config.block_out_channels
    activations = height * width * 4 ** (len(channels) - 1) * channels[0]
    picture = 8 * activations * torch.finfo(vae.dtype).bits // 8
    return _fitting(picture, vae.device)


def _fitting(size: int, device: torch.device) -> int:
    """Returns how many of a size in bytes fit in a quarter of the free memory: 1, 2, 4, ... 32."""
    return 2 ** min(5, int(math.log2(max(1, free_memory(device) // 4 // size))))


def ran_out(error: BaseException) -> bool:
    """Says whether an error means that there was not enough memory, of a GPU or of the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def choose_storage(device: torch.device, count: int, latent_shape: Sequence[int]) -> str:
    """Returns where all latents lie: on the device, or on the host if they crowd the device.

    The loop holds four sets of them at most, in up to four bytes a number.
    """
    size = 16 * count * math.prod(latent_shape)
    crowded = device.type == "cuda" and size > free_memory(device) // 4
    return "cpu" if crowded else str(device)


def free_memory(device: torch.device) -> int:
    """Returns the bytes that are free on a GPU, or on the host, what is only cached included.

    Where a host does not say, which Linux alone does, it is taken to have 4 GB.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return 4 * 2**30
    sizes = dict(line.split(":") for line in lines)
    return int(sizes["MemAvailable"].split()[0]) * 1024
