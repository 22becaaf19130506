"""The one family of errors. The text of each is for the person who caused it."""

from __future__ import annotations

# What the commands `sync` and `wait` return.
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_ACCESS = 3
EXIT_NOT_FOUND = 4
EXIT_DISK = 5
EXIT_HUB = 6
EXIT_TIMEOUT = 7
EXIT_CODES = {
    EXIT_FAILED: "something unexpected; the log has it",
    EXIT_USAGE: "the command line or the specification is wrong",
    EXIT_ACCESS: "the token is missing, wrong, or has no access to a gated repository",
    EXIT_NOT_FOUND: "no such repository or revision, or it holds no safetensors",
    EXIT_DISK: "the volume is full or not writable",
    EXIT_HUB: "the Hub cannot be reached or fails",
    EXIT_TIMEOUT: "waited too long",
}
# What run_server.sh returns when the engine of a model has ended, and a model's process that has no
# tritonserver to end (EX_SOFTWARE of sysexits.h).
EXIT_ENGINE = 70


class TritonHFError(Exception):
    """Base of all errors of this package; `str(error)` is one sentence that names the fault."""


class SettingsError(TritonHFError):
    """A parameter of config.pbtxt, or a command line, that cannot be used."""


class RequestError(TritonHFError):
    """A request that can never be answered as it is; the client has to change it."""


class OverloadedError(TritonHFError):
    """A request that was refused because the queue is full; the same request may work later."""


class EngineError(TritonHFError):
    """The engine could not answer a request that was right."""


class EngineStoppedError(EngineError):
    """The engine takes no more requests; another server may take this one."""


class StoreError(TritonHFError):
    """The model store could not be filled or read.

    Attributes:
        exit_code: What a command that fails with it returns (`EXIT_CODES`).
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        """Keep the sentence and the exit code of the command that fails with it."""
        super().__init__(message)
        self.exit_code = exit_code


def in_short(error: BaseException) -> str:
    """Return an error as one line: the text of ours, kind and first line of others."""
    first = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, TritonHFError):
        return first
    return f"{type(error).__name__}: {first:.300}" if first else type(error).__name__


def error_code(error: TritonHFError) -> str:
    """Return the name of the code of `pb_utils.TritonError` that stands for an error."""
    if isinstance(error, RequestError):
        return "INVALID_ARG"
    if isinstance(error, OverloadedError | EngineStoppedError):
        return "UNAVAILABLE"
    return "INTERNAL"
