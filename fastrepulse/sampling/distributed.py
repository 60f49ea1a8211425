"""Ranks that share a run: each denoises its own particles, and all particles repel each other.

All communication goes through `Ranks.all_gather`, a few times per step. It first gathers the status
of each rank, so an error on one rank ends all ranks at the next all-gather, with its message.
"""

import json
import logging
import os
import signal
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from fastrepulse.methods.base import Partition

MESSAGE_BYTES = 400
"""Longest error message that is sent to other ranks."""
TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables of a job."""
PATIENCE, WAIT = 10.0, 300.0
"""Seconds after which a rank says that it waits for the others to start, and gives up."""
TIMEOUT = 3.0
"""Seconds that a rank has to report that it is alive."""


log = logging.getLogger("fastrepulse")


class OtherRankFailed(RuntimeError):
    """Another rank of the run has stopped; the message is that rank's."""


class Ranks:
    """The ranks of a `torch.distributed` group.

    Args:
        group: The group, or None for a single process.

    Raises:
        TypeError: If `group` is neither.
    """

    def __init__(self, group: Any = None):
        self.group = group
        self.rank, self.world_size, self._device = 0, 1, torch.device("cpu")
        if group is None:
            return
        import torch.distributed as dist

        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"group must be a torch.distributed process group, got {group!r}")
        self.rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)
        if "nccl" in dist.get_backend(group):
            self._device = torch.device("cuda", torch.cuda.current_device())

    def partition(self, prompts: int, num_particles: int) -> Partition:
        """Returns this rank's particles: a block of the particles of every prompt."""
        if self.world_size == 1:
            return Partition(range(prompts * num_particles), prompts * num_particles)
        least, more = divmod(num_particles, self.world_size)
        start = self.rank * least + min(self.rank, more)
        own = range(start, start + least + (self.rank < more))
        rows = [prompt * num_particles + i for prompt in range(prompts) for i in own]
        count = prompts * num_particles
        return RankPartition(rows, count, self.rank, self.world_size, ranks=self, prompts=prompts)

    def all_gather(self, rows: Tensor) -> list[Tensor]:
        """Returns the rows [n, ...] of every rank; n may differ between ranks, the dtype may not.

        Raises:
            OtherRankFailed: If another rank has stopped or does not answer.
        """
        if self.world_size == 1:
            return [rows]
        with _uninterrupted():
            counts = self._all_gather_status(len(rows))
            padded = rows.new_zeros((max(counts), *rows.shape[1:]))
            padded[: len(rows)] = rows
            given = self._all_gather_equal(padded)
        return [part[:count] for part, count in zip(given, counts, strict=True)]

    def broadcast(self, value: int) -> int:
        """Returns the number of rank 0."""
        return int(self.all_gather(torch.tensor([value]))[0])

    def check_same(self, settings: Mapping[str, Any]) -> None:
        """Raises unless all ranks have the same settings."""
        checksum = torch.tensor([zlib.crc32(json.dumps(settings, sort_keys=True).encode())])
        for rank, other in enumerate(self.all_gather(checksum)):
            if not torch.equal(other, checksum):
                raise ValueError(f"all ranks must have the same settings, rank {rank} differs")

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Sends an error inside the context to the other ranks; without one, waits for them."""
        try:
            yield
            self.all_gather(torch.zeros(0))
        except OtherRankFailed:
            raise
        except BaseException as error:
            if self.world_size > 1:
                with _uninterrupted(), suppress(OtherRankFailed):
                    self._all_gather_status(0, f"{type(error).__name__}: {error}")
            raise

    def _all_gather_status(self, count: int, failure: str | None = None) -> list[int]:
        """Gathers the number of rows of each rank, or the reason why a rank has failed."""
        message = (failure or "").encode()[:MESSAGE_BYTES]
        status = torch.zeros(3 + MESSAGE_BYTES, dtype=torch.int64)
        status[:3] = torch.tensor([failure is not None, count, len(message)])
        status[3 : 3 + len(message)] = torch.tensor(list(message))
        statuses = [own.tolist() for own in self._all_gather_equal(status)]
        for rank, (failed, _, length, *text) in enumerate(statuses):
            if failed and failure is None:
                reason = bytes(text[:length]).decode(errors="ignore")
                raise OtherRankFailed(f"rank {rank} has stopped: {reason}")
        return [own[1] for own in statuses]

    def _all_gather_equal(self, tensor: Tensor) -> list[Tensor]:
        import torch.distributed as dist

        there = tensor.contiguous().to(self._device)
        gathered = [torch.empty_like(there) for _ in range(self.world_size)]
        try:
            dist.all_gather(gathered, there, group=self.group)
        except RuntimeError as error:
            raise OtherRankFailed(f"{self._gone()}: {error}") from None
        return [part.to(tensor.device) for part in gathered]

    def _gone(self) -> str:
        """Returns a message that names the ranks that do not answer."""
        import torch.distributed as dist

        # The store through which the ranks met: each rank that is alive sets a key
        store = dist.distributed_c10d._get_default_store()
        try:
            store.set(f"fastrepulse/alive/{self.rank}", "")
            time.sleep(TIMEOUT)
            ranks = range(self.world_size)
            gone = [str(r) for r in ranks if not store.check([f"fastrepulse/alive/{r}"])]
        except RuntimeError:
            return "rank 0 does not answer"
        return f"rank {' and '.join(gone) or 'unknown'} does not answer"


@dataclass(frozen=True)
class RankPartition(Partition):
    """The particles of one rank among several.

    Args:
        ranks: The ranks.
        prompts: Number of prompts.
    """

    ranks: Ranks = field(kw_only=True)
    prompts: int = field(kw_only=True)

    def all_gather(self, local: Tensor) -> Tensor:
        parts = self.ranks.all_gather(local)
        split = [part.view(self.prompts, -1, *part.shape[1:]) for part in parts]
        return torch.cat(split, dim=1).flatten(0, 1)

    def local(self, gathered: Tensor) -> Tensor:
        return gathered[torch.tensor(self.rows, device=gathered.device)]

    def all_reduce(self, value: Tensor) -> Tensor:
        return torch.stack(self.ranks.all_gather(value)).sum(dim=0)


@contextmanager
def torchrun_group() -> Iterator[Any]:
    """Yields the process group of a `torchrun` job, or None outside of one.

    Raises:
        OtherRankFailed: If the other ranks do not come within `WAIT` seconds.
    """
    given = {name: os.environ.get(name, "") for name in TORCHRUN}
    if given["WORLD_SIZE"] == "1" or not _is_job(given):
        yield None
        return
    import torch.distributed as dist

    rank, world_size = int(given["RANK"]), int(given["WORLD_SIZE"])
    where = f"{given['MASTER_ADDR']}:{given['MASTER_PORT']}"
    about = f"rank {rank} of {world_size} waits for the others at {where}"
    patience = threading.Timer(PATIENCE, log.warning, [about])
    patience.start()
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=WAIT)))
    except RuntimeError as error:
        raise OtherRankFailed(f"{about}, for {WAIT:g} s in vain: {error}") from None
    finally:
        patience.cancel()
    # Once all are there, the steps of a slow rank may take long
    store.set_timeout(timedelta(minutes=30))
    backend = "gloo"
    if torch.cuda.is_available():
        local = os.environ.get("LOCAL_RANK", rank % torch.cuda.device_count())
        torch.cuda.set_device(int(local))
        backend = "nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def _is_job(given: Mapping[str, str]) -> bool:
    """Whether variables make a job of several processes; stray ones are ignored with a warning."""
    numbers = [given[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")]
    if all(given.values()) and all(number.isdecimal() for number in numbers):
        return True
    if "WORLD_SIZE" in os.environ:
        stray = " ".join(f"{name}={value}" for name, value in given.items())
        log.warning("variables of torchrun are ignored, which are not all set: %s", stray)
    return False


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delays Ctrl-C to the end of the context, so that no rank leaves an all-gather half-way."""
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
