"""Why OpenIM could not be asked. No text quotes OpenIM's answers, since they contain users' tokens."""

from shared.errors import PresenceError, Unavailable


class OpenIMError(PresenceError):
    """OpenIM could not be asked, and nothing follows from that for anybody's presence."""


class OpenIMAway(OpenIMError, Unavailable):
    """It is away, too slow, in trouble, or limits how often it may be asked."""


class OpenIMRefuses(OpenIMError):
    """A setting of ours is wrong, or it is no OpenIM that we know. Asking again will not help."""
