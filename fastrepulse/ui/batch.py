"""The settings of one batch, as arguments of `sample()`, as Python and as a command line."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrepulse import embeddings
from fastrepulse.methods.bank import Bank
from fastrepulse.methods.repulsion import DEFAULT_EMBEDDING, Repulsion
from fastrepulse.models import Model
from fastrepulse.models.shipped import Recommended

DIFFERS = {
    "everything": DEFAULT_EMBEDDING,
    "colour": "channel_mean",
    "composition": "halves",
    "style": "gram",
    "content": "random_cnn",
}
"""What should differ between images, and the embedding that measures it."""


@dataclass(frozen=True)
class Batch:
    """One batch of images of a prompt. For the settings not named here, see `sample`.

    Args:
        differ: What should differ between the images, a key of `DIFFERS`.
        strength: Strength of the repulsion; 1 is the embedding's default strength.
        compare: Whether to draw as many independent images from the same noise.
        unlike: Folder of images to avoid, or None.
        like: Folder of images to approach, or None.

    Raises:
        ValueError: If `differ` is unknown, or a folder is given without a positive strength.
    """

    prompt: str
    num_particles: int = 16
    differ: str = "everything"
    strength: float = 1.0
    seed: int = 0
    num_inference_steps: int = Recommended().num_inference_steps
    guidance_scale: float = Recommended().guidance_scale
    negative_prompt: str = ""
    scheduler: str = "euler"
    compare: bool = False
    unlike: Path | None = None
    like: Path | None = None

    def __post_init__(self) -> None:
        if self.differ not in DIFFERS:
            raise ValueError(f"differ must be one of {', '.join(DIFFERS)}, got {self.differ!r}")
        if self.strength <= 0 and self._has_examples:
            raise ValueError(
                f"strength must be above 0 with images to be like or unlike, got {self.strength}"
            )

    @property
    def _has_examples(self) -> bool:
        return self.unlike is not None or self.like is not None

    @property
    def embedding(self) -> str:
        return DIFFERS[self.differ]

    @property
    def repulsion_strength(self) -> float:
        """The strength for `Repulsion`, rounded as on the command line."""
        return round(self.strength * embeddings.build(self.embedding).strength, 4)

    def repulsion(self, model: Model) -> Repulsion:
        """Returns the repulsion, with the images of the folders in its bank."""
        bank = Bank.of_folders(model, self.unlike, self.like) if self._has_examples else None
        return Repulsion(self.embedding, self.repulsion_strength, bank=bank)

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of `sample()` except model and repulsion."""
        names = "prompt num_particles num_inference_steps guidance_scale negative_prompt"
        return {name: getattr(self, name) for name in f"{names} scheduler seed".split()}

    def as_python(self, model: str | None) -> str:
        """Returns a Python program that draws the same images with a model given by its name."""
        lines = ["import fastrepulse", "", f"model = fastrepulse.load_model({model!r})"]
        bank = ""
        if self._has_examples:
            folders = {"pictures": self.unlike, "like": self.like}
            given = [f", {name}={str(folder)!r}" for name, folder in folders.items() if folder]
            lines += [f"bank = fastrepulse.Bank.of_folders(model{''.join(given)})"]
            bank = ", bank=bank"
        repulsion = f"{self.embedding!r}, {self.repulsion_strength:g}{bank}"
        lines += ["result = fastrepulse.sample("]
        lines += [f"    {name}={value!r}," for name, value in self.arguments().items()]
        lines += ["    model=model,", f"    repulsion=fastrepulse.Repulsion({repulsion}),", ")"]
        return "\n".join([*lines, 'result.save("pictures")', ""])

    def as_command(self, model: str | None) -> str:
        """Returns a command line that draws the same images with a model given by its name."""
        words = ["fastrepulse", "sample", self.prompt, "-n", self.num_particles]
        options: dict[str, Any] = {
            "model": model,
            "embedding": self.embedding,
            "strength": f"{self.repulsion_strength:g}",
            "seed": self.seed,
            "num-inference-steps": self.num_inference_steps,
            "guidance-scale": f"{self.guidance_scale:g}",
            "negative-prompt": self.negative_prompt or None,
            "scheduler": self.scheduler,
            "unlike": self.unlike,
            "like": self.like,
        }
        for name, value in options.items():
            words += [] if value is None else [f"--{name}={value}"]
        return shlex.join(str(word) for word in words)
