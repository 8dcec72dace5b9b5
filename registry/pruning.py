"""Deleting what :mod:`registry.retention` lets go: versions first, then the files and records behind them.

Every step may be the last one (a kill, an outage): a version leaves the registry before its files do, so that nothing that can be loaded is
ever half there, and files leave before the record that names them, so that the next run finds the record and goes on.

MLflow's ``delete_run`` only marks; here the record goes as ``mlflow gc`` removes it. Behind an MLflow server over http that is not offered:
runs and logged models are marked deleted, their files removed, and ``mlflow gc`` on the server removes the records.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path

from registry.alias_moves import read_audit, serialised
from registry.mlflow_client import quiet
from registry.retention import Item, Registry, Retention, plan_versions
from telemetry.errors import InputError


@dataclass(frozen=True)
class Pruned:
    """What was done with one item: ``deleted``, or ``kept`` with the reason that came up meanwhile."""

    item: Item
    deleted: bool
    reason: str = ""


def measured(registry: Registry, item: Item) -> Item:
    """``item`` with the bytes that it holds in the artifact store."""
    with quiet():
        return replace(item, size=sum(_size(_repository(registry, uri)) for _, uri in item.artifacts))


def prune(
    registry: Registry,
    items: list[Item],
    rules: Retention,
    now_ms: int,
    state_folder: Path | None,
    step: Callable[[str], None] = lambda _: None,
) -> Iterator[Pruned]:
    """Delete the items that go, each re-checked right before.

    Args:
        items: from ``retention.plan``.
        state_folder: of the promotions' lock and audit record (``promotion.audit_path``).
        step: called with a word before every deletion; tests stop there.
    """
    with quiet():
        locations = {key: registry.client.get_experiment(key).artifact_location for key in registry.experiments}
    roots = tuple(location.rstrip("/") + "/" for location in locations.values())
    order = {"version": 0, "model": 1, "runs": 2}
    for item in sorted((item for item in items if item.goes), key=lambda item: order[item.kind]):
        if item.kind == "version":
            yield _prune_version(registry, item, rules, now_ms, state_folder, step)
        elif reason := _in_use(registry, item) or _outside(item, roots):
            yield Pruned(item, False, reason)
        else:
            _prune_files(registry, item, step)
            yield Pruned(item, True)


def _prune_version(
    registry: Registry, item: Item, rules: Retention, now_ms: int, state_folder: Path | None, step: Callable[[str], None]
) -> Pruned:
    """Under the lock of promotions: what was planned is planned again with the aliases and the record of this moment."""
    with serialised(registry.client, item.model, state_folder):
        fresh = replace(registry, records=read_audit(registry.client, state_folder))
        now = {other.key: other for other in plan_versions(fresh, item.model, rules, now_ms)}.get(item.key)
        if now is None:
            return Pruned(item, True)  # another pruning was first
        if not now.goes:
            return Pruned(item, False, now.why)
        step("version")
        with quiet():
            registry.client.delete_model_version(item.model, item.version)
    return Pruned(item, True)


def _in_use(registry: Registry, item: Item) -> str:
    """Which version refers to a run or a logged model by now; empty when none does."""
    with quiet():
        if item.kind == "model":
            found = [version for version in registry.client.search_model_versions() if item.key in (version.source or "")]
        else:
            found = [version for run_id in item.members for version in registry.client.search_model_versions(f"run_id='{run_id}'")]
    return f"made {found[0].name}/{found[0].version}" if found else ""


def _outside(item: Item, roots: tuple[str, ...]) -> str:
    """A record whose files lie elsewhere than MLflow puts them is not ours to clear."""
    for key, uri in item.artifacts:
        if not uri.startswith(roots) or key not in uri.split("/") or ".." in uri.split("/"):
            return f"its files lie outside the experiment: {uri}"
    return ""


def _prune_files(registry: Registry, item: Item, step: Callable[[str], None]) -> None:
    client, store = registry.client, registry.client._tracking_client.store
    with quiet():
        if item.kind == "runs":
            for run_id in item.members:
                step("mark")
                with _gone_already():
                    client.delete_run(run_id)
        for key, uri in reversed(item.artifacts):  # nested runs before their parent
            step("files")
            _clear(_repository(registry, uri), uri)
            step("record")
            with _gone_already():
                if item.kind == "model":
                    (getattr(store, "_hard_delete_logged_model", None) or client.delete_logged_model)(key)
                elif hasattr(store, "_hard_delete_run"):
                    store._hard_delete_run(key)


@contextlib.contextmanager
def _gone_already() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"):
            raise


def records_remain(registry: Registry) -> bool:
    """Whether this store only marks runs and logged models as deleted."""
    return not hasattr(registry.client._tracking_client.store, "_hard_delete_run")


def _repository(registry: Registry, uri: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri, tracking_uri=registry.client.tracking_uri)


def _size(repository: Any, path: str | None = None) -> int:
    return sum(_size(repository, entry.path) if entry.is_dir else entry.file_size or 0 for entry in repository.list_artifacts(path))


def _clear(repository: Any, uri: str) -> None:
    try:
        repository.delete_artifacts()
    except Exception as error:  # each artifact store raises errors of its own
        raise InputError(f"cannot be deleted: {error}", where=uri, remedy="give the right to delete there, and run it again") from error
    if uri.startswith("file:") or "://" not in uri:
        with contextlib.suppress(OSError):
            Path(local_file_uri_to_path(uri)).parent.rmdir()  # MLflow leaves the folder named by the run
