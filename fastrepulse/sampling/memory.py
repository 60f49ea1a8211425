"""Memory: the micro-batch size that fits on a device, and the device of the latents."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import torch

MARGIN = 1.5
"""Safety factor on a pass's estimated memory when the user sets a limit."""
OUTPUTS_KEPT = {"dpm++": 2, "unipc": 3}
"""Number of past outputs and samples that a multistep scheduler keeps."""
CGROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": (
        *("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        "total_inactive_file",
    ),
}
"""Folder, limit, used bytes and the cache among them, of control groups version 2 and 1."""
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {f"{unit}i": 1024**i for i, unit in enumerate("kmgt", start=1)}


def bytes_of(memory: int | str) -> int:
    """Returns the bytes that a number or a text such as "6GB", "1.5 GiB" or "500M" means.

    Raises:
        ValueError: If the text is malformed or the number is not above 0.
        TypeError: If `memory` is neither a number nor a text.
    """
    if isinstance(memory, bool) or not isinstance(memory, (int, str)):
        raise TypeError(f"memory must be None, bytes or a text such as '6GB', got {memory!r}")
    given = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?", str(memory).strip().lower())
    if given is None or given[2] not in UNITS or float(given[1]) == 0:
        raise ValueError(f"memory must be above 0, in bytes or such as '6GB', got {memory!r}")
    return int(float(given[1]) * UNITS[given[2]])


class Budget:
    """The memory budget of a run: a limit from the user, or a share of the free memory.

    Args:
        model: The model of the run; its weights count towards a limit.
        count: Number of latents.
        latent_shape: Shape [C, H, W] of one latent.
        memory: Limit in bytes on weights, latents and passes together. With None the passes get a
            quarter of the free memory, and latents move to host memory if a GPU lacks room.
        scheduler: One of `models.SCHEDULERS`.

    Raises:
        ValueError: If the limit is too small for a single particle.
    """

    def __init__(
        self,
        model: Any,
        count: int,
        latent_shape: Sequence[int],
        memory: int | None,
        scheduler: str = "euler",
    ):
        self.device = model.device
        self.memory = memory
        # The loop holds at most four sets of latents, with at most four bytes per entry
        set_of_latents = 4 * count * math.prod(latent_shape)
        latents = 4 * set_of_latents
        crowded = latents > (free_memory(self.device) if memory is None else memory) // 4
        on_host = self.device.type == "cuda" and crowded
        self.storage = "cpu" if on_host else str(self.device)
        self._taken = weights_of(model) + (0 if on_host else latents)
        # Multistep schedulers keep past outputs on the device
        self._taken += OUTPUTS_KEPT.get(scheduler, 0) * set_of_latents
        self._unet, self._vae, self._shape = model.unet, model.vae, latent_shape
        needed = self._taken + MARGIN * max(self._particle(), self._picture())
        if memory is not None and memory < needed:
            raise ValueError(
                f"memory must be at least {math.ceil(needed / 1e6)} MB for this model, size and "
                f"number of particles, got {memory / 1e6:.0f} MB"
            )

    def micro_batch_size(self) -> int:
        """Returns the number of particles that go through the UNet at once."""
        return self._fitting(self._particle())

    def decode_batch_size(self) -> int:
        """Returns the number of latents that are decoded at once."""
        return self._fitting(self._picture())

    def _particle(self) -> int:
        """Returns the estimated bytes of a guided particle, 60 times the first activations."""
        _, height, width = self._shape
        activations = height * width * self._unet.config.block_out_channels[0]
        return 60 * activations * torch.finfo(self._unet.dtype).bits // 8

    def _picture(self) -> int:
        """Returns the estimated bytes of a decoded image: 8 times the last layers' activations."""
        _, height, width = self._shape
        channels = self._vae.config.block_out_channels
        activations = height * width * 4 ** (len(channels) - 1) * channels[0]
        return 8 * activations * torch.finfo(self._vae.dtype).bits // 8

    def _fitting(self, size: int) -> int:
        """Returns how many items of a size in bytes fit: 1, 2, 4, ... 32."""
        room = free_memory(self.device) / 4
        if self.memory is not None:
            room = (self.memory - self._taken) / MARGIN
        return 2 ** min(5, int(math.log2(max(1, room / size))))


def weights_of(model: Any) -> int:
    """Returns the bytes of a model's weights."""
    parts = (model.unet, model.vae, model.text_encoder, model.text_encoder_2)
    return sum(
        weight.numel() * weight.element_size()
        for part in parts
        if part is not None
        for weight in part.parameters()
    )


def free_memory(device: torch.device, root: Path = Path("/")) -> int:
    """Returns the free bytes of a GPU or of the host, caches included.

    Only Linux reports the free memory of the host; elsewhere 4 GB are assumed. A container's limit
    counts where it leaves less. `root` holds the folders proc and sys.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = (root / "proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return 4 * 2**30
    sizes = dict(line.split(":") for line in lines)
    return min([int(sizes["MemAvailable"].split()[0]) * 1024, *_left_by_cgroups(root)])


def _left_by_cgroups(root: Path) -> Iterator[int]:
    """Yields the bytes that each memory limit of this process's control groups leaves."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            mount, *names = CGROUPS.get(controller, ("", "", "", ""))
            # A limit above the process's own group counts too; in a container the path may be the
            # host's, of which only the root exists
            for group in (PurePosixPath(path), *PurePosixPath(path).parents):
                folder = root / mount / str(group).lstrip("/")
                with suppress(OSError, ValueError, KeyError):
                    limit, used = (int((folder / name).read_text("ascii")) for name in names[:2])
                    stat = dict(
                        row.split() for row in (folder / "memory.stat").read_text().splitlines()
                    )
                    yield max(0, limit - used + int(stat[names[2]]))
