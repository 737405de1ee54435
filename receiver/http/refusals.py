"""Reports refusals to people, because OpenIM does not."""

import asyncio
import logging

from aiohttp import hdrs, web
from aiohttp.http_exceptions import BadStatusLine, HttpProcessingError

from receiver.callback import Refusal, path_of
from receiver.http.head import is_of_wrong_scheme
from receiver.lately import Lately
from shared.logs.throttle import LogBudgets

#: How often a line is logged for each reason and peer, about requests that OpenIM may have sent.
SPAN_SECONDS = 10.0
#: How often for all peers together, about what is not HTTP at all, such as port scans, or https:// instead of http://.
PROBE_SPAN_SECONDS = 3600.0

log = logging.getLogger("receiver")


class Refusals:
    """Reports in the log and for `presence status`. Probes, such as `GET /`, never hide what OpenIM is told."""

    def __init__(self, secret_path: str, lately: Lately) -> None:
        self._secret_path = secret_path
        self._lately = lately
        self._lines = LogBudgets(log)

    def note(self, request: web.BaseRequest, refusal: Refusal) -> None:
        peer = request.remote or ""
        is_probe = request.method != hdrs.METH_POST
        self._lately.refused(refusal, peer, is_probe)
        if not is_probe and refusal.status != 503:  # the journal itself logs more
            what = f"{request.method} {self.shown(request.raw_path)}"
            self._say(refusal.message, peer, SPAN_SECONDS, f"refused {what} from {peer}: {refusal}")

    def note_unreadable(self, peer: str, refusal: Refusal, error: HttpProcessingError) -> None:
        """error: what the parser found."""
        is_no_http = isinstance(error, BadStatusLine)
        self._lately.refused(refusal, peer, is_no_http and not is_of_wrong_scheme(error))
        line = f"refused what came from {peer}: {refusal}"
        if is_no_http:
            self._say(refusal.message, "", PROBE_SPAN_SECONDS, f"{line}. This is logged once an hour, and counted")
        else:
            self._say(refusal.message, peer, SPAN_SECONDS, line)

    def _say(self, reason: str, peer: str, seconds: float, line: str) -> None:
        self._lines.say(asyncio.get_running_loop().call_later, (reason, peer), reason, seconds, line)

    def shown(self, target: str) -> str:
        """The path of a request target without what may be a secret: the prefix, or all of it if it has another one.

        Of a query it shows only that there is one: some users put a secret there.
        """
        path = path_of(target)
        query = "?..." if "?" in target else ""
        if not self._secret_path:
            return path[:200] + query
        if self._secret_path not in path:
            return "(some other path)"
        return path.replace(self._secret_path, "(PRESENCE_CALLBACK_PATH)")[:200] + query
