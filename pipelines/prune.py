"""``python -m pipelines.prune``: what the registry need not keep any more, listed and, when told to, deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from pipelines.cli import build, hydra_command
from pipelines.config import RegistryConfig
from pipelines.workspace import read_json
from registry.alias_moves import read_audit
from registry.manifest import REGISTERED_NAMES
from registry.mlflow_client import open_client, quiet
from registry.pruning import measured, prune, records_remain
from registry.retention import Item, Registry, Retention, plan
from telemetry.errors import InputError
from telemetry.times import utc_times

_KINDS = {"version": "versions", "runs": "families of runs", "model": "logged models"}


def copies_of(folders: list[str]) -> dict[str, str]:
    """Manifest digests of the last good copies under the state folders of ``pipelines.forecast``.

    Raises:
        InputError: a record that cannot be read: what it serves is unknown, so nothing may be deleted.
    """
    found: dict[str, str] = {}
    for folder in folders:
        for record in sorted(Path(folder).glob("*/champion.json")):
            try:
                found[str(read_json(record)["manifest_sha256"])] = str(record.parent)
            except (OSError, ValueError, KeyError, TypeError) as error:
                remedy = "run pipelines.forecast again, or remove the folder from live_states"
                raise InputError("cannot be read, so what it serves is unknown", where=str(record), remedy=remedy) from error
    return found


def open_registry(place: RegistryConfig, experiments: list[str], models: list[str], live_states: list[str]) -> tuple[Registry, Path | None]:
    """The registry to prune and the promoters' state folder.

    Raises:
        InputError: no such registry, experiment or copy.
    """
    client = open_client(place.tracking_uri)
    ids = []
    for name in experiments or [place.experiment]:
        with quiet():
            found = client.get_experiment_by_name(name)
        if found is None:
            raise InputError(f"no experiment '{name}'", where=place.tracking_uri, remedy="name those to prune with experiments=[...]")
        ids.append(found.experiment_id)
    state = place.access.state
    records = read_audit(client, state)
    return Registry(client, tuple(ids), tuple(models or REGISTERED_NAMES), records, copies_of(live_states)), state


def table(items: list[Item], now_ms: int) -> str:
    """What goes and what stays, with age, size and reason."""
    rows = [
        {
            "": "stays" if item.why else "GOES",
            "what": item.kind,
            "name": item.label,
            "days": f"{(now_ms - item.created_ms) / 86_400_000:.1f}",
            "KiB": f"{item.size / 1024:,.0f}" if item.artifacts else "",
            "why": item.why,
        }
        for item in items
    ]
    return pd.DataFrame(rows).to_string(index=False) if rows else "nothing there"


def totals(items: list[Item]) -> str:
    """One line of counts and bytes."""
    told = [f"{sum(item.kind == kind for item in items):,} {name}" for kind, name in _KINDS.items()]
    return f"{', '.join(told)}; {sum(item.size for item in items) / 2**20:,.1f} MiB"


def _now_ms(value: Any) -> int:
    if value is None:
        return int(pd.Timestamp.now("UTC").timestamp() * 1000)
    times, wrong = utc_times([str(value)])
    if wrong.any() or times.isna().any():
        raise InputError(f"{value!r}", where="now", allowed="a time such as 2026-01-05T12:00 (UTC)")
    return int(times.iloc[0].timestamp() * 1000)


@hydra_command("prune")
def main(cfg: DictConfig) -> int:
    """Plan, print, and delete when told to."""
    raw: Any = OmegaConf.to_container(cfg, resolve=True)
    rules = build(Retention, raw["rules"], "rules")
    if not isinstance(raw["apply"], bool):
        raise InputError(f"{raw['apply']!r}", where="apply", allowed="true or false")
    now_ms = _now_ms(raw["now"])
    place = build(RegistryConfig, raw["registry"], "registry")
    registry, state = open_registry(place, raw["experiments"] or [], raw["models"] or [], raw["live_states"] or [])
    try:
        items = plan(registry, rules, now_ms)
        items = [measured(registry, item) for item in tqdm(items, desc="sizes", unit="item", dynamic_ncols=True, leave=False)]
        print(table(items, now_ms))
        going = [item for item in items if item.goes]
        print(f"to go: {totals(going)}")
        if not raw["apply"]:
            print("nothing was deleted: apply=true deletes what goes")
            return 0
        done = list(tqdm(prune(registry, items, rules, now_ms, state), total=len(going), desc="prune", dynamic_ncols=True, leave=False))
    except MlflowException as error:
        raise InputError(f"the registry does not answer: {error}", where=place.tracking_uri, remedy="run it again: it goes on") from error
    print(f"deleted: {totals([one.item for one in done if one.deleted])}")
    for one in done:
        if not one.deleted:
            print(f"stays after all: {one.item.label}: {one.reason}")
    if records_remain(registry) and done:
        print("this server keeps the records of deleted runs and logged models: run `mlflow gc` where it runs")
    return 0


if __name__ == "__main__":
    main()
