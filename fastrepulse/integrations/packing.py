"""Latents as pipelines lay them out: [B, C, H, W], [B, C, 1, H, W] or packed [B, tokens, 4 C]."""

from torch import Tensor


def unpack(latents: Tensor, latent_size: tuple[int, int] | None) -> Tensor:
    """Returns latents [B, C, H, W]; packed latents [B, (H/2)(W/2), 4 C] are unpacked."""
    if latents.ndim == 4:
        return latents
    if latents.ndim == 5 and latents.shape[2] == 1:
        return latents.squeeze(2)
    if latents.ndim != 3:
        raise ValueError(f"latents must be [B, C, H, W] or packed, got {list(latents.shape)}")
    batch, tokens, width = latents.shape
    side = round(tokens**0.5)
    height, breadth = latent_size if latent_size else (2 * side, 2 * side)
    if height * breadth != 4 * tokens or width % 4:
        raise ValueError(f"latent_size must be (H, W) with H W = {4 * tokens}, got {latent_size}")
    patches = latents.view(batch, height // 2, breadth // 2, width // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, width // 4, height, breadth)


def pack(change: Tensor, like: Tensor) -> Tensor:
    """Returns a change [B, C, H, W] in the layout of the scheduler's samples."""
    if like.ndim == 4:
        return change
    if like.ndim == 5:
        return change.unsqueeze(2)
    batch, channels, height, width = change.shape
    patches = change.view(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(like.shape)


def latent_size_of(latents: Tensor, expected: tuple[int, int]) -> tuple[int, int]:
    """Returns height and width in latent positions; packed latents have the expected shape."""
    if latents.ndim != 3:
        height, width = latents.shape[-2:]
        return height, width
    tokens = latents.shape[1]
    rows = max(round((tokens * expected[0] / expected[1]) ** 0.5), 1)
    return 2 * rows, 2 * (tokens // rows)
