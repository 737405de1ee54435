"""One Redis, or the primaries of a Cluster: what it must be, and what it should be."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.doctor.findings import Check, Finding, Item
from shared.redis.checks import QUEUE_VERSION, incompatibility
from shared.redis.clock import SKEW_MOST_MS

#: Presence is applied by a library of functions.
PRESENCE_VERSION = (7, 0)
#: A receiver keeps what it has pushed for this long (receiver/relay/replay_window.py).
REPLICA_LAG_MOST_SECONDS = 5


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What one server in a role answered.

    role: "queue", "presence", or both. where: its URL, without a password. error: why nothing was heard, or "".
    is_refusal: the server is there and does not let us in. infos: INFO of each primary. breaks_protocol: an answer was
    invalid. is_cluster, has_replicas: what the URL says. skew_ms: how far this machine's clock is ahead. denied:
    commands that our user may not call, and the server's words. is_open: it asks for no password. config: what CONFIG
    GET said; None if it is forbidden.
    """

    role: str
    where: str
    error: str = ""
    is_refusal: bool = False
    infos: tuple[Mapping[str, Any], ...] = ()
    breaks_protocol: bool = False
    is_cluster: bool = False
    has_replicas: bool = False
    skew_ms: int = 0
    denied: Mapping[str, str] = field(default_factory=dict)
    is_open: bool = False
    config: Mapping[str, str] | None = None

    @property
    def name(self) -> str:
        return f"the Redis for {self.role}, {self.where},"


def look(facts: ServerFacts, *, journal_fsync: str) -> Iterator[Item]:
    if facts.error:
        code, does = ("P011", "does not let us in") if facts.is_refusal else ("P010", "does not answer")
        yield Finding(code, f"{facts.name} {does}: {facts.error}")
        yield Check(f"Redis for {facts.role}", "cannot tell", f"it {does}")
        return
    yield Check(f"Redis for {facts.role}")
    for info in facts.infos:
        yield from _of_kind(facts, info)
        yield from _of_replicas(facts, info)
        if str(info.get("maxmemory_policy", "noeviction")) != "noeviction" and not int(info.get("maxmemory", 0)):
            yield Finding("P013", f"{facts.name} has the maxmemory-policy {info['maxmemory_policy']}")
    if abs(facts.skew_ms) > SKEW_MOST_MS:
        which = "behind" if facts.skew_ms > 0 else "ahead of"
        yield Finding("P023", f"the clock of {facts.name} is {abs(facts.skew_ms) / 1000:,.1f} s {which} this machine's")
    yield from _of_rights(facts)
    yield from _of_config(facts, journal_fsync)


def _of_kind(facts: ServerFacts, info: Mapping[str, Any]) -> Iterator[Item]:
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    least = PRESENCE_VERSION if "presence" in facts.role else QUEUE_VERSION
    if numbers and numbers[:2] < least:
        yield Finding("P015", f"{facts.name} is Redis {version}")
    elif reason := incompatibility(info, is_cluster=facts.is_cluster):
        yield Finding("P018", f"{facts.name} cannot be used: {reason}")
    if numbers == (7, 0, 0) or facts.breaks_protocol:
        does = " and breaks the protocol" if facts.breaks_protocol else ""
        yield Finding("P016", f"{facts.name} is Redis {version}{does}")


def _of_replicas(facts: ServerFacts, info: Mapping[str, Any]) -> Iterator[Item]:
    if info.get("role") != "master":
        return
    if facts.has_replicas and not int(info.get("connected_slaves", 0)):
        yield Finding("P024", f"{facts.name} has a primary without a replica")
    for name, replica in info.items():
        if name.startswith("slave") and isinstance(replica, dict):
            lag, where = int(replica.get("lag", 0)), f"{replica.get('ip')}:{replica.get('port')}"
            if replica.get("state") != "online" or lag > REPLICA_LAG_MOST_SECONDS:
                yield Finding(
                    "P025", f"{facts.name} has a replica, {where}, which is {replica.get('state')}, {lag} s behind"
                )


def _of_rights(facts: ServerFacts) -> Iterator[Item]:
    if facts.denied:
        first = next(iter(facts.denied.values()))
        yield Finding("P020", f"{facts.name} refuses us {', '.join(facts.denied)}: {first}")


def _of_config(facts: ServerFacts, journal_fsync: str) -> Iterator[Item]:
    what = f"protected mode and appendfsync of the Redis for {facts.role}"
    if facts.config is None:
        yield Check(what, "cannot tell", "this user may not call CONFIG GET")
        return
    yield Check(what)
    config = facts.config
    if facts.is_open and config.get("protected-mode") == "no" and _is_anywhere(config.get("bind")):
        yield Finding("P021", f"{facts.name} has no password, and protected mode is off")
    if journal_fsync == "always" and config.get("appendonly") == "yes" and config.get("appendfsync") != "always":
        yield Finding("P026", f"{facts.name} has appendfsync {config.get('appendfsync')}")


def _is_anywhere(bind: str | None) -> bool:
    """Whether it listens beyond loopback."""
    return any(not address.lstrip("-").startswith(("127.", "::1")) for address in (bind or "*").split())
