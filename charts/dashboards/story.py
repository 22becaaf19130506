"""A made-up half hour of one release as OpenMetrics text, for tests of drawings and rules.

Two pods with two GPUs answer 3 requests a second each; nothing fails except one request in 60.
Every metric that a panel may use is in it, so what draws nothing is a fault of the panel.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from triton_hf.metrics import FAMILIES, Family

NAMESPACE = "story"
RELEASE = "story"
MODEL = "simulated"
PODS = ("story-triton-6d8f9c7b5d-x2x4z", "story-triton-6d8f9c7b5d-b8v2k")
STEP = 15
SECONDS = 1800
RATE = 3.0  # answered requests a second, of each pod
TOKENS = 20.0
FAILED_SHARE = 1 / 60

GAUGES = {
    "triton_hf_requests_running": 6.0,
    "triton_hf_requests_waiting": 1.0,
    "triton_hf_slots": 8.0,
    "triton_hf_kv_cache_usage_ratio": 0.4,
    "nv_inference_pending_request_count": 0.0,
    "nv_inference_request_summary_us": 480.0,
    "nv_gpu_utilization": 0.7,
    "nv_gpu_memory_total_bytes": 80e9,
    "nv_gpu_memory_used_bytes": 60e9,
    "nv_gpu_power_usage": 310.0,
    "nv_gpu_power_limit": 700.0,
    "nv_cpu_utilization": 0.3,
    "nv_cpu_memory_total_bytes": 128e9,
    "nv_cpu_memory_used_bytes": 40e9,
    "DCGM_FI_DEV_FB_USED": 57_000.0,
    "DCGM_FI_DEV_GPU_TEMP": 61.0,
    "DCGM_FI_DEV_SM_CLOCK": 1_755.0,
    "DCGM_FI_DEV_XID_ERRORS": 0.0,
    "DCGM_FI_PROF_DRAM_ACTIVE": 0.8,
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": 0.9,
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": 0.2,
}
COUNTERS = {
    "nv_inference_request_success": RATE,
    "nv_inference_request_failure": RATE * FAILED_SHARE,
    "nv_inference_count": RATE,
    "nv_inference_exec_count": RATE,
    "nv_inference_queue_duration_us": RATE * 30,
    "nv_inference_compute_input_duration_us": RATE * 60,
    "nv_inference_compute_infer_duration_us": RATE * 400,
    "nv_inference_compute_output_duration_us": RATE * 20,
    "nv_energy_consumption": 310.0,
    "triton_hf_prompt_tokens_total": RATE * 9,
    "triton_hf_generation_tokens_total": RATE * TOKENS,
    "triton_hf_requests_failed_total": RATE * FAILED_SHARE,
    "triton_hf_requests_cancelled_total": 0.0,
}
_TYPICAL = {
    "triton_hf_queue_seconds": 0.1,
    "triton_hf_time_to_first_token_seconds": 0.2,
    "triton_hf_inter_token_seconds": 0.02,
    "triton_hf_request_duration_seconds": 2.0,
    "triton_hf_prompt_tokens": 9.0,
    "triton_hf_generation_tokens": TOKENS,
}
_REPLICAS = {
    "kube_deployment_spec_replicas": {"deployment": "story-triton"},
    "kube_deployment_status_replicas_ready": {"deployment": "story-triton"},
    "kube_horizontalpodautoscaler_spec_max_replicas": {"horizontalpodautoscaler": "story-triton"},
    "kube_horizontalpodautoscaler_status_desired_replicas": {
        "horizontalpodautoscaler": "story-triton"
    },
}

Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]


def _samples(age: float, start: float) -> Iterator[Sample]:
    """Yield every sample `age` seconds after the story's start."""
    for number, pod in enumerate(PODS):
        own = {"namespace": NAMESPACE, "release": RELEASE, "pod": pod}
        model = {**own, "model": MODEL}
        gpu = {**own, "gpu_uuid": f"GPU-{number}", "gpu": str(number)}
        for name, value in GAUGES.items():
            device = name.startswith(("nv_gpu", "nv_cpu", "DCGM"))
            extra = {"quantile": "0.95"} if "summary" in name else {}
            yield name, {**(gpu if device else model), **extra}, value
        for name, per_second in COUNTERS.items():
            labels = gpu if name == "nv_energy_consumption" else model
            extra = {"reason": "OTHER"} if name.endswith("_failure") else {}
            yield name, {**labels, **extra}, per_second * age
        for reason in ("stop", "length"):
            labels = {**model, "reason": reason}
            yield "triton_hf_requests_finished_total", labels, RATE / 2 * age
        rejected = {**model, "reason": "queue_full"}
        yield "triton_hf_requests_rejected_total", rejected, 0.0
        yield "triton_hf_engine_start_time_seconds", model, start
        restarts = {"namespace": NAMESPACE, "pod": pod, "container": "triton"}
        yield "kube_pod_container_status_restarts_total", restarts, 0.0
        for family in FAMILIES:
            if family.kind == "histogram":
                yield from _histogram(family, model, RATE * age)
    for name, labels in _REPLICAS.items():
        yield name, {"namespace": NAMESPACE, **labels}, float(len(PODS))


def _histogram(family: Family, labels: Labels, count: float) -> Iterator[Sample]:
    typical = _TYPICAL[family.name]
    for bound in family.buckets:
        inside = count if typical <= bound else 0.0
        yield f"{family.name}_bucket", {**labels, "le": f"{bound:g}"}, inside
    yield f"{family.name}_bucket", {**labels, "le": "+Inf"}, count
    yield f"{family.name}_sum", labels, typical * count
    yield f"{family.name}_count", labels, count


def open_metrics(end: float) -> str:
    """Return the story, which ends at a Unix time, as OpenMetrics text."""
    start = end - SECONDS
    by_series: dict[tuple[str, str], list[str]] = {}
    for age in range(0, SECONDS + 1, STEP):
        for name, labels, value in _samples(float(age), start):
            inside = ",".join(f'{key}="{text}"' for key, text in labels.items())
            line = f"{name}{{{inside}}} {value:g} {start + age:.0f}"
            by_series.setdefault((name, inside), []).append(line)
    lines: list[str] = []
    for name in dict.fromkeys(name for name, _ in by_series):
        lines.append(f"# TYPE {name} unknown")
        lines += [line for key, found in by_series.items() if key[0] == name for line in found]
    return "\n".join([*lines, "# EOF", ""])


def names() -> set[str]:
    """Return the metrics of the story."""
    return {name for name, _, _ in _samples(0.0, 0.0)}


def write_blocks(promtool: Path, folder: Path, *, end: float) -> None:
    """Write the story as data of a Prometheus below `folder`."""
    source = folder / "story.txt"
    source.write_text(open_metrics(end), encoding="utf-8")
    command = [str(promtool), "tsdb", "create-blocks-from", "openmetrics", "--quiet"]
    subprocess.run(
        [*command, str(source), str(folder / "data")], check=True, stdout=subprocess.PIPE
    )
