"""Asks the receiver on this machine: while Redis is away, only it can say what waits in its journal."""

import json
import socket
from typing import Any
from urllib.error import URLError
from urllib.request import HTTPErrorProcessor, ProxyHandler, Request, build_opener

from shared.errors import Unavailable
from shared.observe.readiness import Readiness, readiness_of
from shared.settings import Settings

#: A receiver that sums up several processes waits for each for up to a second.
ANSWER_SECONDS = 1.4


def ask_receiver(config: Settings) -> Readiness | None:
    """What the receiver on this machine says about itself, or None if there is none.

    Raises Unavailable if something accepts the connection and does not answer, as a frozen receiver does.
    """
    if not config.admin_port:
        return None
    try:
        return readiness_of(fetch(config.admin_host, config.admin_port, "/readyz", ANSWER_SECONDS))
    except TimeoutError:
        where = f"{url_host(config.admin_host)}:{config.admin_port}"
        raise Unavailable(f"the receiver on this machine does not answer at {where}: frozen, or too busy") from None
    except (OSError, ValueError):
        return None


def fetch(host: str, port: int, page: str, seconds: float) -> Any:
    """The JSON of a page on an admin port of this machine. Raises as `read` does, and ValueError if it is not JSON."""
    return json.loads(read(host, port, page, seconds))


def read(host: str, port: int, page: str, seconds: float) -> bytes:
    """A page on an admin port of this machine, whatever its status, and through no proxy.

    Raises TimeoutError, and OSError if nobody listens.
    """
    request = Request(f"http://{url_host(host)}:{port}{page}")  # it is http
    try:
        with build_opener(ProxyHandler({}), _AnyStatus()).open(request, timeout=seconds) as answer:
            return bytes(answer.read())
    except URLError as error:
        raise (error.reason if isinstance(error.reason, OSError) else error) from None


def url_host(host: str) -> str:
    """The host for a URL by which a program on this machine reaches what listens on `host`."""
    if is_everywhere(host):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def is_everywhere(host: str) -> bool:
    """Whether the host means all addresses of this machine."""
    return host in ("0.0.0.0", "::")  # noqa: S104


def listens(config: Settings, seconds: float) -> bool:
    """Whether anything accepts connections at the receiver's port."""
    host = url_host(config.host).strip("[]")
    try:
        socket.create_connection((host, config.port), seconds).close()
    except OSError:
        return False
    return True


class _AnyStatus(HTTPErrorProcessor):
    def http_response(self, request: Request, response: Any) -> Any:
        return response  # a 503 has the same form
