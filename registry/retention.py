"""What of a registry may go: every version, run and logged model with the reason why it stays, or none.

A version stays that is aliased, was lately a champion by the audit record, is served from a last good copy, belongs to the newest of its
model, or is young. A run stays with its whole family (parent and nested runs) while one of them is young, at work, or made a version that
stays. A logged model stays with its version, or while it is young. Registered models that are not ours stay, with what they came from.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlflow.entities import ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from registry.manifest import PACKAGE_TAG
from registry.mlflow_client import quiet
from registry.promotion import CHAMPION, current_aliases
from telemetry.errors import InputError

DAY_MS = 86_400_000
_AT_WORK = ("RUNNING", "SCHEDULED")
_PAGE = 1000
_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")


@dataclass(frozen=True)
class Retention:
    """Rules.

    Attributes:
        young_days: whatever is younger stays.
        newest_versions: so many newest versions of each registered model stay.
        last_champions: so many latest champions of each model by the audit record stay, for a rollback.
        stuck_days: a run that never ended counts as at work for so long.
    """

    young_days: float = 30.0
    newest_versions: int = 5
    last_champions: int = 3
    stuck_days: float = 7.0

    def __post_init__(self) -> None:
        for name, low in (("young_days", 1), ("newest_versions", 1), ("last_champions", 2), ("stuck_days", 1)):
            value = getattr(self, name)
            if not value >= low:
                raise InputError(f"{value}", where=name, allowed=f"from {low}")


@dataclass(frozen=True)
class Item:
    """One version, family of runs or logged model; it goes when ``why`` is empty.

    Attributes:
        kind: ``version``, ``runs`` or ``model``.
        key: name and number of a version; id of the family's parent run; id of a logged model.
        members: ids of a family's runs, the parent first.
        artifacts: ``(id, URI)`` of what lies in the artifact store for it.
    """

    kind: str
    key: str
    label: str
    created_ms: int
    why: str
    members: tuple[str, ...] = ()
    artifacts: tuple[tuple[str, str], ...] = ()
    model: str = ""
    version: str = ""
    size: int = 0

    @property
    def goes(self) -> bool:
        """Whether no rule keeps it."""
        return not self.why


@dataclass(frozen=True)
class Registry:
    """What is looked at: our experiments and registered models, and who else refers to versions.

    Attributes:
        records: the audit record of promotions.
        copies: manifest digests of last good copies, with where they lie.
    """

    client: MlflowClient
    experiments: tuple[str, ...]
    models: tuple[str, ...]
    records: Sequence[Mapping[str, Any]]
    copies: Mapping[str, str]


def plan(registry: Registry, rules: Retention, now_ms: int) -> list[Item]:
    """All versions, families of runs and logged models of ``registry``, each with the reason why it stays."""
    with quiet():
        versions = _all_versions(registry.client)
    items = [item for name in registry.models for item in plan_versions(registry, name, rules, now_ms, versions)]
    going = {item.key for item in items if item.goes}
    staying = [version for version in versions if version_key(version) not in going]
    used = {version.run_id: version_key(version) for version in staying if version.run_id}
    served = {model_id_of(version): version_key(version) for version in staying}
    return items + _plan_runs(registry, rules, now_ms, used) + _plan_models(registry, rules, now_ms, served)


def plan_versions(
    registry: Registry, name: str, rules: Retention, now_ms: int, versions: Iterable[ModelVersion] | None = None
) -> list[Item]:
    """The versions of one registered model, newest first."""
    with quiet():
        found = _all_versions(registry.client, f"name='{name}'") if versions is None else versions
        aliases = defaultdict(list)
        for alias, version in current_aliases(registry.client, name).items():
            aliases[version].append(alias)
    mine = sorted((version for version in found if version.name == name), key=lambda version: -int(version.version))
    champions = _last_champions(registry.records, name, rules.last_champions)
    items = []
    for place, version in enumerate(mine):
        number, copy = str(version.version), registry.copies.get(version.tags.get(PACKAGE_TAG, ""))
        reasons = [f"alias {', '.join(sorted(aliases[number]))}"] if number in aliases else []
        reasons += [f"one of the last {rules.last_champions} champions"] if number in champions else []
        reasons += [f"last good copy in {copy}"] if copy else []
        reasons += [f"one of the newest {rules.newest_versions}"] if place < rules.newest_versions else []
        reasons += _young(version.creation_timestamp, rules, now_ms)
        label = f"{name} version {number} ({version.tags.get('model', '')}, gates {version.tags.get('gates', 'unknown')})"
        item = Item("version", version_key(version), label, version.creation_timestamp, "; ".join(reasons), model=name, version=number)
        items.append(replace(item, members=(model_id_of(version),)))
    return items


def version_key(version: ModelVersion) -> str:
    """Name and number."""
    return f"{version.name}/{version.version}"


def model_id_of(version: ModelVersion) -> str:
    """Id of the logged model behind a version; empty when it has none. The registry's tables keep it in the source's URI only."""
    found = _MODEL_ID.search(version.source or "")
    return version.model_id or (found.group() if found else "")


def family_of(runs: Mapping[str, Any], run_id: str) -> str:
    """The top of a run's chain of parents, as far as they exist."""
    seen = {run_id}
    while (parent := runs[run_id].data.tags.get(MLFLOW_PARENT_RUN_ID)) in runs and parent not in seen:
        run_id = parent
        seen.add(run_id)
    return run_id


def _all_versions(client: MlflowClient, where: str | None = None) -> list[ModelVersion]:
    found, token = [], None
    while True:
        page = client.search_model_versions(where, max_results=_PAGE, page_token=token)
        found += page
        if not (token := page.token):
            return found


def _last_champions(records: Sequence[Mapping[str, Any]], name: str, count: int) -> set[str]:
    champions: dict[str, None] = {}
    for entry in reversed(records):
        if entry.get("name") != name:
            continue
        for side in ("after", "before"):
            version = (entry.get(side) or {}).get(CHAMPION)
            if version is not None and len(champions) < count:
                champions[str(version)] = None
    return set(champions)


def _young(created_ms: int, rules: Retention, now_ms: int) -> list[str]:
    days = (now_ms - created_ms) / DAY_MS
    return [f"{days:.1f} days old"] if days < rules.young_days else []


def _plan_runs(registry: Registry, rules: Retention, now_ms: int, used: Mapping[str, str]) -> list[Item]:
    runs: dict[str, Any] = {}
    with quiet():
        token = None
        while True:
            page = registry.client.search_runs(list(registry.experiments), "", ViewType.ALL, _PAGE, page_token=token)
            runs |= {run.info.run_id: run for run in page}
            if not (token := page.token):
                break
    families: dict[str, list[str]] = defaultdict(list)
    for run_id in runs:
        families[family_of(runs, run_id)].append(run_id)
    items = []
    for top, members in families.items():
        ordered = [top, *(run_id for run_id in members if run_id != top)]
        reasons = [f"made {used[run_id]}" for run_id in ordered if run_id in used]
        infos = [runs[run_id].info for run_id in ordered]
        newest = max(info.end_time or info.start_time for info in infos)
        if any(info.status in _AT_WORK and now_ms - info.start_time < rules.stuck_days * DAY_MS for info in infos):
            reasons.append("at work")
        reasons += _young(newest, rules, now_ms)
        label = f"{runs[top].info.run_name} ({len(ordered)} run{'s' if len(ordered) > 1 else ''})"
        artifacts = tuple((info.run_id, info.artifact_uri) for info in infos)
        items.append(Item("runs", top, label, newest, "; ".join(reasons), members=tuple(ordered), artifacts=artifacts))
    return sorted(items, key=lambda item: -item.created_ms)


def _plan_models(registry: Registry, rules: Retention, now_ms: int, served: Mapping[str, str]) -> list[Item]:
    items: list[Item] = []
    with quiet():
        token = None
        while True:
            page = registry.client.search_logged_models(list(registry.experiments), page_token=token)
            for model in page:
                reasons = [f"is {served[model.model_id]}"] if model.model_id in served else []
                reasons += _young(model.creation_timestamp, rules, now_ms)
                place = ((model.model_id, model.artifact_location),)
                items.append(Item("model", model.model_id, f"{model.name}", model.creation_timestamp, "; ".join(reasons), artifacts=place))
            if not (token := page.token):
                return sorted(items, key=lambda item: -item.created_ms)
