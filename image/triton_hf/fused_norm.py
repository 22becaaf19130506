"""Root-mean-square norms as torch's one kernel, in place of the five or six of the models' code.

In a step for few rows a GPU spends more time between small kernels than in them.
"""

from __future__ import annotations

from typing import Any

import torch

# How far a norm may be from the model's own, as a part of its length: some roundings are others.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.01, torch.float16: 0.002}
_PROBE_ROWS = 4


class FusedNorm(torch.nn.Module):
    """Computes x / sqrt(mean(x^2) + eps) x weight over the last dimension."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        """Use this weight as it is."""
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self._eps = eps

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the normed inputs."""
        return torch.nn.functional.rms_norm(inputs, self.weight.shape, self.weight, self._eps)


class FusedNorms:
    """The norms of one model that were replaced."""

    def __init__(self, model: Any) -> None:
        """Replace those that compute what torch's kernel does, as tried on each."""
        self._replaced: list[tuple[Any, str, Any]] = []
        with torch.no_grad():
            for parent in list(model.modules()):
                for name, norm in list(parent.named_children()):
                    if (fused := _fused(norm)) is not None:
                        setattr(parent, name, fused)
                        self._replaced.append((parent, name, norm))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._replaced)

    def undo(self) -> None:
        """Put the model's own norms back."""
        for parent, name, norm in self._replaced:
            setattr(parent, name, norm)
        self._replaced = []


def _fused(norm: Any) -> FusedNorm | None:
    """Return the kernel for a norm of transformers, None where it computes something else."""
    if not type(norm).__name__.endswith("RMSNorm"):
        return None
    weight = getattr(norm, "weight", None)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if eps is None or weight is None or weight.dim() != 1 or weight.dtype not in _TOLERANCE:
        return None
    steps = torch.linspace(-3, 2, _PROBE_ROWS * len(weight), device=weight.device)
    probe = steps.view(_PROBE_ROWS, -1).to(weight.dtype)
    expected = norm(probe).float()
    for used in (weight.detach(), 1 + weight.detach()):  # Gemma stores what is added to 1
        fused = FusedNorm(used, float(eps))
        apart = (fused(probe).float() - expected).norm() / expected.norm()
        if float(apart) <= _TOLERANCE[weight.dtype]:
            return fused
    return None
