"""Shared by the training scripts: options, optimiser, schedule and checkpoints."""

import argparse
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm


def parse_options(
    description: str | None,
    steps: int,
    batch_size: int,
    lr: float | None = None,
    text: bool = False,
) -> argparse.Namespace:
    """Parses the options of a training script.

    Args:
        description: Docstring of the script.
        steps: Default number of steps.
        batch_size: Default batch size.
        lr: Default learning rate; None for a script without `--lr` and `--start`.
        text: Whether the script trains a text encoder.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="Output folder of render.py.")
    parser.add_argument("--out", type=Path, required=True, help="Folder for the weights.")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--device", default="cpu")
    if lr is not None:
        parser.add_argument("--lr", type=float, default=lr)
        parser.add_argument("--start", type=Path, help="Pipeline folder with initial weights.")
        half = "Run the model in bfloat16, as on a GPU; fast on a CPU with AMX."
        parser.add_argument("--bfloat16", action="store_true", help=half)
    if text:
        only = "Train only the text encoder and the keys and values of cross-attention."
        parser.add_argument("--text-only", action="store_true", help=only)
        parser.add_argument("--workers", type=int, default=0, help="Processes for the captions.")
    return parser.parse_args()


def train_classifier(
    classifier: nn.Module, steps: int, lr: float, draw_loss: Callable[[], Tensor]
) -> None:
    """Trains with AdamW and a one-cycle schedule on the losses of freshly drawn batches."""
    optimizer = torch.optim.AdamW(classifier.parameters(), lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    progress = tqdm(range(steps), mininterval=10)
    for step in progress:
        loss = draw_loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 500 == 499:
            progress.write(f"step {step + 1}: loss {loss.item():.4f}")


def save_half(module: nn.Module, file: Path) -> None:
    """Writes weights in half precision."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = module.state_dict().items()
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state}, file)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates, for weights of two or more dimensions.

    K. Jordan et al., "Muon: an optimizer for hidden layers", 2024. The update has AdamW's scale
    (Liu et al. 2025, arXiv:2502.16982), so both optimisers share one learning rate. PyTorch's
    `torch.optim.Muon` does not support convolutions; here they are flattened to [out, in * k * k].
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            updates: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum"]
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(momentum, group["momentum"]).flatten(1)
                updates.setdefault(update.shape, []).append((p, update))
            # Matrices of one shape share the iteration, in few large products
            for shape, same in updates.items():
                moves = orthogonalise(torch.stack([update for _, update in same]))
                scale = 0.2 * math.sqrt(max(shape))
                for (p, _), update in zip(same, moves, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.view_as(p), alpha=-group["lr"] * scale)


def orthogonalise(
    matrices: Tensor,  # [k, m, n]
    iterations: int = 5,
) -> Tensor:
    """Moves the singular values of matrices towards 1 by the quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    transposed = x.shape[1] > x.shape[2]
    x = x.mT if transposed else x
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if transposed else x


ADAMW_ONLY = ("conv_in", "conv_out", "embedding", "time_proj")
SAVE_EVERY = 300


class Trainer:
    """Trains with a warm-up, a cosine decay and checkpoints.

    Muon updates hidden matrices and convolutions. AdamW updates embeddings, gains, biases, and the
    input and output layers.

    Args:
        modules: The trained modules by name.
        folder: Folder of the checkpoint. Training resumes from an existing checkpoint.
        steps: Number of steps.
        lr: Peak learning rate.
        ema: Decay of the running average of the weights; 0 for no average.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        folder: Path,
        steps: int,
        lr: float,
        ema: float = 0.0,
    ):
        self.parameters = {
            f"{name}.{key}": p
            for name, module in modules.items()
            for key, p in module.named_parameters()
            if p.requires_grad
        }
        hidden = {
            key: p
            for key, p in self.parameters.items()
            if p.ndim >= 2 and not any(part in key for part in ADAMW_ONLY)
        }
        others = [p for key, p in self.parameters.items() if key not in hidden]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(hidden.values(), lr),
            torch.optim.AdamW(others, lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
        ]
        self.average = {k: p.detach().clone() for k, p in self.parameters.items()} if ema else {}
        self.steps, self.lr, self.ema = steps, lr, ema
        self.checkpoint = folder / "checkpoint.safetensors"
        self.step = 0
        self._largest_norm = torch.zeros(())
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self._load()

    def remaining(self) -> Iterator[int]:
        """Yields the number of each remaining step and saves checkpoints."""
        while self.step < self.steps:
            yield self.step
            self.step += 1
            if self.step % SAVE_EVERY == 0 or self.step == self.steps:
                self._check()
                self._save()

    def run(self, draw_loss: Callable[[], Tensor], save: Callable[[], None]) -> None:
        """Takes all remaining steps on the losses of freshly drawn batches.

        Args:
            draw_loss: Draws a batch and returns its loss.
            save: Saves the averaged weights, every 500 steps and at the end.
        """
        progress = tqdm(self.remaining(), total=self.steps, initial=self.step, mininterval=10)
        running = torch.zeros(())
        for step in progress:
            loss = draw_loss()
            self.update(loss)
            running = running.to(loss.device)
            running.lerp_(loss.detach(), max(0.01, 1 / (step % 100 + 1)))
            if step % 100 == 99:
                progress.write(f"step {step + 1}: loss {running.item():.4f}")
            if (step + 1) % 500 == 0 or step + 1 == self.steps:
                save()

    def update(self, loss: Tensor) -> None:
        """Takes one optimiser step."""
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self._largest_norm = torch.maximum(self._largest_norm.to(norm), norm)
        warm_up = min(1.0, (self.step + 1) / 100)
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * warm_up * (0.02 + 0.98 * cosine)
            optimizer.step()
            optimizer.zero_grad()
        decay = min(self.ema, (self.step + 1) / (self.step + 10))
        if self.average:
            weights = [self.parameters[key].detach() for key in self.average]
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    @torch.no_grad()
    def copy_average(self, modules: dict[str, nn.Module]) -> None:
        """Copies the running average to modules of the same names."""
        for name, module in modules.items():
            for key, weight in module.named_parameters():
                if f"{name}.{key}" in self.average:
                    weight.copy_(self.average[f"{name}.{key}"])

    def _check(self) -> None:
        """Raises if a gradient since the last checkpoint was not finite."""
        if not torch.isfinite(self._largest_norm):
            raise FloatingPointError(f"a gradient was not finite before step {self.step}")

    def _states(self) -> dict[str, tuple[torch.optim.Optimizer, Tensor]]:
        by_parameter = {
            p: optimizer
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        }
        return {key: (by_parameter[p], p) for key, p in self.parameters.items()}

    def _save(self) -> None:
        tensors = {"step": torch.tensor(self.step)}
        tensors |= {f"weight/{k}": p.detach().contiguous() for k, p in self.parameters.items()}
        tensors |= {f"average/{k}": p.contiguous() for k, p in self.average.items()}
        for key, (optimizer, p) in self._states().items():
            for name, value in optimizer.state[p].items():
                tensors[f"state/{key}/{name}"] = value.contiguous()
        partial = self.checkpoint.with_suffix(".partial")
        save_file(tensors, partial)
        os.replace(partial, self.checkpoint)

    @torch.no_grad()
    def _load(self) -> None:
        tensors = load_file(self.checkpoint)
        self.step = int(tensors["step"])
        for key, p in self.parameters.items():
            p.copy_(tensors[f"weight/{key}"])
        for key, mean in self.average.items():
            mean.copy_(tensors[f"average/{key}"])
        for key, (optimizer, parameter) in self._states().items():
            prefix = f"state/{key}/"
            optimizer.state[parameter] = {
                k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
            }
