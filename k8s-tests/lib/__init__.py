"""What tests and benchmarks share: small releases, steady load, watchers, Prometheus, dumps.

It may use tools and the embedded cluster, and never tests or benchmarks.
"""
