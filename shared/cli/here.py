"""The receiver on this machine: with Redis away, nobody else can say what waits in its journal."""

import json
from contextlib import suppress
from typing import Any
from urllib.request import HTTPErrorProcessor, ProxyHandler, Request, build_opener

from shared.observe.readiness import Readiness, readiness_of
from shared.settings import Settings

ANSWER_SECONDS = 0.5


def ask_receiver(config: Settings) -> Readiness | None:
    """What the receiver on this machine says of itself, or None where none answers."""
    if not config.admin_port:
        return None
    host = "127.0.0.1" if config.admin_host in ("0.0.0.0", "::") else config.admin_host  # noqa: S104
    host = f"[{host}]" if ":" in host else host
    page = Request(f"http://{host}:{config.admin_port}/readyz")  # it is http
    opener = build_opener(ProxyHandler({}), _AnyStatus())
    with suppress(OSError, ValueError), opener.open(page, timeout=ANSWER_SECONDS) as answer:
        return readiness_of(json.load(answer))
    return None


class _AnyStatus(HTTPErrorProcessor):
    def http_response(self, request: Request, response: Any) -> Any:
        return response  # a 503 has the same form, and more to say
