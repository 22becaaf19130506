"""Weights in the layout that oneDNN computes with, made once instead of at each product.

On a CPU torch hands a plain weight to a kernel that brings it into its own layout each time; with
few rows, as in decoding, that costs as much as the product itself.
"""

from __future__ import annotations

from typing import Any

import torch

# Rows that the layout is chosen for: those of a decoding batch. Any number works with it.
_ROWS = 16
_DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(torch.nn.Module):
    """Computes what a `torch.nn.Linear` computes; for inference only."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        """Pack the weight of a layer, which stays as it is."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.contiguous(), _ROWS)

    @property
    def weight(self) -> torch.Tensor:
        """The plain weight, for code that looks at it; a copy."""
        plain: torch.Tensor = self._packed.to_dense()
        return plain

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return inputs x weight + bias."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._packed, self.bias, "none", [], ""
        )
        return result


def pack_linears(model: Any) -> int:
    """Replace the linear layers of a model on the CPU, where this CPU can; return how many."""
    usable = {dtype for dtype in _DTYPES if _works(dtype)}
    count = 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            # The exact class: what derives from it computes something else.
            if type(layer) is not torch.nn.Linear or layer.weight.device.type != "cpu":
                continue
            if layer.weight.dtype in usable:
                setattr(parent, name, PackedLinear(layer))
                count += 1
    if count:
        _leave_file(model)
    return count


def _leave_file(model: Any) -> None:
    """Copy what was not packed; else its few pages keep the whole file in memory."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def _works(dtype: torch.dtype) -> bool:
    """Whether this torch on this CPU packs such weights and computes the same with them."""
    plain = torch.nn.Linear(64, 32, dtype=dtype)
    inputs = torch.linspace(-1, 1, 3 * 64).view(3, 64).to(dtype)
    try:
        return torch.allclose(PackedLinear(plain)(inputs), plain(inputs), atol=0.05)
    except (AttributeError, RuntimeError):
        return False
