"""Gates of the package itself: nothing that runs code, and the files that were written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from registry.digest import differences
from registry.gates.base import MissingEvidenceError, Verdict
from registry.manifest import package_digests
from registry.scan import scan_folder


@dataclass(frozen=True)
class NoPickle:
    """Nothing in the package runs code when read. Evidence ``package``: a ``packaging.Draft``."""

    name: ClassVar[str] = "no_pickle"

    @property
    def threshold(self) -> str:
        return "no pickle, archive, link or unknown file kind"

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        draft = draft_of(evidence)
        findings = scan_folder(draft.folder)
        reason = "; ".join(findings[:5]) if findings else f"{len(draft.files)} files of known, non-executable kinds"
        return Verdict(self.name, not findings, reason, self.threshold, {"findings": findings})


@dataclass(frozen=True)
class Digest:
    """The package on disk is what was drafted, and has weights. Evidence ``package``: a ``packaging.Draft``."""

    name: ClassVar[str] = "digest"

    @property
    def threshold(self) -> str:
        return "every file matches its SHA-256"

    def judge(self, evidence: Mapping[str, Any]) -> Verdict:
        draft = draft_of(evidence)
        try:
            problems = differences(draft.files, package_digests(draft.folder))
        except ValueError as error:
            problems = [str(error)]
        if not any(name.startswith("weights/") for name in draft.files):
            problems.append("there are no weights")
        reason = "; ".join(problems[:5]) if problems else f"{len(draft.files)} files match"
        return Verdict(self.name, not problems, reason, self.threshold, {"problems": problems})


def draft_of(evidence: Mapping[str, Any]) -> Any:
    draft = evidence.get("package")
    if draft is None:
        raise MissingEvidenceError("'package' was not given")
    return draft
