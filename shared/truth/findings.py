"""What a comparison has found and done, for people and programs."""

from dataclasses import dataclass
from typing import Any, Literal

from shared.truth.verdict import Verdict

Action = Literal["opened", "closed", "none"]

#: What is counted, as programs see it.
COUNTED = ("compared", "ghost", "missing", "platforms", "unknown", "skipped")


@dataclass(frozen=True, slots=True)
class Finding:
    """A user who differs from OpenIM, and what was done. action: `opened` even if other sessions were closed."""

    verdict: Verdict
    action: Action

    def as_json(self) -> dict[str, Any]:
        verdict = self.verdict
        return {
            "user_id": verdict.user_id,
            "kind": verdict.kind,
            "ours": list(verdict.ours),
            "openim": list(verdict.openim),
            "action": self.action,
            "why": verdict.why,
        }


@dataclass(slots=True)
class Tally:
    """Numbers of users. unknown: OpenIM's answer about them proves nothing. skipped: they had an event just now, so the
    next comparison judges them. left: they still differ, or are unknown.
    """

    compared: int = 0
    ghost: int = 0
    missing: int = 0
    platforms: int = 0
    unknown: int = 0
    skipped: int = 0
    left: int = 0

    def add(self, finding: Finding, *, is_left: bool) -> None:
        verdict = finding.verdict
        name = "unknown" if verdict.doubtful and not verdict.corrections else verdict.kind
        setattr(self, name, getattr(self, name) + 1)
        self.left += is_left

    def as_json(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in COUNTED}
