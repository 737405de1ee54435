"""The receiver on this machine: what it says about itself, and how it answers on OpenIM's port."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from shared.doctor.findings import Check, Finding, Item
from shared.observe.readiness import Readiness

#: The same as PresenceAnswersSlow (deploy/alerts.yml).
ANSWER_MOST_SECONDS = 0.02
#: A gateway has two senders; at half of them PresenceGatewaysNearCeiling is raised.
SENDERS = 2
CERTIFICATE_LEAST_DAYS = 14
_DAY_SECONDS = 86_400

#: ours: it answered as a receiver does. wrong credentials, not from here: it is a receiver, and refuses us.
Reach = Literal["ours", "nobody", "silent", "another program", "wrong credentials", "not from here"]


@dataclass(frozen=True, slots=True)
class Answers:
    """mean_seconds: of all answers since it started. busy: how many senders waited for it at a time, within a second.
    rate: callbacks accepted in that second.
    """

    mean_seconds: float
    busy: float
    rate: float


@dataclass(frozen=True, slots=True)
class Certificate:
    """ends_at: Unix seconds, None if it is not known. trouble: why it does not verify, or ""."""

    ends_at: float | None = None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class ReceiverFacts:
    """frozen: a sentence, if it takes connections on its admin port and does not answer; else "". url: as it may be
    shown. detail: of `reach`. answers: None if that is not known, or nothing was answered. certificate: None without
    TLS.
    """

    readiness: Readiness | None = None
    frozen: str = ""
    url: str = ""
    reach: Reach = "nobody"
    detail: str = ""
    answers: Answers | None = None
    certificate: Certificate | None = None


def look(facts: ReceiverFacts, *, elsewhere: int, gateways: int, now: float) -> Iterator[Item]:
    """elsewhere: how many receivers report to the queue. gateways: how many of OpenIM's we know. now: Unix seconds."""
    if facts.frozen:
        yield Finding("P048", facts.frozen)
    is_here = bool(facts.readiness or facts.frozen)
    if not is_here and facts.reach != "ours" and elsewhere:
        yield Check("receiver", "not used", "none runs on this machine; others report to the queue")
        return
    if not is_here and facts.reach == "nobody":
        yield Check("receiver", "not used", f"none runs on this machine: nothing listens at {facts.url}")
        return
    yield Check("receiver")
    yield from _of_reach(facts)
    yield from _of_certificate(facts.certificate, now)
    if facts.answers is None:
        because = "it has answered no callback yet" if facts.readiness else "its admin port does not answer"
        yield Check("answer times", "cannot tell", because)
        return
    yield Check("answer times")
    yield from _of_answers(facts.answers, max(gateways, 1))


def _of_reach(facts: ReceiverFacts) -> Iterator[Item]:
    if facts.reach == "nobody" or (facts.reach == "silent" and not facts.frozen):
        yield Finding("P041", f"no answer at {facts.url}: {facts.detail}")
    elif facts.reach == "another program":
        yield Finding("P042", f"what answers at {facts.url} is not a receiver with these settings: {facts.detail}")
    elif facts.reach == "wrong credentials":
        yield Finding("P042", f"the receiver at {facts.url} wants other credentials than PRESENCE_BASIC_AUTH here")
    elif facts.reach == "not from here":
        because = "it takes callbacks from PRESENCE_ALLOWED_NETWORKS alone, and this machine is in none of them"
        yield Check("the receiver's answer to OpenIM", "cannot tell", because)


def _of_certificate(certificate: Certificate | None, now: float) -> Iterator[Item]:
    if certificate is None:
        yield Check("certificate", "not used", "PRESENCE_TLS_CERT is not set")
        return
    if certificate.trouble:
        yield Finding("P045", f"the receiver's certificate does not verify: {certificate.trouble}")
    if certificate.ends_at is None:
        if not certificate.trouble:
            yield Check("certificate", "cannot tell", "the receiver showed none")
        return
    yield Check("certificate")
    days = (certificate.ends_at - now) / _DAY_SECONDS
    if 0 < days < CERTIFICATE_LEAST_DAYS:
        yield Finding("P046", f"the receiver's certificate expires in {days:.0f} days")


def _of_answers(answers: Answers, gateways: int) -> Iterator[Item]:
    ceiling = SENDERS / max(answers.mean_seconds, 1e-6)
    if answers.mean_seconds > ANSWER_MOST_SECONDS:
        took = f"an answer takes {answers.mean_seconds * 1000:,.0f} ms on average"
        yield Finding("P043", f"{took}: a gateway delivers at most {ceiling:,.0f} callbacks a second")
    if answers.busy > SENDERS * gateways / 2:
        waiting = f"{answers.busy:.1f} of {SENDERS * gateways} senders wait at a time"
        yield Finding("P044", f"{waiting}, with {answers.rate:,.0f} callbacks a second")
