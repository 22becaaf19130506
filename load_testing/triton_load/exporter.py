"""The numbers of a running test for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from triton_load import record
from triton_load.measure import Measurements

_SHOWN = {
    record.LATENCY: "triton_load_latency_seconds",
    record.TTFT: "triton_load_time_to_first_token_seconds",
    record.INTER_TOKEN: "triton_load_inter_token_seconds",
}
_QUANTILES = (50.0, 95.0, 99.0)


class _Numbers(Collector):
    def __init__(self, measurements: Measurements) -> None:
        self._measurements = measurements

    def collect(self) -> Iterable[Metric]:
        """Everything counted so far."""
        counts = self._measurements
        requests = CounterMetricFamily(
            "triton_load_requests", "Requests that ended, by result.", labels=["result"]
        )
        requests.add_metric(["passed"], counts.passed)
        requests.add_metric(["failed"], counts.failed)
        yield requests
        yield CounterMetricFamily(
            "triton_load_output_tokens", "Output tokens that arrived.", value=counts.tokens
        )
        for name, shown in _SHOWN.items():
            family = GaugeMetricFamily(shown, "Quantiles since the start.", labels=["quantile"])
            for percent in _QUANTILES:
                value = counts.distributions[name].quantile(percent)
                family.add_metric([f"{percent / 100:g}"], value)
            yield family


def serve(measurements: Measurements, *, port: int) -> None:
    """Serve `/metrics` on a port until the process ends."""
    registry = CollectorRegistry()
    registry.register(_Numbers(measurements))
    start_http_server(port, registry=registry)
