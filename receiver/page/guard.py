"""Who may see the page: it names users, unlike the metrics beside it. Pure: no sockets, no clock."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from receiver.callback import Refused
from receiver.http.access import Access
from shared.addresses import is_loopback


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What decides about a request. local: the address at which it arrived. The others are headers, None if absent."""

    local: str
    host: str | None = None
    origin: str | None = None
    fetch_site: str | None = None
    authorization: str | None = None


@dataclass(frozen=True, slots=True)
class Forbidden:
    """status: 401 or 403. text: one sentence for the person who asked."""

    status: int
    text: str


class Guard:
    """credentials: `user:password`; if "", only this machine sees the page, and nobody may change anything."""

    def __init__(self, credentials: str) -> None:
        self._access = Access((), (), credentials) if credentials else None

    @property
    def may_act(self) -> bool:
        return self._access is not None

    def check(self, asked: PageRequest, *, acts: bool = False) -> Forbidden | None:
        """None if the answer may be given. acts: whether the request changes something."""
        if self._access is None:
            if acts:
                return Forbidden(403, "Set PRESENCE_ADMIN_AUTH=user:password to requeue or drop batches here.")
            if not is_loopback(asked.local):
                return Forbidden(
                    403, "This page names users. Set PRESENCE_ADMIN_AUTH=user:password to see it from here."
                )
            # Another site can give its own name this address (DNS rebinding), and would then read this page.
            if not is_loopback(_name(asked.host)):
                return Forbidden(403, "Open this page as localhost, or set PRESENCE_ADMIN_AUTH=user:password.")
        else:
            try:
                self._access.check("", (), asked.authorization)
            except Refused:
                return Forbidden(401, "The user and password of PRESENCE_ADMIN_AUTH are needed.")
        if _is_foreign(asked, acts):
            return Forbidden(403, "Pages of other sites get nothing here.")
        return None


def _name(host: str | None) -> str:
    """The name in a Host header, without the port and the brackets."""
    try:
        return urlsplit(f"//{host or ''}").hostname or ""
    except ValueError:
        return ""


def _is_foreign(asked: PageRequest, acts: bool) -> bool:
    """Whether another site's page may have had a browser send this. To change something, an Origin header is needed."""
    if asked.origin is None:
        return acts or asked.fetch_site in ("cross-site", "same-site")
    scheme, _, origin = asked.origin.partition("://")
    return scheme not in ("http", "https") or origin.lower() != (asked.host or "").lower()
