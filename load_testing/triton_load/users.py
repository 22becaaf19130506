"""Locust users: each asks one way, in a closed loop or at an open-loop rate."""

from __future__ import annotations

from typing import Any

from locust import User, task

from triton_load import clients, locust_bridge, session


class _LoadUser(User):
    """One user of a closed loop, or one generator of an open one."""

    abstract = True
    client_kind = ""

    def on_start(self) -> None:
        """Open a client of its own."""
        self._session = session.of(self.environment)
        self._client = clients.make(self.client_kind, self._session.target)
        self._source = self._session.source()

    def on_stop(self) -> None:
        """Give up its connections."""
        self._client.close()

    @property
    def is_stopping(self) -> bool:
        """Whether Locust wants this user to end after its requests."""
        return locust_bridge.is_stopping(self)

    @task
    def load(self) -> None:
        """Send requests until the end: one after the other, or as they arrive.

        Locust's own pause is of no use: it kills users who pause, also one who has just woken up
        and sent a request, whose answer would then be missing.
        """
        if self._session.options.open_loop:
            self._session.arrive(self, self._client)
        else:
            self._session.repeat(self, self._client, self._source)


class InferUser(_LoadUser):
    """Whole answers over HTTP."""

    client_kind = "infer"


class StreamUser(_LoadUser):
    """Answers as streams of tokens over HTTP."""

    client_kind = "stream"


class GrpcUser(_LoadUser):
    """Whole answers over gRPC."""

    client_kind = "grpc"


class OpenAIUser(_LoadUser):
    """Answers as streams by OpenAI's API."""

    client_kind = "openai"


USERS: dict[str, type[_LoadUser]] = {
    user.client_kind: user for user in (InferUser, StreamUser, GrpcUser, OpenAIUser)
}


def choose(environment: Any) -> None:
    """Keep the users of --client, or of the one class that was named on the command line."""
    parsed = environment.parsed_options
    named = [user for user in environment.user_classes if user in USERS.values()]
    if not parsed.client:
        parsed.client = named[0].client_kind if len(named) == 1 else "infer"
    environment.user_classes = [USERS[parsed.client]]
    if parsed.client == "grpc":
        clients.prepare_grpc()
