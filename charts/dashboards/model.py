"""One model, pod by pod: its queue, its tokens and what Triton itself says of it."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.parts import (
    ENGINE,
    INTERVAL,
    TRITON,
    WIDTH,
    Page,
    mean,
    per_second,
    quantile,
    quantiles,
    rate,
)

_THIRD = WIDTH // 3
_QUARTER = WIDTH // 4


def dashboard() -> Dashboard:
    """Return the dashboard of models."""
    page = Page(
        uid="triton-model",
        title="Triton / Model",
        description="Queue, latency and tokens of one or more models, pod by pod.",
    )
    page.models()
    _queue(page)
    _latency(page)
    _tokens(page)
    _triton(page)
    return page.dashboard


def _queue(page: Page) -> None:
    page.row("Queue")
    page.graph(
        "Running",
        "Requests that hold a slot.",
        "none",
        (f"sum by (pod, model) ({mean('triton_hf_requests_running')})", "{{pod}} {{model}}"),
        width=_QUARTER,
    )
    page.graph(
        "Waiting",
        "Requests that wait for a slot; beyond max_queue or max_queue_seconds they are rejected.",
        "none",
        (f"sum by (pod, model) ({mean('triton_hf_requests_waiting')})", "{{pod}} {{model}}"),
        width=_QUARTER,
    )
    page.graph(
        "Slots in use",
        "Share of slots that hold a request.",
        "percentunit",
        (
            f"sum by (pod, model) ({mean('triton_hf_requests_running')})"
            f" / sum by (pod, model) ({mean('triton_hf_slots')})",
            "{{pod}} {{model}}",
        ),
        width=_QUARTER,
        top=1,
    )
    page.graph(
        "Mean time in the queue",
        "Seconds from a request's arrival to its slot; empty while none gets a slot.",
        "s",
        (
            f"{per_second('triton_hf_queue_seconds_sum', 'pod, model')}"
            f" / {per_second('triton_hf_queue_seconds_count', 'pod, model')}",
            "{{pod}} {{model}}",
        ),
        width=_QUARTER,
    )
    page.graph(
        "Requests by result",
        "How requests end, per second.",
        "reqps",
        (
            per_second("triton_hf_requests_finished_total", "model, reason"),
            "{{model}} answered: {{reason}}",
        ),
        (per_second("triton_hf_requests_cancelled_total", "model"), "{{model}} cancelled"),
        (per_second("triton_hf_requests_failed_total", "model"), "{{model}} failed"),
        (
            per_second("triton_hf_requests_rejected_total", "model, reason"),
            "{{model}} rejected: {{reason}}",
        ),
        width=_THIRD,
        stacked=True,
    )
    page.graph(
        "Key and value cache in use",
        "Share of the cache that holds keys and values of running requests.",
        "percentunit",
        (f"max by (pod, model) ({mean('triton_hf_kv_cache_usage_ratio')})", "{{pod}} {{model}}"),
        width=_THIRD,
        top=1,
    )
    page.graph(
        "Age of engines",
        "Seconds since the engine of a pod was ready; a fall to 0 is a restart.",
        "s",
        (
            "time() - max by (pod, model) "
            f"(last_over_time(triton_hf_engine_start_time_seconds{{{ENGINE}}}{INTERVAL}))",
            "{{pod}} {{model}}",
        ),
        width=_THIRD,
    )


def _latency(page: Page) -> None:
    page.row("Latency")
    page.graph(
        "Request duration",
        "From submission to the last token, over all pods.",
        "s",
        *quantiles("triton_hf_request_duration_seconds"),
        width=_THIRD,
    )
    page.graph(
        "Time to first token, p95 by pod",
        "A pod far above the others is short of slots, or just started.",
        "s",
        (
            quantile(0.95, "triton_hf_time_to_first_token_seconds", "le, pod, model"),
            "{{pod}} {{model}}",
        ),
        width=_THIRD,
    )
    page.graph(
        "Inter-token time, p95 by pod",
        "A pod far above the others runs on a slower or shared device.",
        "s",
        (quantile(0.95, "triton_hf_inter_token_seconds", "le, pod, model"), "{{pod}} {{model}}"),
        width=_THIRD,
    )


def _tokens(page: Page) -> None:
    page.row("Tokens")
    page.graph(
        "Generated tokens",
        "Tokens generated per second, by pod.",
        "suffix: tok/s",
        (per_second("triton_hf_generation_tokens_total", "pod, model"), "{{pod}} {{model}}"),
        width=_THIRD,
        stacked=True,
    )
    page.graph(
        "Prompt length",
        "Prompt tokens of one request.",
        "none",
        *quantiles("triton_hf_prompt_tokens"),
        width=_THIRD,
    )
    page.graph(
        "Answer length",
        "Generated tokens of one request.",
        "none",
        *quantiles("triton_hf_generation_tokens"),
        width=_THIRD,
    )


def _triton(page: Page) -> None:
    page.row("Triton")
    page.graph(
        "Calls by result",
        "What Triton counts: a model and its streaming companion apart, per second.",
        "reqps",
        (per_second("nv_inference_request_success", "model", TRITON), "{{model}} success"),
        (
            per_second("nv_inference_request_failure", "model, reason", TRITON),
            "{{model}} failure: {{reason}}",
        ),
    )
    page.graph(
        "Batch size",
        "Requests that Triton hands over in one execution. An engine with slots of its own takes "
        "them one by one, and batches inside.",
        "none",
        (
            f"{per_second('nv_inference_count', 'model', TRITON)}"
            f" / ({per_second('nv_inference_exec_count', 'model', TRITON)} > 0)",
            "{{model}}",
        ),
    )
    page.graph(
        "Where Triton's time goes",
        "Mean time of one execution. For an engine that answers late it is the hand-over only; "
        "the whole answer is in the request duration above.",
        "µs",
        *(
            (
                f"sum by (model) ({rate(f'nv_inference_{part}_duration_us', TRITON)})"
                f" / (sum by (model) ({rate('nv_inference_exec_count', TRITON)}) > 0)",
                "{{model}} " + part.replace("_", " "),
            )
            for part in ("queue", "compute_input", "compute_infer", "compute_output")
        ),
        width=_THIRD,
        stacked=True,
    )
    page.graph(
        "Pending in Triton",
        "Requests that Triton has not handed over yet; above 0 when the backend is stuck.",
        "none",
        (
            f"sum by (pod, model) ({mean('nv_inference_pending_request_count', TRITON)})",
            "{{pod}} {{model}}",
        ),
        width=_THIRD,
    )
    page.graph(
        "Hand-over, p95",
        "95 of 100 executions were handed over in this time (from Triton's latency summaries).",
        "µs",
        (
            "max by (model) (max_over_time(nv_inference_request_summary_us"
            f'{{{TRITON}, quantile="0.95"}}{INTERVAL}))',
            "{{model}}",
        ),
        width=_THIRD,
    )
