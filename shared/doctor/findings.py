"""What the doctor says: its findings, and what it checked."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from shared.doctor.codes import CODES, SEVERITIES, Severity

#: not used: there is nothing to look at. cannot tell: there is something, but it could not be looked at.
State = Literal["checked", "not used", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Finding:
    """code: what is wrong, see shared/doctor/codes.py. seen: what was seen here, in one sentence."""

    code: str
    seen: str

    @property
    def severity(self) -> Severity:
        return CODES[self.code].severity

    def as_json(self) -> dict[str, str]:
        return {"code": self.code, "seen": self.seen, **asdict(CODES[self.code])}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to check. because: why it was not checked, or ""."""

    what: str
    state: State = "checked"
    because: str = ""


Item = Finding | Check


@dataclass(frozen=True, slots=True)
class Examination:
    """All findings and checks, the worst first. at_ms: Unix milliseconds."""

    at_ms: int
    findings: Sequence[Finding]
    checks: Sequence[Check]

    @classmethod
    def of(cls, at_ms: int, items: Iterable[Item]) -> "Examination":
        """Removes repeated findings."""
        unique = list(dict.fromkeys(items))
        findings = [each for each in unique if isinstance(each, Finding)]
        return cls(
            at_ms,
            sorted(findings, key=lambda each: (SEVERITIES.index(each.severity), each.code)),
            [each for each in unique if isinstance(each, Check)],
        )

    def count(self, severity: Severity) -> int:
        return sum(each.severity == severity for each in self.findings)

    def fails(self, at: Severity) -> bool:
        """Whether there is a finding of that severity or a worse one."""
        return any(SEVERITIES.index(each.severity) <= SEVERITIES.index(at) for each in self.findings)

    def as_json(self) -> dict[str, Any]:
        return {
            "at": self.at_ms,
            **{f"{severity}s": self.count(severity) for severity in SEVERITIES},
            "findings": [each.as_json() for each in self.findings],
            "checks": [asdict(each) for each in self.checks],
        }
