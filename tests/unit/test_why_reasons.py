"""What `presence why` says in many situations: facts in, sentences out."""

import json
from dataclasses import replace
from typing import Any

import pytest

from openim_presence import Change
from shared import memory
from shared.events import SEQ_MAX, Event
from shared.ignored import Ignored
from shared.truth.ours import Scope
from shared.truth.verdict import Correction, Verdict
from shared.why import answer
from shared.why.against import against
from shared.why.facts import Facts, Journal, OpenIMSays, Scan, Waiting
from shared.why.notes import notes
from shared.why.reasons import reason, status
from shared.why.truth import truth
from shared.why.words import described, instant, lasting, listed, stamped

#: 2025-11-26 12:03:07.123Z, and a minute before it and after it.
T = 1_764_158_587_123
T0, NOW = T - 60_000, T + 60_000
ON, OFF, KICK = (f"callbackAfterUser{kind}Command" for kind in ("Online", "Offline", "KickOff"))


def user(**fields: Any) -> memory.Memory:
    """A hash; names of private fields with _ in place of the colon. The public ones are those of an offline user."""
    public = {"status": "offline", "changed_at": T, "updated_at": T, "seq": T, "command": OFF, "sessions": 0}
    read = {
        name.replace("_", ":", 1) if name[:2] in ("b_", "c_", "p_", "s_") else name: str(value).encode()
        for name, value in (public | fields).items()
    }
    return memory.read({name.encode(): value for name, value in read.items()})


def online(**fields: Any) -> memory.Memory:
    return user(**{"status": "online", "command": ON, "sessions": 1} | fields)


def facts(known: memory.Memory | None = None, **others: Any) -> Facts:
    return Facts(**{"user_id": "alice", "at_ms": NOW, "memory": known} | others)


def web(kind: str, seq: int, operation_id: str = "op", received_at: int = T, **fields: Any) -> Event:
    return Event("alice", kind, seq, "", 5, "Web", operation_id, received_at)._replace(**fields)  # type: ignore[arg-type]


def change(status_: str, seq: int, **fields: Any) -> Change:
    shown = {"command": ON if status_ == "online" else OFF, "platform_id": "5", "operation_id": "p_7_8"} | fields
    return Change("1-0", "alice", status_, "online", str(seq), T, **shown)


SINCE = "since 2025-11-26 12:03:07.123Z"
#: For each situation the facts, the status, and what the reason must say.
REASONS: dict[str, tuple[Facts, str, list[str]]] = {
    "online by a connection": (
        facts(online(c_c1=f"{T} - 1", conn_id="c1", platform_id=1, operation_id="op9")),
        "online",
        [
            "alice has been online for 60 s",
            SINCE,
            f"connection c1 (IOS) is stamped 2025-11-26 12:03:07.123Z (seq {T}",
            "operationID op9",
            "no newer offline event covers it",
        ],
    ),
    "online by a connection of no platform": (
        facts(online(c_c1=f"{T} - 0")),
        "online",
        ["of connection c1 is stamped"],
    ),
    "online by a platform": (
        facts(online(p_5=f"{T} {T0} 5", b_0=f"{T} n5.ab p_7_8", b_1=f"{T0} f5.cd p_7_7")),
        "online",
        ["the last online event of Web is stamped 2025-11-26 12:03:07.123Z", "operationID p_7_8"],
    ),
    "online as a whole": (facts(online(u=f"{T} - 0")), "online", ["online event of the user as a whole is"]),
    "online by several": (
        facts(online(p_5=f"{T} - 5", c_a=f"{T0} - 1")),
        "online",
        ["2 sessions are online, Web and connection a (IOS). For the newest, the last online event of Web"],
    ),
    "a tie goes to online": (
        facts(online(c_c1=f"{T} {T} 1")),
        "online",
        ["An offline event has the same seq; a tie goes to online"],
    ),
    "a batch with kick-offs only": (
        facts(online(p_5=f"{T} - 5", b_0=f"{T} k5.a,n5.b p_7_8")),
        "online",
        ["names Web online once and offline once", "all kick-offs", "(rule 1)"],
    ),
    "a batch more often online": (
        facts(online(p_5=f"{T} - 5", b_0=f"{T} n5.a,n5.b,f5.c p_7_8")),
        "online",
        ["names Web online twice and offline once", "a connection is left: online (rule 1)"],
    ),
    "a batch that keeps": (
        facts(online(p_5=f"{T} - 5", b_0=f"{T0} n5.z p_7_7", b_1=f"{T} n5.a,f5.b p_7_8")),
        "online",
        ["online once and offline once", "it was online before", "online (rule 2)"],
    ),
    "a batch more often offline": (
        facts(user(p_5=f"{T0} {T} 5", b_0=f"{T0} n5.z p_7_7", b_1=f"{T} n5.a,f5.b,f5.c p_7_8")),
        "offline",
        [
            "Web ended offline in the batch stamped 2025-11-26 12:03:07.123Z",
            "operationID p_7_8",
            "once and offline twice",
            "more offline than online events: offline (rule 3)",
        ],
    ),
    "a batch that came and went": (
        facts(user(p_5=f"{T0} {T} 5", b_0=f"{T0} n5.a p", b_1=f"{T0 + 1} f5.a q", b_2=f"{T} n5.a,f5.b p_7_8")),
        "offline",
        ["it came and went: offline (rule 3)"],
    ),
    "a batch after others that are summed up": (
        facts(user(p_5=f"{T0} {T} 5", s_5=f"{T0} {T0 + 1}", b_0=f"{T} n5.a,f5.b p_7_8")),
        "offline",
        ["it came and went: offline (rule 3)"],
    ),
    "a batch that changes others too": (
        facts(user(p_5=f"{T0} {T} 5", p_1=f"- {T} 1", b_0=f"{T0} n5.z p", b_1=f"{T} n5.a,f5.b,f1.c p_7_8")),
        "offline",
        ["changes another platform too", "(rule 3)"],
    ),
    "a mixed batch in the sum": (
        facts(user(p_5=f"{T0} {T} 5", s_5=f"{T0} {T} {T}", b_0="7 n1.a z", p_1="7 8 1")),
        "offline",
        ["is newer than its last online event, of 2025-11-26 12:02:07.123Z", "which is too old to be shown, named"],
    ),
    "offline by its platform": (
        facts(user(p_5=f"{T0} {T} 5"), changes=(change("offline", T),)),
        "offline",
        [
            "the offline event of Web, stamped 2025-11-26 12:03:07.123Z",
            f"(seq {T}, operationID p_7_8)",
            "newer than its last online event, of 2025-11-26 12:02:07.123Z",
            "No other session is remembered",
        ],
    ),
    "offline by its connection": (
        facts(user(c_c1=f"{T0} {T} 1", c_c2=f"{T0 - 1} {T} 1")),
        "offline",
        ["the offline event of connection c1 (IOS), stamped", "The other session that is remembered is closed as well"],
    ),
    "a connection closed by its platform": (
        facts(user(c_c1=f"{T0} - 1", p_1=f"- {T} 1", b_0=f"{T} f1.a op7")),
        "offline",
        [
            "the offline event of IOS, stamped",
            "operationID op7",
            "newer than the last online event of connection c1 (IOS)",
        ],
    ),
    "offline over all": (
        facts(user(u=f"- {T} 0", p_5=f"{T0} - 5", c_c1="5 6 1", c_c2="6 7 1")),
        "offline",
        [
            "an offline event of the user as a whole",
            "covers every session; the last was Web, of 2025-11-26 12:02:07",
            "The 2 other sessions that are remembered are closed as well",
        ],
    ),
    "a lease that ran out": (
        facts(user(p_5=f"{T0} - 5 x")),
        "offline",
        ["the lease of Web ran out, since nothing renewed it after its last online event, stamped 2025-11-26 12:02:07"],
    ),
    "an event newer than a lease that ran out": (
        facts(user(p_5=f"{T0} {T} 5 x")),
        "offline",
        ["the offline event of Web"],
    ),
    "offline by a correction of ours": (
        facts(user(p_5=f"{T0} {T} 5", b_0=f"{T} f5. ", command="reconciled_offline", platform_id=5)),
        "offline",
        [f"stamped 2025-11-26 12:03:07.123Z (seq {T}, a correction by presence reconcile), is newer"],
    ),
    "online by a correction that is not the newest event": (
        facts(
            online(p_5=f"{T} - 5", u="- 7 0", b_0=f"{T} n5. ", seq=T + 1),
            changes=(change("online", T, command="reconciled_online", operation_id=""),),
        ),
        "online",
        [f"is stamped 2025-11-26 12:03:07.123Z (seq {T}, a correction by presence reconcile), and no newer"],
    ),
    "only offline events": (
        facts(user(p_5=f"- {T} 5")),
        "offline",
        ["only offline events are known", "of Web, stamped"],
    ),
    "all is forgotten but the status": (facts(user()), "offline", ["no session is remembered"]),
    "a seq that is no time": (facts(online(c_c1="5 - 1")), "online", ["is with seq 5, and no newer"]),
    "the hash says otherwise": (
        facts(online(p_5=f"{T0} {T} 5")),
        "online",
        ["alice is shown online, but what is remembered says offline"],
    ),
    "never heard of": (facts(), "unknown", ["Nothing is known of alice: no event of this user was ever applied here"]),
    "never applied yet": (
        facts(waiting=(Waiting("queued", web(ON, T), "j"),)),
        "unknown",
        ["of alice: 1 event waits to be applied."],
    ),
    "forgotten by hand": (
        facts(changes=(change("offline", T, command="forgotten"),)),
        "unknown",
        ["ran `presence forget`"],
    ),
    "past the retention": (
        facts(changes=(change("offline", T),), retention_seconds=30),
        "unknown",
        ["any more: offline since 2025-11-26 12:03:07.123Z, for longer than PRESENCE_RETENTION_SECONDS"],
    ),
    "deleted by hand": (facts(changes=(change("online", T),)), "unknown", ["online since", "somebody deleted the key"]),
    "too old when it came": (
        facts(ignored=(Ignored("stale", web(ON, 7), T),)),
        "unknown",
        ["longer ago than users are"],
    ),
    "a key of another type": (
        facts(key_type="string"),
        "unknown",
        ["the key presence:alice is a string, not a hash"],
    ),
    "a hash of somebody else's": (facts(memory.read({b"x": b"y"})), "unknown", ["the hash has no valid status"]),
    "written by an older release": (
        facts(online(p_5=f"{T} {T0} 5"), user_id="bob"),
        "online",
        ["bob has been online", "the last online event of Web"],
    ),
    "an id that moves the cursor": (
        facts(user_id="\x1b[2K\u202ealice"),
        "unknown",
        [r"Nothing is known of \x1b[2K\u202ealice:"],
    ),
}


@pytest.mark.parametrize("situation", REASONS)
def test_the_reason_says_it(situation: str) -> None:
    given, expected, parts = REASONS[situation]
    said = reason(given)
    assert status(given) == expected
    for part in parts:
        assert part in said, said
    assert said.isprintable()
    assert said.endswith((".", ")"))


#: For each situation the facts, and what one of the notes must say.
NOTES: dict[str, tuple[Facts, str]] = {
    "could not be read": (facts(troubles=("presence-changes: NOPERM",)), "lack something: presence-changes: NOPERM."),
    "waits on the queue": (
        facts(waiting=(Waiting("queued", web(ON, T), "j"),)),
        "An event of this user waits on the queue: the online event of Web, stamped 2025-11-26 12:03:07.123Z",
    ),
    "several wait": (
        facts(waiting=(Waiting("running", web(ON, T), "j"), Waiting("running", web(KICK, T + 1), "j"))),
        "2 events: the newest is with a worker: the kick-off of Web",
    ),
    "is tried again": (
        facts(waiting=(Waiting("retrying", web(OFF, T), "j", "WRONGTYPE it is", NOW + 8000),)),
        "cannot be applied and will be tried again in 8 s: the offline event of Web",
    ),
    "has failed": (
        facts(waiting=(Waiting("failed", web("odd\n", 0), "j", "no event"),)),
        r"(presence failed list): the event odd\n of Web, with seq 0 (operationID op). The error: no event.",
    ),
    "a long queue": (facts(waiting_scan=Scan(1000, False)), "only 1,000 batches of the queue were looked at"),
    "a journal": (
        facts(journals=(Journal("vm:7", 3, T),)),
        "receiver vm:7 has 3 events that the queue does not have yet",
    ),
    "no worker": (facts(workers=0), "No worker is alive"),
    "leases are off": (
        facts(online(p_5=f"{T} - 5"), at_ms=T + 7_200_000),
        "Nothing has renewed a session for 2 h, and leases are off",
    ),
    "a lease that ends soon": (
        facts(online(p_5=f"{T} - 5 {T}"), lease_ms=100_000),
        "The lease of Web ends in 40 s, unless an online event renews",
    ),
    "a lease that has ended": (
        facts(online(p_5=f"{T} - 5 {T}"), lease_ms=20_000, leases_held="no receiver reports"),
        "The lease of Web ended 40 s ago and has not run out yet: no receiver reports.",
    ),
    "no lease yet": (facts(online(p_5=f"{T} - 5"), lease_ms=20_000), "1 session has no lease yet"),
    "only offline callbacks": (facts(user(p_5=f"- {T} 5")), "check that they are enabled in OpenIM"),
    "a clock a little ahead": (
        facts(user(p_5=f"- {NOW + 9000} 5")),
        "The newest offline event of Web is stamped 9 s in the future: the clock of its gateway is ahead.",
    ),
    "a clock far ahead": (
        facts(online(p_5=f"{NOW + 36_000_000} - 5")),
        "is stamped 10 h in the future, and prevails over all events until then: presence forget alice starts afresh.",
    ),
    "a seq beyond all clocks": (
        facts(user(u=f"- {SEQ_MAX} 0")),
        f"of the user as a whole has seq {SEQ_MAX}, which is not a time and prevails over whatever",
    ),
    "a change that is not on the feed": (
        facts(user(outbox='["a"]\n["b"]')),
        "2 changes of this user are not on the change",
    ),
    "a field that makes no sense": (facts(user(b_0="?", p_5="1 2")), "were left out: "),
    "a stale event that said otherwise": (
        facts(user(p_5=f"{T0} {T} 5"), ignored=(Ignored("stale", web(ON, T - 5, received_at=T + 9), T + 9),)),
        "Stale, at 2025-11-26 12:03:07.132Z: the online event of Web, stamped 2025-11-26 12:03:07.118Z "
        f"(seq {T - 5}, operationID op); the offline event of that platform is newer, stamped 2025-11-26 12:03:07.123Z",
    ),
    "a change before the last event": (
        facts(online(p_5=f"{T} - 5"), changes=(change("online", T0),)),
        "The status changed earlier, with the online event of Web, stamped 2025-11-26 12:02:07.123Z "
        f"(seq {T0}, operationID p_7_8).",
    ),
    "a lease that ended before the last event": (
        facts(user(p_5=f"{T0} {T} 5"), changes=(change("offline", T0, command="lease_expired", operation_id=""),)),
        "The status changed earlier, with the end of the lease of Web, at 2025-11-26 12:03:07.123Z.",
    ),
    "nothing at all": (facts(is_empty=True), "No event of any user was ever applied under the prefix presence"),
    "an id that is spelled so": (facts(similar=("Alice", "a\u202e")), r"'Alice' and 'a\u202e'"),
    "an id of nobody": (facts(), "Check the spelling of the id and the key prefix, which is presence."),
    "a key of another type": (facts(key_type="list"), "deleted with presence forget"),
}


@pytest.mark.parametrize("situation", NOTES)
def test_a_note_says_it(situation: str) -> None:
    given, part = NOTES[situation]
    said = notes(given)
    assert any(part in each for each in said), said
    assert all(each.isprintable() and each.endswith((".", "?")) for each in said)


def test_where_all_is_plain_there_is_no_note() -> None:
    assert notes(facts(online(p_5=f"{T} - 5"))) == []
    assert notes(facts(online(p_5=f"{T} - 5 {T}"), lease_ms=1_800_000)) == []
    assert notes(facts(online(p_5=f"{T} - 5"), changes=(change("online", T),))) == []
    earlier = Ignored("stale", web(ON, T0 - 5, received_at=T0), T0)
    assert notes(facts(user(p_5=f"{T0} {T} 5"), ignored=(earlier,))) == []
    duplicate = Ignored("duplicate", web(ON, T, received_at=NOW), NOW)
    assert notes(facts(user(p_5=f"{T0} {T} 5"), ignored=(duplicate,))) == []


IOS, WEB = Scope(1), Scope(5)
OTHERWISE = Verdict("alice", "platforms", ours=(5,), openim=(1,), corrections=(Correction(IOS, True, T),))
DIFFERS = OpenIMSays((1,), (), verdict=OTHERWISE)
#: What OpenIM says, and what follows from it.
TRUTHS: dict[str, tuple[OpenIMSays, str]] = {
    "online, as we say": (OpenIMSays((1, 5), (5, 1)), "online on IOS and Web; this agrees with presence"),
    "offline, as we say": (OpenIMSays((), ()), "offline; this agrees with presence"),
    "an old one": (OpenIMSays((1,)), "online on IOS; this agrees with presence"),
    "its record says otherwise": (
        OpenIMSays((), (1,)),
        "offline (its own record: online on IOS); this agrees with presence",
    ),
    "otherwise": (DIFFERS, "online on IOS (its own record: offline); presence reconcile alice would put it right"),
    "an event just now": (
        OpenIMSays((1,), verdict=replace(OTHERWISE, corrections=(), is_fresh=True)),
        "online on IOS; an event came just now, so ask again in a few seconds",
    ),
    "once": (
        OpenIMSays((), verdict=replace(OTHERWISE, corrections=(), doubtful=(WEB,), needs_second=True, why="once")),
        "offline; presence reconcile alice asks twice, and would put it right if both answers are the same",
    ),
    "without a proof": (
        OpenIMSays((), verdict=replace(OTHERWISE, corrections=(), doubtful=(WEB,), why="x\u202ey")),
        r"offline; presence reconcile alice would leave it, because x\u202ey",
    ),
    "proven in part": (
        OpenIMSays((1,), verdict=replace(OTHERWISE, doubtful=(WEB,), why="nobody is")),
        "online on IOS; presence reconcile alice would put only a part of it right, because nobody is",
    ),
    "of a key that makes no sense": (
        OpenIMSays((1,), (1,), is_comparable=False),
        "online on IOS; what presence holds of this user cannot be compared with that",
    ),
}


@pytest.mark.parametrize("situation", TRUTHS)
def test_openim_itself_is_heard(situation: str) -> None:
    says, sentence = TRUTHS[situation]
    assert truth("alice", says) == f"OpenIM itself says: {sentence}."
    assert notes(facts(online(p_5=f"{T} - 5"), openim=says))[0] == truth("alice", says)


def test_why_openim_could_not_be_asked_is_said_once() -> None:
    given = facts(openim=OpenIMSays(trouble="OpenIM is away"), troubles=("OpenIM is away",))
    assert [each for each in notes(given) if "OpenIM is away" in each] == [
        "The answer may lack something: OpenIM is away."
    ]
    says = answer.as_json(given)["openim"]
    assert (says["platforms"], says["agrees"], says["says"]) == (None, None, "OpenIM is away.")


CONNECTION = {"conn_id": "c1", "platform_id": 1}
#: What is remembered, a stale event, and why it was stale.
AGAINST: dict[str, tuple[memory.Memory | None, Event, str]] = {
    "a newer offline event of the connection": (
        user(c_c1=f"{T0} {T} 1"),
        web(ON, T0 + 1, **CONNECTION),
        "that connection is",
    ),
    "one of the platform": (
        user(c_c1=f"{T0} - 1", p_1=f"- {T} 1"),
        web(ON, T0 + 1, **CONNECTION),
        "of that platform is newer",
    ),
    "one of the user": (
        user(c_c1=f"{T0} - 1", u=f"- {T} 0"),
        web(ON, T0 + 1, **CONNECTION),
        "the user as a whole is newer",
    ),
    "a newer online event": (online(c_c1=f"{T} - 1"), web(ON, T0, **CONNECTION), "c1 (IOS) has a newer online event"),
    "a newer offline event": (
        user(c_c1=f"{T0} {T} 1"),
        web(OFF, T0, **CONNECTION),
        "has a newer offline event, stamped",
    ),
    "a lease that ran out": (user(p_5=f"{T} - 5 x"), web(ON, T0), "the lease of its session had run out"),
    "the floor": (user(floor=T), web(OFF, T0, **CONNECTION), f"forgotten, as are all that were closed up to seq {T}"),
    "its own batch": (
        user(p_5=f"- {T} 5", b_0=f"{T} n5.a,f5.b op"),
        web(ON, T),
        "names Web both online and offline, and it was not online",
    ),
    "a batch that says the same": (
        online(p_5=f"{T} - 5", b_0=f"{T} n5.a,n5.b,f5.c op"),
        web(OFF, T),
        "names Web both online and offline",
    ),
    "nobody": (None, web(ON, T0), "what was known of the user then is no longer remembered"),
    "what is gone": (user(), web(OFF, T0, platform_id=0), "is no longer remembered"),
}


@pytest.mark.parametrize("situation", AGAINST)
def test_what_was_stale_was_so_against_something(situation: str) -> None:
    known, event, part = AGAINST[situation]
    assert part in against(facts(known), Ignored("stale", event, NOW))


def test_what_was_received_long_ago_was_stale_for_that() -> None:
    given = facts(user(), retention_seconds=10)
    assert "longer ago than users are remembered" in against(given, Ignored("stale", web(ON, T, received_at=T0), NOW))
    of_nobody = against(facts(None, retention_seconds=10), Ignored("stale", web(ON, T, received_at=T0), NOW))
    assert of_nobody.endswith("and nothing was known of the user")


def test_a_duplicate_is_one_of_what_is_there() -> None:
    assert against(facts(user()), Ignored("duplicate", web(ON, T), NOW)) == "what is remembered has it already"


def test_the_names_for_programs_stay() -> None:
    waiting, ignored = (Waiting("retrying", web(OFF, T), "j", "e", T),), (Ignored("stale", web(ON, 1), T),)
    known = online(
        p_5=f"{T} {T0} 5 {T}", b_0=f"{T} n5.ab,n5.cd,f5.ef p_7_8", s_5=f"{T0} - {T0}", floor=7, platform_id=5
    )
    given = facts(
        known, lease_ms=5000, waiting=waiting, ignored=ignored, changes=(change("online", T),), openim=DIFFERS
    )
    said = json.loads(json.dumps(answer.as_json(replace(given, journals=(Journal("vm:7", 3, T),)))))
    assert (said.pop("reason"), said.pop("notes")) == (
        reason(given),
        notes(replace(given, journals=(Journal("vm:7", 3, T),))),
    )
    event = {"command": OFF, "seq": str(T), "conn_id": "", "platform_id": 5, "operation_id": "op", "received_at": T}
    assert said == {
        "user_id": "alice",
        "status": "online",
        "since": T,
        "at": NOW,
        "newest": {
            **{"seq": str(T), "command": ON, "conn_id": "", "platform_id": "5", "platform": "", "operation_id": ""},
            "updated_at": T,
        },
        "sessions": [
            {
                **{"scope": "platform", "conn_id": "", "platform_id": 5, "online": True},
                **{"online_seq": str(T), "online_operation_id": "p_7_8", "online_is_correction": False},
                **{"offline_seq": str(T0), "offline_operation_id": "", "offline_is_correction": False},
                **{"covered_by": None, "covered_by_seq": None},
                **{"lease_began": T, "lease_ends": T + 5000, "lease_expired": False},
            }
        ],
        "batches": [
            {
                "operation_id": "p_7_8",
                "seq": str(T),
                "events": [{"kind": kind, "platform_id": 5, "seq": str(T)} for kind in ("online", "online", "offline")],
                "says": [
                    {
                        **{"platform_id": 5, "status": "online", "seq": str(T), "rule": "more_online"},
                        **{"online": 2, "offline": 1, "kick_offs": 0},
                    }
                ],
            }
        ],
        "sums": [{"platform_id": 5, "online_seq": str(T0), "offline_seq": None, "mixed_seq": str(T0)}],
        "forgotten_seq": "7",
        "lease_seconds": 5,
        "leases_held": "",
        "changes": [change("online", T).as_json()],
        "ignored": [
            {
                **event,
                **{"outcome": "stale", "at": T, "command": ON, "seq": "1"},
                "against": f"the offline event of that platform is newer, {stamped(T0)}",
            }
        ],
        "waiting": [{**event, "place": "retrying", "job_id": "j", "error": "e", "next_at": T}],
        "journals": [{"receiver": "vm:7", "events": 3, "since_ms": T}],
        "similar": [],
        "openim": {
            **{"platforms": [1], "recorded": [], "agrees": False, "kind": "platforms", "trouble": ""},
            "says": "OpenIM itself says: online on IOS (its own record: offline); presence reconcile alice would put "
            "it right.",
        },
        "looked_at": {name: {"count": 0, "whole": True, "back_to": None} for name in ("changes", "ignored", "waiting")},
        "troubles": [],
    }


def test_of_nobody_programs_get_the_same_names() -> None:
    said, full = answer.as_json(facts()), answer.as_json(facts(online(p_5=f"{T} - 5")))
    assert said.keys() == full.keys()
    assert (said["since"], said["newest"], said["sessions"]) == (None, None, [])


def test_times_and_lists_read_well() -> None:
    assert instant(T) == "2025-11-26 12:03:07.123Z"
    assert instant(SEQ_MAX) == f"{SEQ_MAX} ms"
    assert [lasting(ms) for ms in (-1, 900, 119_000, 120_000, 7_200_000, 172_800_000)] == [
        *("0 s", "1 s", "119 s", "2 min", "2 h", "2 d")
    ]
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed([*"abcdefg"]) == "a, b, c, d, e and 2 more"


@pytest.mark.parametrize("field", ["b:0", "p:5", "c:x", "u", "s:5", "s:x", "floor"])
@pytest.mark.parametrize("value", [b"", b"?", b"1", b"1 2", b"- - -", b"\xff", b"1 n5", b"9 n5.a,,f5.b op"])
def test_a_field_that_makes_no_sense_costs_no_other(field: str, value: bytes) -> None:
    known = memory.read({field.encode(): value, b"p:1": b"7 - 1", b"status": b"online"})
    given = facts(known)
    assert "IOS" in reason(given)
    json.dumps(answer.as_json(given))


def test_a_correction_is_called_one() -> None:
    assert described(web("reconciled_offline", T, "")).startswith("offline correction of Web, ")
