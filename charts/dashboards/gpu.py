"""The devices under a release: what Triton reports of them, and what DCGM does."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.parts import RELEASE, WIDTH, Page, mean, rate

_THIRD = WIDTH // 3
# dcgm-exporter names the pod that holds the GPU; scrape it with honorLabels, as its chart does.
_DCGM = 'namespace="$namespace", pod=~"$deployment-.*"'
_MEBIBYTE = 1 << 20


def dashboard() -> Dashboard:
    """Return the dashboard of GPUs."""
    page = Page(
        uid="triton-gpu",
        title="Triton / GPU",
        description="GPUs and CPUs of one release: from Triton itself, and from dcgm-exporter.",
    )
    page.deployments()
    _triton(page)
    _dcgm(page)
    _host(page)
    return page.dashboard


def _triton(page: Page) -> None:
    page.row("GPU, from Triton")
    gpu = "{{pod}} {{gpu_uuid}}"
    page.graph(
        "Utilization",
        "Share of time in which a kernel ran. Full is not busy: it does not say how much of the "
        "GPU the kernels use, so nothing scales on it.",
        "percentunit",
        (f"max by (pod, gpu_uuid) ({mean('nv_gpu_utilization', RELEASE)})", gpu),
        width=_THIRD,
        top=1,
    )
    page.graph(
        "Memory in use",
        "Share of the GPU's memory that is taken, by anyone.",
        "percentunit",
        (
            f"max by (pod, gpu_uuid) ({mean('nv_gpu_memory_used_bytes', RELEASE)})"
            f" / max by (pod, gpu_uuid) ({mean('nv_gpu_memory_total_bytes', RELEASE)})",
            gpu,
        ),
        width=_THIRD,
        top=1,
    )
    page.graph(
        "Power",
        "Power drawn, and the limit at which the GPU slows down.",
        "watt",
        (f"max by (pod, gpu_uuid) ({mean('nv_gpu_power_usage', RELEASE)})", gpu),
        (f"max ({mean('nv_gpu_power_limit', RELEASE)})", "limit"),
        width=_THIRD,
    )
    page.graph(
        "Energy of a generated token",
        "Energy that the GPUs took in, divided by the tokens generated in the same time.",
        "joule",
        (
            f"sum ({rate('nv_energy_consumption', RELEASE)})"
            f" / (sum ({rate('triton_hf_generation_tokens_total', RELEASE)}) > 0)",
            "joules a token",
        ),
        width=WIDTH,
    )


def _dcgm(page: Page) -> None:
    page.row("GPU, from DCGM")
    gpu = "{{pod}} {{gpu}}"
    page.graph(
        "Engine and tensor cores active",
        "Share of time in which the compute engine and the tensor cores worked. Decode is bound "
        "by memory, so low tensor activity with full memory traffic is no fault.",
        "percentunit",
        (f"max by (pod, gpu) ({mean('DCGM_FI_PROF_GR_ENGINE_ACTIVE', _DCGM)})", f"engine {gpu}"),
        (
            f"max by (pod, gpu) ({mean('DCGM_FI_PROF_PIPE_TENSOR_ACTIVE', _DCGM)})",
            f"tensor {gpu}",
        ),
        (f"max by (pod, gpu) ({mean('DCGM_FI_PROF_DRAM_ACTIVE', _DCGM)})", f"memory {gpu}"),
        width=_THIRD,
        top=1,
    )
    page.graph(
        "Framebuffer in use",
        "Memory that is taken on each GPU.",
        "bytes",
        (f"max by (pod, gpu) ({mean('DCGM_FI_DEV_FB_USED', _DCGM)}) * {_MEBIBYTE}", gpu),
        width=_THIRD,
    )
    page.graph(
        "Temperature",
        "Temperature of the GPU; clocks fall when it nears its limit.",
        "celsius",
        (f"max by (pod, gpu) ({mean('DCGM_FI_DEV_GPU_TEMP', _DCGM)})", gpu),
        width=_THIRD,
    )
    page.graph(
        "Clock of the multiprocessors",
        "A fall under load means that power or heat limits the GPU.",
        "rotmhz",
        (f"max by (pod, gpu) ({mean('DCGM_FI_DEV_SM_CLOCK', _DCGM)})", gpu),
    )
    page.graph(
        "Last XID error",
        "Number of the last driver error; 0 is none. See NVIDIA's list of XID errors.",
        "none",
        (
            "max by (pod, gpu) "
            f"(max_over_time(DCGM_FI_DEV_XID_ERRORS{{{_DCGM}}}[$__rate_interval]))",
            gpu,
        ),
    )


def _host(page: Page) -> None:
    page.row("CPU, from Triton")
    page.graph(
        "CPU of the node",
        "Share of the node's CPU time in use, by anyone.",
        "percentunit",
        (f"max by (pod) ({mean('nv_cpu_utilization', RELEASE)})", "{{pod}}"),
        top=1,
    )
    page.graph(
        "Memory of the node",
        "Share of the node's memory in use, by anyone.",
        "percentunit",
        (
            f"max by (pod) ({mean('nv_cpu_memory_used_bytes', RELEASE)})"
            f" / max by (pod) ({mean('nv_cpu_memory_total_bytes', RELEASE)})",
            "{{pod}}",
        ),
        top=1,
    )
