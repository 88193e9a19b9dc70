"""Where training runs: the process's device, and its share of each batch in distributed training.

`torchrun --nproc-per-node 4 -m workers.cli fit` (or `accelerate launch`, which sets the same variables) starts one
process per GPU. All processes hold the same weights and iterate over the same batches. Each takes every n-th window of
a batch, and gradients are summed before every step, so n processes take the same step as one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.data.dataset import IntArray
from schemas.errors import FreshetError


@dataclass(frozen=True, slots=True)
class Place:
    """One process of a training run.

    Args:
        device: the process's device.
        rank, ranks: index of the process and number of processes.
    """

    device: torch.device
    rank: int = 0
    ranks: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def share(self, rows: IntArray) -> IntArray:
        """Return this process's part of a batch; it may be empty."""
        return rows[self.rank :: self.ranks]

    def autocast(self) -> AbstractContextManager[object]:
        """Return autocast to bfloat16 on a GPU, else nothing: on CPUs without AMX bfloat16 is ten times slower."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def sum_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of all processes, in place. Every process must call this at every step."""
        if self.ranks == 1:
            return
        asked = [weight for weight in weights if weight.requires_grad]
        for weight in asked:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        flat = torch.cat([weight.grad.flatten() for weight in asked if weight.grad is not None])
        torch.distributed.all_reduce(flat)
        for weight, part in zip(asked, flat.split([weight.numel() for weight in asked]), strict=True):
            weight.grad = part.view_as(weight)

    def agree(self, figures: dict[str, float]) -> dict[str, float]:
        """Return the first process's figures in every process, so that all stop early at the same epoch."""
        if self.ranks == 1:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(values, 0)
        return dict(zip(figures, values.tolist(), strict=True))

    def wait(self) -> None:
        """Wait for all processes."""
        if self.ranks > 1:
            torch.distributed.barrier()


ALONE = Place(torch.device("cpu"))


def place(device: str = "auto") -> Place:
    """Return this process's place, and join the process group if a launcher has started several processes.

    Args:
        device: a device name, or "auto" = this process's GPU, or the CPU without a GPU.

    Raises:
        FreshetError: the device does not exist.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    own = device_named(device, "FRESHET_FIT_DEVICE")
    if ranks > 1:
        from accelerate import PartialState

        state = PartialState(cpu=own.type == "cpu")
        return Place(state.device, state.process_index, state.num_processes)
    return Place(own)


def device_named(name: str, setting: str) -> torch.device:
    """Return a device by name. "auto" and "cuda" select this process's GPU; "auto" falls back to the CPU.

    Raises:
        FreshetError: the device does not exist; the message names `setting`.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise FreshetError(f"{setting}={name!r} is no device; use auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise FreshetError(f"{setting}={name!r}, but torch sees no GPU; use auto or cpu")
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def moved(tensors: Iterable[Tensor], to: torch.device) -> list[Tensor]:
    """Return tensors on a device."""
    return [tensor.to(to, non_blocking=True) for tensor in tensors]


def gpu_memory() -> list[tuple[str, list[tuple[tuple[str, ...], float]]]]:
    """Return this process's memory on each GPU it uses, bytes, as a metric's samples; nothing without one."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):  # asking would initialise it
        return []
    samples: list[tuple[tuple[str, ...], float]] = []
    for number in range(torch.cuda.device_count()):
        if reserved := torch.cuda.memory_reserved(number):
            name = f"cuda:{number}"
            samples += [((name, "allocated"), torch.cuda.memory_allocated(number)), ((name, "reserved"), reserved)]
    return [("freshet_gpu_memory_bytes", samples)]
