"""Finds out, before torch is used, whether this CPU hides its matrix unit half."""


def apply_cpu_limits() -> dict[str, str]:
    """Placeholder."""
    return {}
