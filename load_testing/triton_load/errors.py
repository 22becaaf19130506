"""The one family of errors of this package."""


class LoadTestError(Exception):
    """The test cannot start; the text is one sentence that names the fault and the fix."""
