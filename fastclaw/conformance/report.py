"""What a run found out, promise by promise, for people and for programs.

Owns verdicts and their rendering. Knows no checks.
"""

from collections import Counter
from typing import Any, Literal

import msgspec
from msgspec import Struct

from fastclaw.conformance.promises import Promise

Verdict = Literal["kept", "broken", "not offered"]
_MARKS: dict[Verdict, str] = {"kept": "ok  ", "broken": "FAIL", "not offered": "-   "}


class Finding(Struct, frozen=True, kw_only=True):
    """One promise's verdict.

    Parameters:
        detail: why it is broken or not offered; empty where it is kept.
        exchange: the messages that show a broken promise, oldest first, each with its direction.
    """

    promise: Promise
    verdict: Verdict
    detail: str = ""
    exchange: list[str] = msgspec.field(default_factory=list)


class Report(Struct, frozen=True, kw_only=True):
    """All findings of one run, in the order of the contract.

    Parameters:
        capabilities: what the runtime reported; None where it could not be initialized.
        refused: why it could not; nothing was checked then.
    """

    command: list[str]
    vocabulary: str
    capabilities: list[str] | None
    findings: list[Finding] = msgspec.field(default_factory=list)
    refused: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the runtime came up and no promise is broken."""
        return self.capabilities is not None and not any(finding.verdict == "broken" for finding in self.findings)

    def __getitem__(self, promise_id: str) -> Finding:
        """The finding on one promise.

        Raises:
            KeyError: it was not part of this run.
        """
        for finding in self.findings:
            if finding.promise.id == promise_id:
                return finding
        raise KeyError(promise_id)

    def to_text(self) -> str:
        """The report as lines: one per promise, the exchange below a broken one, a summary at the end."""
        if self.refused is not None:
            return f"nothing was checked: {self.refused}\n"
        lines: list[str] = []
        section = ""
        for finding in self.findings:
            if finding.promise.section != section:
                section = finding.promise.section
                lines.append(f"{section}:")
            lines += _lines(finding)
        return "\n".join([*lines, self._summary()]) + "\n"

    def _summary(self) -> str:
        counts = Counter(finding.verdict for finding in self.findings)
        return f"{counts['kept']} kept, {counts['broken']} broken, {counts['not offered']} not offered"

    def to_json(self) -> bytes:
        """The report as one JSON object."""
        return msgspec.json.encode({"ok": self.ok, **self._members()})

    def _members(self) -> dict[str, Any]:
        members: dict[str, Any] = msgspec.to_builtins(self)
        return members


def _lines(finding: Finding) -> list[str]:
    promise = finding.promise
    lines = [f"  {_MARKS[finding.verdict]} {promise.id:<16} {promise.text}"]
    if finding.detail:
        lines.append(f"       {finding.verdict}: {finding.detail}")
    return lines + [f"         {entry}" for entry in finding.exchange]
