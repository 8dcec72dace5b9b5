"""Gates of the supply chain: a signature that will be believed, and nothing dangerous in the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from registry.gates.base import MissingEvidenceError, Verdict
from registry.gates.integrity import draft_of
from registry.keys import Trust, TrustError, short
from registry.scan import deep_scan
from registry.signing import try_signature


@dataclass(frozen=True)
class Signature:
    """The key that will sign is trusted, valid and not revoked, and a signature by it over the draft's files verifies.

    The package's own signature cannot be made before its verdicts are in it, so this is a rehearsal with the same key and library, thrown
    away; ``packaging.register`` makes the real one over the sealed package, verifies it, and registers nothing where that fails.

    Evidence ``trust``: a ``keys.Trust`` (``keys.signing_trust(tracking_uri)``) or the ``TrustError`` that came instead; ``package``: a
    ``packaging.Draft``.
    """

    name: ClassVar[str] = "signature"

    @property
    def threshold(self) -> str:
        return "signed by a key that is trusted, valid and not revoked"

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        draft, trust = draft_of(evidence), evidence.get("trust")
        if isinstance(trust, TrustError):
            return Verdict(self.name, False, str(trust), self.threshold)
        if not isinstance(trust, Trust):
            raise MissingEvidenceError("'trust' was not given")
        try:
            key_id = try_signature(draft.folder, trust)
        except TrustError as error:
            return Verdict(self.name, False, str(error), self.threshold, {"key": trust.active})
        return Verdict(self.name, True, f"key {short(key_id)} signs, and its signature verifies", self.threshold, {"key": key_id})


@dataclass(frozen=True)
class Scan:
    """Neither modelscan nor our own scan finds anything. Evidence ``package``: a ``packaging.Draft``."""

    name: ClassVar[str] = "scan"

    @property
    def threshold(self) -> str:
        return "no finding of modelscan or of our own scan"

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        draft = draft_of(evidence)
        findings = deep_scan(draft.folder)
        reason = "; ".join(findings[:5]) if findings else f"{len(draft.files)} files without a finding"
        return Verdict(self.name, not findings, reason, self.threshold, {"findings": findings})
