"""Small tensors between host and device, without either waiting for the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def upload(values: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the values on a device, without waiting for what it has to do before."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    pinned = torch.tensor(values, dtype=dtype, pin_memory=True)
    return pinned.to(device, non_blocking=True)


class Download:
    """A tensor on its way to the host."""

    def __init__(self, tensor: torch.Tensor) -> None:
        """Start to copy it as it is after all that the device was given until now."""
        self._event: torch.cuda.Event | None = None
        if tensor.device.type != "cuda":
            self._copy = tensor.clone()
            return
        self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._copy.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def wait(self) -> list[Any]:
        """Return its values; blocks until they are there.

        Raises:
            RuntimeError: The device failed on what comes before the copy.
        """
        if self._event is not None:
            self._event.synchronize()
        values: list[Any] = self._copy.tolist()
        return values
