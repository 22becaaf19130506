"""The server before the load: is it there, is it ready, and what does the model take?"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from triton_load.errors import LoadTestError

_SECONDS = 10.0


class UnreachableError(LoadTestError):
    """Nothing answered; it may do so a moment later, unlike with a wrong name or model."""


class Server:
    """Asks a server about itself, with a fresh connection each time."""

    def __init__(self, host: str, *, headers: Mapping[str, str], insecure: bool) -> None:
        """Check the URL; nothing is sent.

        Raises:
            LoadTestError: It is no http or https URL of a host.
        """
        parts = urlsplit(host)
        try:
            self._port = parts.port
        except ValueError as error:
            raise LoadTestError(f"--host {host}: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LoadTestError(f"--host must be http://NAME[:PORT] or https://..., not '{host}'")
        self._name, self._secure = parts.hostname, parts.scheme == "https"
        self._host, self._headers, self._insecure = host.rstrip("/"), headers, insecure

    def metadata(self, model: str) -> dict[str, Any]:
        """What a ready model takes and gives.

        Raises:
            LoadTestError: The server cannot be reached, or has no such model, or it is not ready.
        """
        status, answer = self._get(f"/v2/models/{model}")
        if status in (400, 404):
            raise LoadTestError(
                f"{self._host} serves no model '{model}'; check --model or the schema's name"
            )
        if status in (401, 403):
            raise LoadTestError(f"{self._host} answers {status}; give its key with --header")
        if status != 200:
            raise LoadTestError(f"{self._host} answers {status} for '{model}'; is it a Triton?")
        try:
            found = json.loads(answer)
        except ValueError:
            found = None
        if not isinstance(found, dict) or "inputs" not in found:
            raise LoadTestError(f"{self._host} does not answer as Triton does for '{model}'")
        if not self.ready(model):
            raise LoadTestError(f"'{model}' on {self._host} is not ready; wait until it is")
        return found

    def config(self, model: str) -> dict[str, Any] | None:
        """The configuration that a model runs with, or None where the server does not give it."""
        status, answer = self._get(f"/v2/models/{model}/config")
        try:
            found = json.loads(answer) if status == 200 else None
        except ValueError:
            found = None
        return found if isinstance(found, dict) else None

    def check_openai(self, path: str, model: str) -> None:
        """Check that OpenAI's API is served under a path, with a model.

        Raises:
            LoadTestError: It is not, or has no such model, or wants a key.
        """
        status, answer = self._get(f"{path}/models")
        if status in (401, 403):
            raise LoadTestError(
                f"{self._host} answers {status}; give its key with "
                "--header 'Authorization: Bearer KEY'"
            )
        try:
            known = [item["id"] for item in json.loads(answer)["data"]] if status == 200 else None
        except (ValueError, KeyError, TypeError):
            known = None
        if known is None:
            raise LoadTestError(
                f"{self._host} answers {status} for {path}/models; is OpenAI's API there? Triton "
                "itself has another port"
            )
        if model not in known:
            raise LoadTestError(
                f"OpenAI's API on {self._host} serves no model '{model}'; it serves "
                f"{', '.join(known) or 'none'}"
            )

    def ready(self, model: str) -> bool:
        """Whether a model is there and ready."""
        return self._get(f"/v2/models/{model}/ready")[0] == 200

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = self._connection()
        try:
            connection.request("GET", path, headers=dict(self._headers))
            response = connection.getresponse()
            return response.status, response.read()
        except socket.gaierror as error:
            raise _unknown(error, f"unknown host '{self._name}'; check --host") from error
        except ssl.SSLCertVerificationError as error:
            raise LoadTestError(
                f"the certificate of {self._host} is not trusted ({error.verify_message}); "
                "add its CA (SSL_CERT_FILE) or use --insecure"
            ) from error
        except ssl.SSLError as error:
            reason = error.reason or str(error)
            raise LoadTestError(f"TLS with {self._host} fails: {reason}; http or https?") from error
        except TimeoutError as error:
            text = f"{self._host} does not answer within {_SECONDS:g} s"
            raise UnreachableError(text) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise UnreachableError(f"cannot reach {self._host}: {reason}") from error
        except http.client.HTTPException as error:
            raise LoadTestError(f"{self._host} does not speak HTTP; check the port") from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection(self._name, self._port, timeout=_SECONDS)
        context = ssl.create_default_context()
        if self._insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(
            self._name, self._port, timeout=_SECONDS, context=context
        )


def check_tcp(address: str) -> None:
    """Check that a HOST:PORT accepts connections.

    Raises:
        LoadTestError: It is no such address, or nothing listens there.
    """
    name, _, port = address.rpartition(":")
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]  # an IPv6 address
    elif ":" in name:
        raise LoadTestError(f"--grpc-host: put an IPv6 address in brackets, [{name}]:{port}")
    if not name or not port.isdigit():
        raise LoadTestError(f"--grpc-host must be HOST:PORT, not '{address}'")
    try:
        socket.create_connection((name, int(port)), timeout=_SECONDS).close()
    except socket.gaierror as error:
        raise _unknown(error, f"unknown host '{name}'; check --grpc-host") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnreachableError(f"cannot reach {address}: {reason}; check --grpc-host") from error


def _unknown(error: socket.gaierror, text: str) -> LoadTestError:
    """A name that does not exist is a mistake; a name server that does not answer is not."""
    return UnreachableError(text) if error.errno == socket.EAI_AGAIN else LoadTestError(text)
