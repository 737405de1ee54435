"""A request's head: how large it may be, and the answer to one that cannot be read."""

import ssl

from aiohttp.http_exceptions import BadHttpMessage, BadStatusLine, HttpProcessingError, LineTooLong
from aiohttp.http_parser import RawRequestMessage

from receiver.callback import Refusal

#: OpenIM needs seven headers and some 500 bytes; proxies add client certificates and tokens.
MOST_HEADERS = 128
MOST_BYTES = 32 << 10
#: aiohttp's own limits, for the request target, one header, and the number of headers. It has none for the whole.
LIMITS = {"max_line_size": MOST_BYTES, "max_field_size": MOST_BYTES, "max_headers": MOST_HEADERS}


class HeadTooLarge(BadHttpMessage):
    """The head as a whole is too large, though each line is short enough."""

    def __init__(self) -> None:
        super().__init__("Head too large")


class NotTls(BadStatusLine):
    """Something other than TLS came where TLS is spoken. reason: OpenSSL's own name for it."""

    def __init__(self, reason: str) -> None:
        super().__init__(error=reason)


class Distrusted(BadHttpMessage):
    """The peer ended the handshake, with OpenSSL's name for the reason: mostly it does not trust the certificate."""


def of_handshake(error: ssl.SSLError) -> NotTls | Distrusted:
    reason = error.reason or ""
    return Distrusted(reason) if "ALERT" in reason else NotTls(reason)


def is_of_wrong_scheme(error: HttpProcessingError) -> bool:
    """Whether it is HTTPS on a port of HTTP, or the other way round, as with one letter wrong in OpenIM's URL."""
    return isinstance(error, BadStatusLine) and ("HTTPS" in error.message or error.message == "HTTP_REQUEST")


def size_of(message: RawRequestMessage) -> int:
    """The approximate size of the head as it came, in bytes."""
    return len(message.path) + sum(len(name) + len(value) + 4 for name, value in message.raw_headers)


def refusal_of(error: HttpProcessingError) -> Refusal:
    """The answer if aiohttp's parser gave up. It quotes nothing of what came, which may be a secret."""
    if isinstance(error, Distrusted):
        alert = error.message.partition("ALERT_")[2].replace("_", " ").lower()
        detail = f"certificate: must be trusted on the sender's machine, and be for the name in its URL ({alert})"
        return Refusal(400, "the sender broke off the TLS handshake", detail)
    # The parser's texts quote what came, after the first line break or as the last of several arguments.
    said = error.message.partition("\n")[0].rstrip(":") if type(error) is BadHttpMessage else ""
    if isinstance(error, LineTooLong | HeadTooLarge) or said.startswith("Too many headers"):
        detail = f"head: at most {MOST_HEADERS} headers and {MOST_BYTES >> 10} KB in all"
        return Refusal(431, "the request's head is too large", detail)
    if isinstance(error, BadStatusLine):
        if isinstance(error, NotTls):
            return Refusal(400, "this is not TLS, which is spoken here", "URL: must begin with https://")
        if is_of_wrong_scheme(error):
            detail = "URL: must begin with http://, or set PRESENCE_TLS_CERT and PRESENCE_TLS_KEY"
            return Refusal(400, "this is HTTPS, and HTTP is spoken here", detail)
        return Refusal(400, "this is not HTTP", "request line: cannot be read")
    return Refusal(400, "this is HTTP that cannot be read", f"head: {said or 'garbled'}")
