"""Weights in the layout that a CPU computes with, made once instead of at each product.

On a CPU torch hands a plain weight to a kernel that brings it into its own layout each time; with
few rows, as in decoding, that costs as much as the product itself. In int8 a weight is also half as
long to read.
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


class Int8Linear(torch.nn.Module):
    """Computes about what a `torch.nn.Linear` computes, with whole numbers up to 127.

    All weights of an output share one scale; activations stay as they are.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        """Bring the weight of a layer, which stays as it is, into int8."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        plain = linear.weight.float()
        scales = plain.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self._scales = scales.to(linear.weight.dtype)
        whole = (plain / self._scales.float()[:, None]).round().clamp(-127, 127)
        self._values = whole.to(torch.int8).contiguous()

    @property
    def weight(self) -> torch.Tensor:
        """The weight that is computed with, for code that looks at it; a copy."""
        return self._values.to(self._scales.dtype) * self._scales[:, None]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return inputs x weight + bias."""
        rows = inputs.reshape(-1, self.in_features)
        result = torch._weight_int8pack_mm(rows, self._values, self._scales)
        result = result.view(*inputs.shape[:-1], self.out_features)
        return result if self.bias is None else result + self.bias


def pack_linears(model: Any, *, int8: bool = False) -> int:
    """Replace the linear layers of a model on the CPU, where this CPU can; return how many.

    Args:
        model: Any model.
        int8: Bring the weights into int8; lossy.
    """
    if int8:
        return _replace_linears(model, Int8Linear, set(_DTYPES))
    usable = {dtype for dtype in _DTYPES if _works(dtype)}
    return _replace_linears(model, PackedLinear, usable)


def _replace_linears(
    model: Any, kind: type[PackedLinear | Int8Linear], usable: set[torch.dtype]
) -> int:
    count = 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            # The exact class: what derives from it computes something else.
            if type(layer) is not torch.nn.Linear or layer.weight.device.type != "cpu":
                continue
            if layer.weight.dtype in usable:
                setattr(parent, name, kind(layer))
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
