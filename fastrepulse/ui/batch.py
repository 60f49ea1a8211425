"""What a person asks for, as `sample()` takes it, as Python and as a command line."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrepulse import embeddings
from fastrepulse.methods.bank import Bank
from fastrepulse.methods.repulsion import DEFAULT_EMBEDDING, Repulsion
from fastrepulse.models import Model
from fastrepulse.sampling.sample import DEFAULT_GUIDANCE_SCALE, DEFAULT_STEPS

DIFFERS = {
    "everything": DEFAULT_EMBEDDING,
    "colour": "channel_mean",
    "composition": "halves",
    "style": "gram",
    "content": "random_cnn",
}
"""What can be made different, in a person's words, and the embedding that sees it."""


@dataclass(frozen=True)
class Batch:
    """One batch of pictures of a prompt.

    Args:
        prompt: What to draw.
        num_particles: How many.
        differ: What is to be different, of `DIFFERS`.
        strength: Of the repulsion, in units of its embedding's own.
        seed: Of the noise.
        num_inference_steps: Denoising steps.
        guidance_scale: Of the guidance.
        negative_prompt: What guidance leads away from.
        scheduler: Its name.
        compare: Whether the same number is drawn independently from the same noise.
        unlike: Folder of pictures to be unlike, or None.
        like: Folder of pictures to be like, or None.

    Raises:
        ValueError: If `differ` is unknown, or there are pictures and no repulsion to heed them.
    """

    prompt: str
    num_particles: int = 16
    differ: str = "everything"
    strength: float = 1.0
    seed: int = 0
    num_inference_steps: int = DEFAULT_STEPS
    guidance_scale: float = DEFAULT_GUIDANCE_SCALE
    negative_prompt: str = ""
    scheduler: str = "euler"
    compare: bool = False
    unlike: Path | None = None
    like: Path | None = None

    def __post_init__(self) -> None:
        if self.differ not in DIFFERS:
            raise ValueError(f"differ must be one of {', '.join(DIFFERS)}, got {self.differ!r}")
        if self.strength <= 0 and self._points:
            raise ValueError(
                "strength must be above 0 where there are pictures to be like or unlike, "
                f"got {self.strength}"
            )

    @property
    def _points(self) -> bool:
        """Whether there are pictures to be like or unlike."""
        return self.unlike is not None or self.like is not None

    @property
    def embedding(self) -> str:
        return DIFFERS[self.differ]

    @property
    def repulsion_strength(self) -> float:
        """That of the `Repulsion`, as a command line says it."""
        return round(self.strength * embeddings.build(self.embedding).strength, 4)

    def repulsion(self, model: Model) -> Repulsion:
        """Returns the repulsion, which knows the pictures."""
        bank = Bank.of_folders(model, self.unlike, self.like) if self._points else None
        return Repulsion(self.embedding, self.repulsion_strength, bank=bank)

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of `sample()`, but for model and repulsion."""
        names = "prompt num_particles num_inference_steps guidance_scale negative_prompt"
        return {name: getattr(self, name) for name in f"{names} scheduler seed".split()}

    def as_python(self, model: str | None) -> str:
        """Returns a program that draws the same pictures.

        Args:
            model: Its folder, file or hub id; None for the shipped one.
        """
        lines = ["import fastrepulse", "", f"model = fastrepulse.load_model({model!r})"]
        bank = ""
        if self._points:
            piles = {"pictures": self.unlike, "like": self.like}
            said = [f", {pile}={str(folder)!r}" for pile, folder in piles.items() if folder]
            lines += [f"bank = fastrepulse.Bank.of_folders(model{''.join(said)})"]
            bank = ", bank=bank"
        repulsion = f"{self.embedding!r}, {self.repulsion_strength:g}{bank}"
        lines += ["result = fastrepulse.sample("]
        lines += [f"    {name}={value!r}," for name, value in self.arguments().items()]
        lines += ["    model=model,", f"    repulsion=fastrepulse.Repulsion({repulsion}),", ")"]
        return "\n".join([*lines, 'result.save("pictures")', ""])

    def as_command(self, model: str | None) -> str:
        """Returns a command line that draws the same pictures.

        Args:
            model: As in `as_python`.
        """
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
