"""Compares what we hold of a user with what OpenIM says. Pure: no clock, no servers.

OpenIM's answer to question C is believed if it says online. If it does not, the user may be at a gateway that OpenIM
did not reach. So offline needs a proof: witnesses (see reach.py), OpenIM's own record, or the same answer twice.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from shared.events import SEQ_MAX
from shared.openim.answers import Connection
from shared.truth.ours import NEVER, Ours, Scope
from shared.truth.reach import Reach

Kind = Literal["ghost", "missing", "platforms"]

#: A user with an event this recent is left for the next comparison: a callback that OpenIM knows of may be on its way.
FRESH_MS = 5_000
#: If nothing is known of a user, the online event that we make is stamped this long before the question.
BEFORE_QUESTION_MS = 60_000
#: If no witness can prove that OpenIM reached its gateways, at most this many users go offline at once, or at most one
#: in MOST_GONE_SHARE of those who are shown online, whichever is more.
MOST_GONE = 50
MOST_GONE_SHARE = 5


@dataclass(frozen=True, slots=True)
class Theirs:
    """What OpenIM says of one user.

    platforms: how many connections each has, from question C. connections: those at one gateway, from question A; None
    if that was not asked. recorded: the platforms in OpenIM's own record, from question B; None if that was not asked,
    or is not to be trusted. is_old: OpenIM is 3.8.0 or older, so sessions are connections.
    """

    platforms: dict[int, int]
    connections: list[Connection] | None = None
    recorded: list[int] | None = None
    is_old: bool = False


class Correction(NamedTuple):
    """An event that corrects a session. Its seq comes from what it corrects, so that whatever was sent later wins."""

    scope: Scope
    is_online: bool
    seq: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is concluded about a user who differs from OpenIM.

    ours, openim: the platforms that we and OpenIM show online. corrections: what is proven; `why` says how. doubtful:
    our sessions that OpenIM does not show, without a proof that they are gone; if there are any, `why` says what is
    missing. needs_second: the same answer a while later would be a proof. is_fresh: the user had an event just now.
    """

    user_id: str
    kind: Kind
    ours: tuple[int, ...]
    openim: tuple[int, ...]
    corrections: tuple[Correction, ...] = ()
    doubtful: tuple[Scope, ...] = ()
    why: str = ""
    needs_second: bool = False
    is_fresh: bool = False

    @property
    def goes_offline(self) -> bool:
        """Whether the corrections leave the user without an online session."""
        return self.kind == "ghost" and bool(self.corrections) and not self.doubtful

    @property
    def openings(self) -> "Verdict":
        """The same verdict with only the corrections that open sessions."""
        return replace(self, corrections=tuple(each for each in self.corrections if each.is_online))

    @property
    def closings(self) -> "Verdict":
        """The same verdict with only the corrections that close sessions."""
        return replace(self, corrections=tuple(each for each in self.corrections if not each.is_online))


def judge(
    ours: Ours,
    theirs: Theirs,
    reach: Reach,
    asked_at_ms: int,
    *,
    first: Verdict | None = None,
    fresh_ms: int = FRESH_MS,
) -> Verdict | None:
    """None if both agree.

    asked_at_ms: when OpenIM was asked, by the clock of the queue's server; `ours` was read before that. first: the
    verdict after the first of two questions.
    """
    held, shown = ours.sessions(), set(theirs.platforms)
    absent = [scope for scope in held if _is_absent(scope, theirs)]
    lacking = _lacking(held, theirs)
    unnamed = _unnamed(ours, theirs)
    if not absent and not lacking and not unnamed:
        return None
    verdict = Verdict(
        ours.user_id, _kind(held, shown), tuple(sorted(ours.platforms() - {0})), tuple(sorted(shown - {0}))
    )
    if abs(asked_at_ms - ours.heard_at_ms) < fresh_ms:
        return replace(verdict, is_fresh=True, why="had an event just now")

    proofs = {scope: _proof(ours, scope, theirs, reach, first) for scope in absent}
    closed = [scope for scope, proof in proofs.items() if proof.holds and ours.marks[scope].on < SEQ_MAX]
    doubtful = [scope for scope in absent if scope not in closed]
    corrections = [
        *(Correction(scope, False, ours.marks[scope].on + 1) for scope in closed),
        *(Correction(scope, True, _opening_seq(ours, scope, asked_at_ms)) for scope in lacking),
    ]
    whys = [proofs[scope].why for scope in (doubtful or closed)]
    if unnamed and not corrections and not doubtful:
        whys = ["only the gateway knows which connection it is"]
    return replace(
        verdict,
        corrections=tuple(corrections),
        doubtful=tuple(doubtful),
        why=whys[0] if whys else "witnessed",
        needs_second=any(proofs[scope].needs_second for scope in doubtful),
    )


def too_many(leaving: int, shown_online: int) -> bool:
    """Whether so many would go offline at once, without witnesses, that they can hardly all have left."""
    return leaving > MOST_GONE and leaving * MOST_GONE_SHARE > shown_online


class _Proof(NamedTuple):
    """Whether a session that OpenIM does not show is proven to be gone, and why or why not."""

    holds: bool
    why: str
    needs_second: bool = False


def _kind(held: Collection[Scope], shown: Collection[int]) -> Kind:
    if not shown:
        return "ghost"
    return "platforms" if held else "missing"


def _is_absent(scope: Scope, theirs: Theirs) -> bool:
    """Whether OpenIM does not show a session that we do."""
    if scope == Scope():
        return not theirs.platforms
    if not scope.conn_id or theirs.connections is None:
        return scope.platform_id not in theirs.platforms if scope.platform_id else not theirs.platforms
    if any(each.conn_id == scope.conn_id for each in theirs.connections):
        return False
    # Question A stops at the first gateway that knows the user: it has all connections if it has as many as question C.
    known = Counter(each.platform_id for each in theirs.connections)
    if scope.platform_id:
        return theirs.platforms.get(scope.platform_id, 0) <= known[scope.platform_id]
    return sum(theirs.platforms.values()) <= len(theirs.connections)


def _lacking(held: Collection[Scope], theirs: Theirs) -> list[Scope]:
    """What OpenIM shows and we do not. If connections are sessions, only those whose end OpenIM will report by name."""
    if theirs.is_old:
        conn_ids = {scope.conn_id for scope in held}
        return [
            Scope(each.platform_id, each.conn_id)
            for each in theirs.connections or ()
            if each.conn_id and each.conn_id not in conn_ids
        ]
    known = {scope.platform_id for scope in held}
    if 0 in known:  # we do not know on which platform the user is
        return []
    return [Scope(platform_id) for platform_id in sorted(theirs.platforms) if platform_id and platform_id not in known]


def _unnamed(ours: Ours, theirs: Theirs) -> bool:
    """Whether OpenIM shows a platform on which we have no session, and names no connection on it."""
    if not theirs.is_old or 0 in ours.platforms():
        return False
    named = {each.platform_id for each in theirs.connections or ()}
    return bool(theirs.platforms.keys() - named - ours.platforms())


def _opening_seq(ours: Ours, scope: Scope, asked_at_ms: int) -> int:
    seq = ours.seq_that_opens(scope)
    return seq if seq > NEVER else max(0, asked_at_ms - BEFORE_QUESTION_MS)


def _is_recorded(scope: Scope, recorded: Collection[int]) -> bool:
    return scope.platform_id in recorded if scope.platform_id else bool(recorded)


def _proof(ours: Ours, scope: Scope, theirs: Theirs, reach: Reach, first: Verdict | None) -> _Proof:
    homes = reach.homes(ours, scope.platform_id)
    if homes:
        silent = reach.out_of_reach(home.name for home in homes if not home.is_over)
        if not silent:
            return _Proof(True, "witnessed")
        peer, pid = silent[0]
        why = f"nobody known to be at the gateway {peer} (process {pid}) is in OpenIM's answer"
    elif reach.all_answered:
        return _Proof(True, "witnessed")
    else:
        why = "OpenIM has not shown that it reached all its gateways"
    if theirs.recorded is not None and not _is_recorded(scope, theirs.recorded):
        return _Proof(True, "record")
    if reach.is_known:
        return _Proof(False, why)
    if first and scope in first.doubtful:
        return _Proof(True, "twice")
    return _Proof(False, "OpenIM has said so once", needs_second=True)
