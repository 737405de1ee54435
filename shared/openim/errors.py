"""Why OpenIM could not be asked. No text quotes OpenIM's answers, since they contain users' tokens."""

from typing import Literal

from shared.errors import PresenceError, Unavailable

#: away: it cannot be reached. untrusted: its certificate does not verify. late: it takes too long. limited: it limits
#: how often it may be asked. trouble: it answers with an error, or breaks off. secret, admin: a setting of ours is
#: wrong. another: it is not OpenIM's API.
Fault = Literal["away", "untrusted", "late", "limited", "trouble", "secret", "admin", "another"]


class OpenIMError(PresenceError):
    """OpenIM could not be asked, and nothing follows from that for anybody's presence."""

    def __init__(self, text: str, fault: Fault) -> None:
        super().__init__(text)
        self.fault = fault


class OpenIMAway(OpenIMError, Unavailable):
    """It is away, too slow, in trouble, or limits how often it may be asked."""


class OpenIMRefuses(OpenIMError):
    """A setting of ours is wrong, or it is no OpenIM that we know. Asking again will not help."""


class OpenIMLacks(OpenIMRefuses):
    """It has no such question: it is of another release, or not OpenIM's API."""
