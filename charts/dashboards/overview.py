"""One release: is it well, how fast does it answer, and does it scale."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.parts import (
    ENGINE,
    INTERVAL,
    RELEASE,
    SERVERS,
    WIDTH,
    WORKLOAD,
    Page,
    mean,
    per_second,
    quantile,
    quantiles,
)

# What the alert counts: a wrong request is its client's fault.
_REFUSED = ENGINE + ', reason=~"queue_.*"'
_FAILED = (
    f"{per_second('triton_hf_requests_failed_total')}"
    f" + {per_second('triton_hf_requests_rejected_total', labels=_REFUSED)}"
)
_ENDED = f"{per_second('triton_hf_requests_finished_total')} + {_FAILED}"
# A release without requests has no share of errors, so the series is left out, not faked as 0.
_ERROR_SHARE = f"({_FAILED}) / (({_ENDED}) > 0)"
_IN_FLIGHT = (
    f"sum ({mean('triton_hf_requests_running')}) + sum ({mean('triton_hf_requests_waiting')})"
)


def dashboard() -> Dashboard:
    """Return the overview."""
    page = Page(
        uid="triton-overview",
        title="Triton / Overview",
        description="Requests, latency, throughput and scaling of one release.",
    )
    page.models()
    page.deployments()
    _now(page)
    _requests(page)
    _latency(page)
    _throughput(page)
    _scaling(page)
    return page.dashboard


def _now(page: Page) -> None:
    page.row("Now")
    page.number(
        "Requests",
        "Requests answered to the end, per second, over all pods.",
        "reqps",
        per_second("triton_hf_requests_finished_total"),
    )
    page.number(
        "Errors",
        "Share of requests that failed or found the queue full; nothing while no request ends.",
        "percentunit",
        _ERROR_SHARE,
    )
    page.number(
        "Duration, p95",
        "95 of 100 requests took at most this long from submission to the last token.",
        "s",
        quantile(0.95, "triton_hf_request_duration_seconds"),
    )
    page.number(
        "First token, p95",
        "95 of 100 requests waited at most this long for their first token.",
        "s",
        quantile(0.95, "triton_hf_time_to_first_token_seconds"),
    )
    page.number(
        "Generated tokens",
        "Tokens generated per second over all pods.",
        "suffix: tok/s",
        per_second("triton_hf_generation_tokens_total"),
    )
    page.number(
        "Ready replicas",
        "Server pods that pass their readiness probe.",
        "none",
        f"max (min_over_time(kube_deployment_status_replicas_ready{{{WORKLOAD}}}{INTERVAL}))",
    )


def _requests(page: Page) -> None:
    page.row("Requests")
    page.graph(
        "Requests by result",
        "How requests end, per second: answered (stop: the model ended, length: max_tokens was "
        "reached), cancelled by the client, failed in the engine, or rejected before queueing.",
        "reqps",
        (per_second("triton_hf_requests_finished_total", "reason"), "answered: {{reason}}"),
        (per_second("triton_hf_requests_cancelled_total"), "cancelled"),
        (per_second("triton_hf_requests_failed_total"), "failed"),
        (per_second("triton_hf_requests_rejected_total", "reason"), "rejected: {{reason}}"),
        stacked=True,
    )
    page.graph(
        "Share of errors",
        "Failed and refused requests among all that ended; TritonErrorRatioHigh fires above 5 %. "
        "Wrong requests are their client's fault and do not count. Gaps mean that no request "
        "ended.",
        "percentunit",
        (_ERROR_SHARE, "errors"),
    )


def _latency(page: Page) -> None:
    page.row("Latency")
    third = WIDTH // 3
    page.graph(
        "Request duration",
        "From submission to the last token, so it grows with the length of answers.",
        "s",
        *quantiles("triton_hf_request_duration_seconds"),
        width=third,
    )
    page.graph(
        "Time to first token",
        "From submission to the first token: waiting for a slot plus prefill. It is the first "
        "to grow when slots are short.",
        "s",
        *quantiles("triton_hf_time_to_first_token_seconds"),
        width=third,
    )
    page.graph(
        "Inter-token time",
        "Between two tokens of one answer. It grows with the number of busy slots.",
        "s",
        *quantiles("triton_hf_inter_token_seconds"),
        width=third,
    )


def _throughput(page: Page) -> None:
    page.row("Throughput")
    page.graph(
        "Generated tokens",
        "Tokens generated per second, by model.",
        "suffix: tok/s",
        (per_second("triton_hf_generation_tokens_total", "model"), "{{model}}"),
        stacked=True,
    )
    page.graph(
        "Prompt tokens",
        "Prompt tokens of accepted requests per second, by model.",
        "suffix: tok/s",
        (per_second("triton_hf_prompt_tokens_total", "model"), "{{model}}"),
        stacked=True,
    )


def _scaling(page: Page) -> None:
    page.row("Scaling")
    page.graph(
        "In flight against slots",
        "Requests in flight (running and waiting) over all pods, and the slots that there are. "
        "Waiting above 0 means that every slot of some pod is taken.",
        "none",
        (f"sum ({mean('triton_hf_requests_running')})", "running"),
        (f"sum ({mean('triton_hf_requests_waiting')})", "waiting"),
        (_IN_FLIGHT, "in flight"),
        (f"sum ({mean('triton_hf_slots')})", "slots"),
    )
    page.graph(
        "In flight per pod",
        "The default signal of the autoscaler: running plus waiting requests of each pod, over "
        "all its models. It moves while the first long request still runs.",
        "none",
        (
            f"sum by (pod) ({mean('triton_hf_requests_running', RELEASE)})"
            f" + sum by (pod) ({mean('triton_hf_requests_waiting', RELEASE)})",
            "{{pod}}",
        ),
    )
    hpa = 'namespace="$namespace", horizontalpodautoscaler=~"(keda-hpa-)?$deployment"'
    page.graph(
        "Replicas now and wanted",
        "Ready pods, pods that the Deployment asks for, and what the autoscaler wants between "
        "its limits. Wanted above ready for long means that pods find no GPU or do not get ready.",
        "none",
        (
            f"max (avg_over_time(kube_deployment_status_replicas_ready{{{WORKLOAD}}}{INTERVAL}))",
            "ready",
        ),
        (
            f"max (avg_over_time(kube_deployment_spec_replicas{{{WORKLOAD}}}{INTERVAL}))",
            "Deployment",
        ),
        (
            "max (avg_over_time("
            f"kube_horizontalpodautoscaler_status_desired_replicas{{{hpa}}}{INTERVAL}))",
            "autoscaler",
        ),
        (
            "max (avg_over_time("
            f"kube_horizontalpodautoscaler_spec_max_replicas{{{hpa}}}{INTERVAL}))",
            "limit",
        ),
    )
    page.graph(
        "Restarts",
        "Restarts of servers, and of engines inside a running server (its stub ended). Both "
        "should stay 0.",
        "none",
        (
            "sum by (pod) (increase("
            f"kube_pod_container_status_restarts_total{{{SERVERS}}}{INTERVAL}))",
            "{{pod}} container",
        ),
        (
            "sum by (pod, model) "
            f"(changes(triton_hf_engine_start_time_seconds{{{ENGINE}}}{INTERVAL}))",
            "{{pod}} engine of {{model}}",
        ),
    )
