"""``python -m pipelines.promote``: promote, roll back, approve, and tell the history of registered models."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from omegaconf import DictConfig

from pipelines.cli import hydra_command
from registry.alias_moves import CHALLENGER, CHAMPION, current_aliases, os_user, read_audit, replayed
from registry.approvals import approve
from registry.mlflow_client import open_client, quiet
from registry.promotion import PromotionError, history, promote, rollback
from telemetry.errors import InputError

ACTIONS = ("promote", "rollback", "approve", "history", "status")
_FREE_TEXT = ("reason", "by")


def expected_champion(client: MlflowClient, name: str, version: str) -> str | None:
    """The champion that the gate ``beats_champion`` compared ``version`` with, by its tag; the champion of now when none was compared."""
    with quiet():
        try:
            tag = client.get_model_version(name, version).tags.get("gate.beats_champion", "")
        except MlflowException as error:
            raise InputError(f"no version {version} of {name}", where="version") from error
    if compared := re.search(r"over version (\d+)", tag):
        return compared.group(1)
    if "no champion yet" in tag:
        return None
    return current_aliases(client, name).get(CHAMPION)


def _names(client: MlflowClient) -> list[str]:
    with quiet():
        return [model.name for model in client.search_registered_models(max_results=1000)]


def _model(client: MlflowClient, cfg: DictConfig, *, needed: bool) -> str | None:
    names = _names(client)
    if cfg.model is None and not needed:
        return None
    if cfg.model not in names:
        raise InputError(f"{cfg.model}", where="model", allowed=", ".join(names) or "nothing is registered yet")
    return str(cfg.model)


def _version(client: MlflowClient, name: str, cfg: DictConfig) -> str:
    if cfg.version is not None:
        return str(cfg.version)
    challenger = current_aliases(client, name).get(CHALLENGER)
    if challenger is None:
        raise InputError(f"{name} has no challenger", where="version", remedy="name a version: version=N")
    return challenger


def _needs_reason(cfg: DictConfig) -> str:
    reason = str(cfg.reason or "").strip()
    if not reason:
        raise InputError("is empty", where="reason", allowed="a text", remedy=f"{cfg.action} says why: reason=...")
    return reason


def _changed(name: str, before: dict[str, str], after: dict[str, str]) -> str:
    lines = [f"{name}:"]
    for alias in sorted(before.keys() | after.keys()):
        old, new = before.get(alias, "-"), after.get(alias, "-")
        lines.append(f"  {alias:<12}{old}" + (f" -> {new}" if old != new else ""))
    return "\n".join(lines)


def _history_table(entries: list[dict[str, Any]]) -> str:
    rows = [("time", "model", "action", "champion", "by", "reason")]
    for entry in entries:
        before, after = entry["before"].get(CHAMPION, "-"), entry["after"].get(CHAMPION)
        champion = f"{before} -> {after}" if after else f"{before}"
        if entry["action"] == "approve":
            champion = f"version {entry['version']}"
        elif entry["action"] == "challenge":
            champion = f"challenger {entry['after'][CHALLENGER]}"
        rows.append((entry["time"][:19], entry["name"], entry["action"], champion, entry.get("approver", entry["by"]), entry["reason"]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _status(client: MlflowClient, names: list[str], folder: Path | None) -> list[dict[str, Any]]:
    records = read_audit(client, folder)
    states = []
    for name in names:
        mine = [entry for entry in records if entry["name"] == name]
        aliases, told = current_aliases(client, name), replayed(records, name)
        unfinished = bool(mine) and mine[-1]["phase"] == "intent"
        states.append({"model": name, "aliases": aliases, "recorded": told, "agree": aliases == told, "unfinished": unfinished})
    return states


def _tell_status(states: list[dict[str, Any]]) -> str:
    lines = []
    for state in states:
        aliases = ", ".join(f"{alias} {version}" for alias, version in sorted(state["aliases"].items())) or "no aliases"
        word = "unfinished change, the next command completes it" if state["unfinished"] else "as recorded"
        if not state["agree"] and not state["unfinished"]:
            word = f"moved past the record, which says {state['recorded'] or 'nothing'}"
        lines.append(f"{state['model']}: {aliases}; {word}")
    return "\n".join(lines) or "nothing is registered yet"


def _change(client: MlflowClient, cfg: DictConfig, folder: Path | None) -> None:
    name = _model(client, cfg, needed=True) or ""
    before = current_aliases(client, name)
    if cfg.action == "rollback":
        rollback(client, name, reason=_needs_reason(cfg), state_folder=folder)
    elif cfg.action == "approve":
        version = _version(client, name, cfg)
        by = os_user() if cfg.by is None else str(cfg.by)
        reason = _needs_reason(cfg)
        approval = approve(client, name, version, by=by, reason=reason, self_approval=cfg.self_approval, state_folder=folder)
        print(f"{name}: version {version} approved by {approval.approver}, manifest {approval.manifest_sha256}")
        return
    else:
        version = _version(client, name, cfg)
        expected = expected_champion(client, name, version) if cfg.expected is None else str(cfg.expected)
        needing = tuple(cfg.registry.require_approval)
        promote(
            client, name, version, expected_champion=expected, reason=str(cfg.reason or ""), state_folder=folder, require_approval=needing
        )
    print(_changed(name, before, current_aliases(client, name)))


@hydra_command("promote")
def _command(cfg: DictConfig) -> int:
    if cfg.action not in ACTIONS:
        raise InputError(f"{cfg.action}", where="action", allowed=", ".join(ACTIONS))
    client = open_client(cfg.registry.tracking_uri)
    folder = None if cfg.registry.access.state_folder is None else Path(cfg.registry.access.state_folder)
    try:
        if cfg.action == "history":
            entries = history(client, _model(client, cfg, needed=False), folder)
            print(json.dumps(entries, indent=2) if cfg.json else _history_table(entries))
            return 0
        if cfg.action == "status":
            name = _model(client, cfg, needed=False)
            states = _status(client, [name] if name else _names(client), folder)
            print(json.dumps(states, indent=2) if cfg.json else _tell_status(states))
            return 0 if all(state["agree"] for state in states) else 1
        _change(client, cfg, folder)
    except PromotionError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    except MlflowException as error:
        raise InputError(f"the registry does not answer: {error}", where="registry.tracking_uri") from error
    return 0


def spelled(arguments: list[str]) -> list[str]:
    """Arguments for Hydra: a first word is the action, and free text is quoted, whatever is in it."""
    words = list(arguments)
    if words and "=" not in words[0] and not words[0].startswith("-"):
        words[0] = f"action={words[0]}"
    for index, word in enumerate(words):
        key, equals, value = word.partition("=")
        if key in _FREE_TEXT and equals and value not in ("", "null") and not value.startswith(("'", '"')):
            words[index] = f"{key}='" + value.replace("'", "\\'") + "'"
    return words


def main() -> None:
    """Entry point."""
    sys.argv[1:] = spelled(sys.argv[1:])
    _command()


if __name__ == "__main__":
    main()
