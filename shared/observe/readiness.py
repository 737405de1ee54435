"""What a receiver says about itself on `/readyz`: to balancers, to people with curl, and to commands on its machine."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from shared.observe.edge import LastCallback, RefusedLately, added_up, newest_callbacks


@dataclass(frozen=True, slots=True)
class Readiness:
    """One receiver process, or all processes of a receiver together.

    trouble: why it refuses events, or "". journal: the directory. journal_*: what Redis does not have yet.
    unreadable_files: files of the journal, and folders to take over, that cannot be read. kept_*: what Redis has but
    may still lose, and why it stays for longer than usual, or "". callbacks, refused: what came lately.
    """

    trouble: str = ""
    journal: str = ""
    redis: Literal["up", "down"] = "up"
    journal_events: int = 0
    journal_bytes: int = 0
    journal_oldest_seconds: float = 0.0
    damaged_files: int = 0
    unreadable_files: int = 0
    kept_events: int = 0
    kept_bytes: int = 0
    kept_reason: str = ""
    processes: int = 1
    callbacks: tuple[LastCallback, ...] = ()
    refused: tuple[RefusedLately, ...] = ()

    @property
    def status(self) -> Literal["ready", "not ready"]:
        return "not ready" if self.trouble else "ready"

    def as_json(self) -> dict[str, Any]:
        return {"status": self.status, **asdict(self)}


_READINESS = TypeAdapter(Readiness)


def readiness_of(said: object) -> Readiness:
    """Reads the page's JSON, also of an older or newer receiver. Raises ValueError if it is another page."""
    if not isinstance(said, dict) or not said.keys() >= {"trouble", "redis", "journal_events"}:
        raise ValueError("this is not a receiver's /readyz")
    try:
        return _READINESS.validate_python(said)
    except ValidationError as error:
        raise ValueError(str(error)) from None


def combine(answers: Sequence[Readiness | str]) -> Readiness:
    """One page for all processes: numbers are added up, and the state is that of the worst process.

    answers: of a process that did not answer, why.
    """
    known = [answer for answer in answers if isinstance(answer, Readiness)]
    troubles = {answer.trouble if isinstance(answer, Readiness) else answer for answer in answers} - {""}
    return Readiness(
        trouble="; ".join(sorted(troubles)),
        journal=known[0].journal if known else "",
        redis="up" if known and all(answer.redis == "up" for answer in known) else "down",
        journal_events=sum(answer.journal_events for answer in known),
        journal_bytes=sum(answer.journal_bytes for answer in known),
        journal_oldest_seconds=max((answer.journal_oldest_seconds for answer in known), default=0.0),
        damaged_files=max((answer.damaged_files for answer in known), default=0),  # they share the directory
        unreadable_files=sum(answer.unreadable_files for answer in known),
        kept_events=sum(answer.kept_events for answer in known),
        kept_bytes=sum(answer.kept_bytes for answer in known),
        kept_reason="; ".join(sorted({answer.kept_reason for answer in known if answer.kept_reason})),
        processes=len(answers),
        callbacks=newest_callbacks(each for answer in known for each in answer.callbacks),
        refused=added_up(each for answer in known for each in answer.refused),
    )
