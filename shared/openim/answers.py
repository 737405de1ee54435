"""Reads the answers of OpenIM's REST interface. Pure: bytes in, what they say out.

Answers contain users' tokens. The types here have no field for those, so the decoder skips them, and its errors name
places in an answer and never the text there.

Up to 3.8.0 a status is a word and a platform a name; later both are numbers. Sources: open-im-server v3.8.3-patch.16
and recordings of it (internal/api/user.go, internal/rpc/user/online.go); for older releases the protocol's
msggateway.pb.go.
"""

import re
from typing import Generic, NamedTuple, TypeVar

import msgspec

from shared.platforms import PLATFORMS

_PLATFORM_IDS = {name: platform_id for platform_id, name in PLATFORMS.items()}

T = TypeVar("T")


class Unreadable(ValueError):
    """The answer does not have the form that it should have."""


class Connection(NamedTuple):
    """platform_id: 0 for a platform that we do not know."""

    platform_id: int
    conn_id: str


class Connections(NamedTuple):
    """The answer to question A: for each user, the connections at the first gateway that knows the user.

    has_old_form: OpenIM is 3.8.0 or older; None if the answer has no users.
    """

    of: dict[str, list[Connection]]
    has_old_form: bool | None


#: The answer to question C: for each user who is online, how many connections each platform has, at all gateways.
Platforms = dict[str, dict[int, int]]
#: The answer to question B: for each user asked about, the platforms that are online by OpenIM's own record.
Recorded = dict[str, list[int]]


class _Head(msgspec.Struct):
    errCode: int  # noqa: N815


class _Answer(msgspec.Struct, Generic[T]):
    data: T


class _Place(msgspec.Struct):
    """A connection, or a platform with its connections."""

    platformID: int = 0  # noqa: N815
    platform: str = ""
    connID: str = ""  # noqa: N815
    total: int = 1

    @property
    def number(self) -> int:
        return self.platformID or _PLATFORM_IDS.get(self.platform, 0)


class _OfGateways(msgspec.Struct):
    userID: str  # noqa: N815
    status: int | str
    detailPlatformStatus: list[_Place] | None = None  # noqa: N815


class _Merged(msgspec.Struct):
    userID: str  # noqa: N815
    singlePlatformToken: list[_Place] | None = None  # noqa: N815


class _Record(msgspec.Struct):
    userID: str  # noqa: N815
    platformIDs: list[int] | None = None  # noqa: N815


class _Records(msgspec.Struct):
    statusList: list[_Record] | None = None  # noqa: N815


class _Users(msgspec.Struct):
    total: int
    userIDs: list[str] | None = None  # noqa: N815


class _Login(msgspec.Struct):
    token: str


class _Clock(msgspec.Struct):
    serverTime: int  # noqa: N815


class _Config(msgspec.Struct):
    version: str


_HEAD = msgspec.json.Decoder(_Head)
_CONNECTIONS = msgspec.json.Decoder(_Answer[list[_OfGateways] | None])
_PLATFORMS = msgspec.json.Decoder(_Answer[list[_Merged] | None])
_RECORDED = msgspec.json.Decoder(_Answer[_Records | None])
_USERS = msgspec.json.Decoder(_Answer[_Users | None])
_LOGIN = msgspec.json.Decoder(_Answer[_Login])
_CLOCK = msgspec.json.Decoder(_Answer[_Clock])
_CONFIG = msgspec.json.Decoder(_Answer[_Config])
_RELEASE = re.compile(r"[\w.+-]{1,40}", re.ASCII)


def error_code(body: bytes) -> int:
    """0 if there is no error. Raises Unreadable, as all functions here do."""
    return _decode(_HEAD, body).errCode


def connections(body: bytes) -> Connections:
    """Question A."""
    users = _decode(_CONNECTIONS, body).data or []
    of = {
        user.userID: [Connection(place.number, place.connID) for place in user.detailPlatformStatus or ()]
        for user in users
    }
    return Connections(of, isinstance(users[0].status, str) if users else None)


def platforms(body: bytes) -> Platforms:
    """Question C."""
    merged: Platforms = {}
    for user in _decode(_PLATFORMS, body).data or ():
        of_user = merged.setdefault(user.userID, {})
        for place in user.singlePlatformToken or ():
            of_user[place.number] = of_user.get(place.number, 0) + place.total
    return {user_id: of_user for user_id, of_user in merged.items() if of_user}


def recorded(body: bytes) -> Recorded:
    """Question B."""
    records = _decode(_RECORDED, body).data
    return {user.userID: user.platformIDs or [] for user in (records and records.statusList) or ()}


def user_ids(body: bytes) -> tuple[int, list[str]]:
    """A page of the list of all users: how many users there are, and those of this page."""
    users = _decode(_USERS, body).data
    return (users.total, users.userIDs or []) if users else (0, [])


def token(body: bytes) -> str:
    """The admin's token, from a login."""
    found = _decode(_LOGIN, body).data.token
    if not found or not found.isascii() or not found.isprintable():  # it goes into a header
        raise Unreadable("the token is empty or not printable ASCII")
    return found


def clock_ms(body: bytes) -> int:
    """In Unix milliseconds."""
    return _decode(_CLOCK, body).data.serverTime


def release(body: bytes) -> str:
    """The release; "" if the text there is not one."""
    found = _decode(_CONFIG, body).data.version
    return found if _RELEASE.fullmatch(found) else ""


def _decode(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        trouble = str(error) if isinstance(error, msgspec.DecodeError) else "not JSON in UTF-8"
    # Raised here, outside `except`, so that it has no context: Python's own error contains what could not be read.
    raise Unreadable(trouble)
