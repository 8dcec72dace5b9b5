"""``python -m pipelines.audit_dependencies``: known vulnerabilities of the installed or pinned packages, with what to do about each."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from pipelines.cli import hydra_command
from pipelines.workspace import write_json
from registry.advisories import LEVELS, Finding, ask_service, find, installed, pinned, read_advisories
from telemetry.errors import InputError

SERVICES = ("offline", "osv", "pypi")


def audit(cfg: DictConfig) -> tuple[dict[str, str], list[Finding]]:
    """Packages that were looked at, and what was found. Raises InputError."""
    if cfg.service not in SERVICES:
        raise InputError(f"'{cfg.service}'", where="service", allowed=", ".join(SERVICES))
    if cfg.level not in LEVELS:
        raise InputError(f"'{cfg.level}'", where="level", allowed=", ".join(LEVELS))
    packages = installed() if cfg.constraints is None else pinned(Path(cfg.constraints))
    ignore = [str(name) for name in cfg.ignore]
    if cfg.service != "offline":
        return packages, ask_service(cfg.service, packages, ignore)
    if cfg.advisories is None:
        raise InputError("no advisory file named", where="advisories", allowed="OSV JSON, a file or a folder", remedy="see --help")
    return packages, find(packages, read_advisories(Path(cfg.advisories)), ignore)


@hydra_command("audit_dependencies")
def main(cfg: DictConfig) -> int:
    """Print and write the findings."""
    packages, findings = audit(cfg)
    counted = [finding for finding in findings if finding.at_least(cfg.level)]
    for finding in findings:
        print(f"{finding.package} {finding.version}: {finding.advisory} ({finding.severity}) {finding.summary}\n  {finding.remedy}")
    print(f"{len(packages)} packages, {len(findings)} findings, {len(counted)} of severity {cfg.level} or above")
    out = Path(cfg.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(finding), "remedy": finding.remedy} for finding in findings]
    write_json(out, {"packages": packages, "level": cfg.level, "counted": len(counted), "findings": rows})
    return 1 if counted else 0


if __name__ == "__main__":
    main()
