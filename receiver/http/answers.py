"""The bodies of our answers, as every release of OpenIM can decode them. Pure: text in, bytes out."""

from pydantic_core import to_json

from receiver.callback import OtherCallback, Presence, Refusal


def accepted(route: Presence) -> bytes:
    """For an accepted callback. The published document has a text as nextCode; every release decodes a number."""
    next_code = b'""' if route.url_form == "document" else b"0"
    return b'{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":%s}' % next_code


def refused(refusal: Refusal) -> bytes:
    return _answer(1, refusal.status, refusal.message, refusal.detail)


def not_ours(other: OtherCallback) -> bytes:
    """For a callback that is not handled: all codes are 0, so that OpenIM goes on as if there were no callback."""
    return _answer(0, 0, f"{other.command} is not handled here")


def go_on(trouble: str) -> bytes:
    """For a callback that the business server does not answer, if OpenIM is to go on without it."""
    return _answer(0, 0, trouble)


def _answer(action_code: int, error_code: int, message: str, detail: str = "") -> bytes:
    return to_json(
        {"actionCode": action_code, "errCode": error_code, "errMsg": message, "errDlt": detail, "nextCode": 0}
    )
