"""A request while an engine of ours computes its tokens."""

from __future__ import annotations

from typing import Any

from triton_hf.engines.text import TextJob


class Row:
    """One request while the engine works on it.

    Attributes:
        sequence: The runner's sequence during prefill, None before and after.
        read: Prompt tokens that are prefilled.
        token: The last token sampled.
    """

    def __init__(self, job: TextJob) -> None:
        from triton_hf.compute.guides import Guide
        from triton_hf.compute.sampler import SamplingRow

        self.job = job
        guide = None if job.work.guide is None else Guide(job.work.guide)
        self.sampling = SamplingRow(job.work.sampling, job.work.token_ids, guide=guide)
        self.sequence: Any = None
        self.read = 0
        self.token = 0

    @property
    def complete(self) -> bool:
        """Whether the whole prompt is prefilled."""
        return self.read == len(self.job.work.token_ids)
