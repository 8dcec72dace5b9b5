"""Known vulnerabilities of packages, from advisories in a file: pip-audit's service interface without a network.

Advisories are OSV JSON (https://ossf.github.io/osv-schema/), ecosystem PyPI. A version is affected when an entry of ``affected`` for its
package lists it in ``versions``, or a range of type ``ECOSYSTEM`` holds it: events sorted by version, ``introduced`` opens (``"0"`` = from
the first), ``fixed`` closes before itself, ``last_affected`` closes after itself. Withdrawn advisories do not count. Git ranges cannot be
compared with an installed version and are left to ``versions``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from telemetry.errors import InputError

LEVELS = ("low", "medium", "high", "critical")
_SCORES = ((9.0, "critical"), (7.0, "high"), (4.0, "medium"), (0.0, "low"))  # CVSS v3.1 specification, table 14


@dataclass(frozen=True)
class Finding:
    """One advisory that affects one package; ``severity`` is of ``LEVELS``, or ``unknown``."""

    package: str
    version: str
    advisory: str
    aliases: tuple[str, ...]
    severity: str
    summary: str
    fixed_in: tuple[str, ...]

    @property
    def remedy(self) -> str:
        """What to do about it."""
        if self.fixed_in:
            return f"upgrade {self.package} to {self.fixed_in[0]} or later: pip install '{self.package}>={self.fixed_in[0]}'"
        return f"no fixed version is known: replace {self.package}, or judge the advisory and name it in ignore="

    def at_least(self, level: str) -> bool:
        """Whether it counts at ``level``; an unknown severity counts as critical."""
        rank = len(LEVELS) - 1 if self.severity == "unknown" else LEVELS.index(self.severity)
        return rank >= LEVELS.index(level)


def installed() -> dict[str, str]:
    """``{canonical name: version}`` of the installed distributions."""
    return {canonicalize_name(dist.metadata["Name"]): dist.version for dist in metadata.distributions() if dist.metadata["Name"]}


def pinned(path: Path) -> dict[str, str]:
    """``{canonical name: version}`` of a constraints file. Raises InputError for a line that is no ``NAME==VERSION``."""
    found: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", where=str(path)) from error
    for number, line in enumerate(lines, start=1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        try:
            requirement = Requirement(text)
            (pin,) = requirement.specifier
            if pin.operator not in ("==", "==="):
                raise ValueError("not pinned")
        except (InvalidRequirement, ValueError) as error:
            raise InputError(f"'{text}'", where=f"{path}, line {number}", allowed="NAME==VERSION") from error
        if requirement.marker is None or requirement.marker.evaluate():
            found[canonicalize_name(requirement.name)] = pin.version
    return found


def read_advisories(path: Path) -> list[dict[str, Any]]:
    """Advisories of a file (one, a list, or ``{"vulns": [...]}``) or of all ``*.json`` of a folder.

    Raises:
        InputError: nothing there, not JSON, or an entry without ``id`` or ``affected``: half a list must not pass for a clean bill.
    """
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise InputError("no *.json in it", where=str(path))
    advisories: list[dict[str, Any]] = []
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be read as JSON ({error})", where=str(file), allowed="OSV JSON") from error
        entries = content.get("vulns", [content]) if isinstance(content, dict) else content
        for index, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            if not (isinstance(entry, dict) and isinstance(entry.get("id"), str) and isinstance(entry.get("affected"), list)):
                raise InputError("no OSV advisory", where=f"{file}, entry {index}", allowed="an object with id and affected")
            advisories.append(entry)
    return advisories


def find(packages: Mapping[str, str], advisories: Iterable[Mapping[str, Any]], ignore: Iterable[str] = ()) -> list[Finding]:
    """What affects ``packages`` (``{canonical name: version}``), by package and advisory."""
    left_out, findings = set(ignore), []
    for advisory in advisories:
        names = {str(advisory["id"]), *map(str, advisory.get("aliases") or [])}
        if advisory.get("withdrawn") or names & left_out:
            continue
        for name in sorted({_package(affected) for affected in advisory["affected"]} & packages.keys()):
            mine = [affected for affected in advisory["affected"] if _package(affected) == name]
            if any(_affects(affected, packages[name], str(advisory["id"])) for affected in mine):
                findings.append(_finding(advisory, mine, name, packages[name]))
    return sorted(findings, key=lambda finding: (finding.package, finding.advisory))


def _package(affected: Mapping[str, Any]) -> str:
    package = affected.get("package") or {}
    return canonicalize_name(str(package.get("name", ""))) if str(package.get("ecosystem", "")).split(":")[0] == "PyPI" else ""


def _affects(affected: Mapping[str, Any], version: str, advisory: str) -> bool:
    if version in (affected.get("versions") or []):
        return True
    try:
        return any(
            _in_range(span.get("events") or [], Version(version))
            for span in affected.get("ranges") or []
            if span.get("type") == "ECOSYSTEM"
        )
    except InvalidVersion as error:
        raise InputError(f"{error}", where=f"advisory {advisory}", allowed="PEP 440 versions") from error


def _in_range(events: Iterable[Mapping[str, str]], version: Version) -> bool:
    """The algorithm of the OSV schema, section "evaluation"."""
    inside = False
    for _, kind, at in sorted((_at(value), kind, value) for event in events for kind, value in event.items()):
        if kind == "introduced" and version >= _at(at):
            inside = True
        elif (kind == "fixed" and version >= _at(at)) or (kind == "last_affected" and version > _at(at)):
            inside = False
    return inside


def _at(text: str) -> Version:
    return Version("0.dev0") if text == "0" else Version(text)


def _finding(advisory: Mapping[str, Any], affected: list[Mapping[str, Any]], name: str, version: str) -> Finding:
    fixes = {
        event["fixed"]
        for entry in affected
        for span in entry.get("ranges") or []
        if span.get("type") == "ECOSYSTEM"
        for event in span.get("events") or []
        if "fixed" in event and Version(event["fixed"]) > Version(version)
    }
    return Finding(
        name,
        version,
        str(advisory["id"]),
        tuple(map(str, advisory.get("aliases") or [])),
        _severity(advisory),
        " ".join(str(advisory.get("summary") or advisory.get("details") or "").split())[:300],
        tuple(sorted(fixes, key=Version)),
    )


def _severity(advisory: Mapping[str, Any]) -> str:
    """The database's own word (GitHub's ``database_specific.severity``), else the class of a plain number in ``severity``."""
    stated = str((advisory.get("database_specific") or {}).get("severity", "")).lower()
    if stated in LEVELS or stated == "moderate":
        return "medium" if stated == "moderate" else stated
    for entry in advisory.get("severity") or []:
        try:
            score = float(entry.get("score"))
        except (TypeError, ValueError):
            continue
        return next(level for limit, level in _SCORES if score >= limit)
    return "unknown"


def ask_service(service: str, packages: Mapping[str, str], ignore: Iterable[str] = ()) -> list[Finding]:
    """The same from pip-audit's own services ``osv`` or ``pypi``, which need a network.

    Raises:
        InputError: pip-audit is not installed, or the service cannot be reached.
    """
    try:
        from pip_audit._service import OsvService, PyPIService, ServiceError
        from pip_audit._service.interface import ResolvedDependency
    except ImportError as error:
        raise InputError("pip-audit is not installed", where=f"service={service}", remedy="pip install -e '.[dev]'") from error
    asked = {"osv": OsvService, "pypi": PyPIService}[service]()
    left_out, findings = set(ignore), []
    try:
        for name, version in sorted(packages.items()):
            for result in asked.query(ResolvedDependency(name, Version(version)))[1]:
                if not {result.id, *result.aliases} & left_out:
                    fixes = tuple(map(str, result.fix_versions))
                    findings.append(
                        Finding(name, version, result.id, tuple(sorted(result.aliases)), "unknown", result.description[:300], fixes)
                    )
    except (ServiceError, OSError) as error:
        raise InputError(
            f"cannot be reached ({type(error).__name__})", where=f"service={service}", remedy="service=offline advisories=FILE"
        ) from error
    return findings
