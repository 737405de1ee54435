"""The gateways of one OpenIM 3.8.2 or later, without network and clock: connections in, batches of callbacks out.

Source: open-im-server v3.8.3, internal/msggateway: user_map.go (what is noted of each change), online.go (how it is
sent), ws_server.go (who is kicked). Tests compare it with recordings of a real one in tests/recordings.
"""

import itertools
from dataclasses import dataclass, field
from typing import Literal, NamedTuple


class Callback(NamedTuple):
    """One callback of a batch; `operation_id` is the batch's."""

    step: Literal["Online", "Offline"]
    user_id: str
    platform_id: int
    operation_id: str


@dataclass(eq=False)
class Connection:
    """One WebSocket of a client. gateway: the number of its gateway."""

    user_id: str
    platform_id: int
    token: str
    gateway: int


class _Change(NamedTuple):
    """What a gateway notes when a user's connections change: every remaining connection, and those that are gone."""

    user_id: str
    online: list[int]
    offline: list[int]


@dataclass
class _Gateway:
    pid: int
    connections: dict[str, list[Connection]] = field(default_factory=dict)
    noted: list[_Change] = field(default_factory=list)
    batches: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def platforms(self, user_id: str) -> list[int]:
        return [connection.platform_id for connection in self.connections.get(user_id, ())]

    def note(self, user_id: str, offline: list[int]) -> None:
        self.noted.append(_Change(user_id, self.platforms(user_id), offline))

    def remove(self, connection: Connection) -> bool:
        left = self.connections.get(connection.user_id, [])
        if connection not in left:
            return False
        left.remove(connection)
        if not left:
            del self.connections[connection.user_id]
        return True


class Gateways:
    """Gateways that share one record of who is online.

    pids: one for each process; the operationIDs of its batches are `p_<pid>_<n>`.
    """

    def __init__(self, *pids: int) -> None:
        self._gateways = [_Gateway(pid) for pid in pids]
        self._record: dict[str, set[int]] = {}

    def open(self, user_id: str, platform_id: int, token: str = "", gateway: int = 0) -> Connection:
        """A client connects. This ends the platform's connections at this gateway that have another token."""
        at = self._gateways[gateway]
        kicked = self._end(at, user_id, platform_id, token)
        connection = Connection(user_id, platform_id, token, gateway)
        at.connections.setdefault(user_id, []).append(connection)
        at.note(user_id, [])
        for _ in kicked:
            at.note(user_id, [])
        return connection

    def end(self, user_id: str, platform_id: int, gateway: int = 0) -> None:
        """An administrator ends a user's connections of one platform."""
        at = self._gateways[gateway]
        for _ in self._end(at, user_id, platform_id):
            at.note(user_id, [])

    def _end(self, at: _Gateway, user_id: str, platform_id: int, but: str | None = None) -> list[Connection]:
        """Ends the connections that do not have the token `but`, and notes what is left."""
        of_platform = [each for each in at.connections.get(user_id, ()) if each.platform_id == platform_id]
        ended = [each for each in of_platform if each.token != but]
        for each in ended:
            at.remove(each)
        if ended:
            at.note(user_id, [each.platform_id for each in ended])
        return ended

    def close(self, connection: Connection) -> None:
        """A client leaves, or its connection is cut. Does nothing if it was kicked before."""
        at = self._gateways[connection.gateway]
        if at.remove(connection):
            at.note(connection.user_id, [connection.platform_id])

    def second_passes(self, gateway: int = 0) -> list[Callback]:
        """The callbacks of one gateway for the last second: a batch, in the order in which things happened."""
        at = self._gateways[gateway]
        noted, at.noted = at.noted, []
        if not noted:
            return []
        operation_id = f"p_{at.pid}_{next(at.batches)}"
        callbacks = []
        for change in noted:
            callbacks += [Callback("Online", change.user_id, each, operation_id) for each in change.online]
            callbacks += [Callback("Offline", change.user_id, each, operation_id) for each in change.offline]
            self._update_record(change)
        return callbacks

    def _update_record(self, change: _Change) -> None:
        """Tells every gateway what the record says now; a gateway that contradicts it notes its connections again."""
        record = self._record.get(change.user_id, set())
        updated = (record - set(change.offline)) | set(change.online)
        if updated == record:
            return
        if updated:
            self._record[change.user_id] = updated
        else:
            del self._record[change.user_id]
        for gateway in self._gateways:
            if not updated.issuperset(gateway.platforms(change.user_id)):
                gateway.note(change.user_id, [])
