"""8-bit integer linear layers for CPUs, and copies of a module that use them: several times faster than float32.

Weights have one scale per output, inputs one dynamic scale per row, so a row's result does not depend on other rows.
Matrix products use `torch._int_mm` (oneDNN) with VNNI instructions: 380 GFLOP/s at 128 rows on one EPYC core, compared
with 80 in float32, 190 in bfloat16 and 320 with `quantize_dynamic`. PyTorch is about to remove the latter, and its
single scale per batch lets the largest row limit the precision of the others.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

LARGEST = 127


def quick(device: torch.device) -> bool:
    """Return whether 8-bit products are fast on the device: on CPUs with VNNI."""
    return device.type == "cpu" and bool(torch.cpu._is_vnni_supported())


class Rounding:
    """Rounds rows to 8 bits. Layers that share an instance round a common input (queries, keys, values) once."""

    def __init__(self) -> None:
        self._of: Tensor | None = None
        self._found: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows (n, in) int8 of x (…, in), and their scales (n, 1)."""
        if self._found is None or x is not self._of:
            rows = x.flatten(0, -2).float()
            scale = rows.abs().amax(1, keepdim=True).clamp_(min=1e-12).div_(LARGEST)
            self._of, self._found = x, ((rows / scale).round_().to(torch.int8), scale)
        return self._found


class Int8Linear(nn.Module):
    """y = x Wᵀ + b with W and x rounded to 8 bits.

    Args:
        weight: (out, in).
        bias: (out,) or None.
        rounding: rounding of inputs; None = a new one.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, rounding: Rounding | None = None) -> None:
        super().__init__()
        weight = weight.detach().float()
        self.scale = weight.abs().amax(1).clamp(min=1e-12) / LARGEST
        self.weight = (weight / self.scale[:, None]).round().to(torch.int8).t().contiguous()  # no buffer: not saved
        self.bias = None if bias is None else bias.detach().float()
        self.rounding = rounding or Rounding()

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, out) float32 for x (…, in)."""
        rows, scale = self.rounding(x)
        out = torch._int_mm(rows, self.weight).float().mul_(scale).mul_(self.scale)
        if self.bias is not None:
            out += self.bias
        return out.unflatten(0, x.shape[:-1])


def base_copy(module: nn.Module, int8: bool) -> Any:
    """Return a copy of a module without LoRA adapters that shares its weights; `int8` = use `Int8Linear` layers.

    Changes to the copy (its attention implementation, its layers) do not affect the original.
    """
    rounding = Rounding()
    memo: dict[int, Any] = {id(weight): weight for weight in (*module.parameters(), *module.buffers())}
    for part in module.modules():
        plain = part.get_base_layer() if isinstance(part, BaseTunerLayer) else part
        if isinstance(plain, nn.Linear) and id(part) not in memo:
            made = Int8Linear(plain.weight, plain.bias, rounding) if int8 else plain
            memo[id(part)] = memo[id(plain)] = made
    return copy.deepcopy(module, memo)
