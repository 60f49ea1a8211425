"""Processes that share a run: each denoises particles of its own, and all repel each other.

What processes tell each other, once or a few times a step, goes through one door: `exchange`. It
begins with a word on how each of them is, so that an error in one of them ends all, with its
message, at the next exchange.
"""

import json
import os
import signal
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrepulse.methods.base import Share

LONGEST = 400
"""The most bytes of an error's message that others hear."""
PATIENCE = 3.0
"""Seconds in which every process that is alive notices that another is not."""


class OtherProcessFailed(RuntimeError):
    """Another process of the run has stopped; the message is its own."""


class Ranks:
    """The processes of a `torch.distributed` group, and this one's place among them.

    Args:
        group: The group, or None for this process alone.

    Raises:
        TypeError: If it is neither.
    """

    def __init__(self, group: Any = None):
        self.group = group
        self.rank, self.size, self._device = 0, 1, torch.device("cpu")
        if group is None:
            return
        import torch.distributed as dist

        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"group must be a torch.distributed process group, got {group!r}")
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if "nccl" in dist.get_backend(group):
            self._device = torch.device("cuda", torch.cuda.current_device())

    def share(self, prompts: int, num_particles: int) -> Share:
        """Returns which particles are this process's: as many of every prompt, in their order."""
        if self.size == 1:
            return Share.whole(prompts * num_particles)
        own = range(num_particles)[self._part(num_particles)]
        rows = [prompt * num_particles + i for prompt in range(prompts) for i in own]
        return SharedOut(rows, prompts * num_particles, self, prompts)

    def exchange(self, rows: Tensor) -> list[Tensor]:
        """Returns what every process gives, [n, ...] of the same dtype, n of its own each.

        Raises:
            OtherProcessFailed: If one of them has stopped, or is gone.
        """
        if self.size == 1:
            return [rows]
        with _uninterrupted():
            counts = self._greet(len(rows))
            padded = rows.new_zeros((max(counts), *rows.shape[1:]))
            padded[: len(rows)] = rows
            given = self._all_gather(padded)
        return [part[:count] for part, count in zip(given, counts, strict=True)]

    def first(self, value: int) -> int:
        """Returns the number that the first process gives."""
        return int(self.exchange(torch.tensor([value]))[0])

    def check_same(self, settings: Mapping[str, Any]) -> None:
        """Raises unless all processes were asked for the same."""
        checksum = torch.tensor([zlib.crc32(json.dumps(settings, sort_keys=True).encode())])
        for rank, other in enumerate(self.exchange(checksum)):
            if not torch.equal(other, checksum):
                raise ValueError(f"all processes must ask for the same, {rank} has other settings")

    @contextmanager
    def voting(self) -> Iterator[None]:
        """Tells the other processes of an error inside, and waits for them where there is none."""
        try:
            yield
            self.exchange(torch.zeros(0))
        except OtherProcessFailed:
            raise
        except BaseException as error:
            if self.size > 1:
                with _uninterrupted(), suppress(OtherProcessFailed):
                    self._greet(0, f"{type(error).__name__}: {error}")
            raise

    def _part(self, count: int) -> slice:
        """Returns this process's part of a number of things, the same or one more than others'."""
        least, more = divmod(count, self.size)
        start = self.rank * least + min(self.rank, more)
        return slice(start, start + least + (self.rank < more))

    def _greet(self, count: int, failure: str | None = None) -> list[int]:
        """Says how much this process has to give, or why it stops; returns how much each has."""
        message = (failure or "").encode()[:LONGEST]
        words = torch.zeros(3 + LONGEST, dtype=torch.int64)
        words[:3] = torch.tensor([failure is not None, count, len(message)])
        words[3 : 3 + len(message)] = torch.tensor(list(message))
        heard = [own.tolist() for own in self._all_gather(words)]
        for rank, (failed, _, length, *text) in enumerate(heard):
            if failed and failure is None:
                reason = bytes(text[:length]).decode(errors="ignore")
                raise OtherProcessFailed(f"process {rank} has stopped: {reason}")
        return [own[1] for own in heard]

    def _all_gather(self, tensor: Tensor) -> list[Tensor]:
        import torch.distributed as dist

        there = tensor.contiguous().to(self._device)
        gathered = [torch.empty_like(there) for _ in range(self.size)]
        try:
            dist.all_gather(gathered, there, group=self.group)
        except RuntimeError as error:
            raise OtherProcessFailed(f"{self._gone()}: {error}") from None
        return [part.to(tensor.device) for part in gathered]

    def _gone(self) -> str:
        """Says which processes do not answer any more."""
        import torch.distributed as dist

        # Where the processes of the group found each other: each that is alive signs in
        store = dist.distributed_c10d._get_default_store()
        try:
            store.set(f"fastrepulse/alive/{self.rank}", "")
            time.sleep(PATIENCE)
            ranks = range(self.size)
            gone = [str(r) for r in ranks if not store.check([f"fastrepulse/alive/{r}"])]
        except RuntimeError:
            return "process 0 is gone"
        return f"process {' and '.join(gone) or 'unknown'} is gone"


@dataclass(frozen=True)
class SharedOut(Share):
    """The particles of one process among several.

    Args:
        rows: Their places among all, prompt after prompt.
        count: How many all are.
        ranks: The processes.
        prompts: How many prompts there are.
    """

    ranks: Ranks
    prompts: int

    def gather(self, own: Tensor) -> Tensor:
        parts = self.ranks.exchange(own)
        split = [part.view(self.prompts, -1, *part.shape[1:]) for part in parts]
        return torch.cat(split, dim=1).flatten(0, 1)

    def own(self, everyone: Tensor) -> Tensor:
        return everyone[torch.tensor(self.rows, device=everyone.device)]

    def total(self, value: Tensor) -> Tensor:
        return torch.stack(self.ranks.exchange(value)).sum(dim=0)

    def part(self) -> tuple[int, int]:
        return self.ranks.rank, self.ranks.size


@contextmanager
def joined() -> Iterator[Any]:
    """Yields the group of the processes that `torchrun` started; None where it started none."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "nccl"
    dist.init_process_group(backend)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Puts Ctrl-C off for a while: half an exchange would leave the others waiting."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
