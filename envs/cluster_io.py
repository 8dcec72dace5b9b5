"""Read a cluster description from YAML: a name of ``conf/cluster`` or a file of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from envs.cluster import DEFAULT_OBJECTIVES, ClassObjective, ClusterSpec, Maintenance, PoolSpec, SiteSpec
from envs.power.curves import CurvePoint, checked_points, read_curves
from telemetry.errors import InputError

T = TypeVar("T", SiteSpec, PoolSpec, ClassObjective, Maintenance, CurvePoint)


def load_cluster(name_or_path: str | Path, conf_dir: Path | str = "conf") -> ClusterSpec:
    """A cluster by name (``<conf_dir>/cluster/<name>.yaml``) or by path.

    Raises:
        InputError: no such name or file, YAML that does not parse, unknown or missing keys, values of another type.
    """
    path = Path(name_or_path)
    folder = Path(conf_dir) / "cluster"
    if path.suffix not in (".yaml", ".yml"):
        path = folder / f"{name_or_path}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise InputError(f"no cluster '{name_or_path}'", where=str(path), allowed=f"{names}, or the path of a YAML file")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {' '.join(str(error).split())}", where=str(path)) from error
    return cluster_from_mapping(values, where=str(path), default_name=path.stem, folder=path.parent)


def cluster_from_mapping(values: Any, where: str, default_name: str = "cluster", folder: Path | None = None) -> ClusterSpec:
    """A cluster from plain mappings and lists (YAML, or a composed config as a container).

    ``objectives`` may give only the classes and figures that differ from the defaults. ``curves`` is the path of a CSV of one's own curves,
    looked for in ``folder``, then in the current one, or its rows.
    """
    allowed = [f.name for f in fields(ClusterSpec)]
    _check_keys(values, allowed, ["sites", "pools"], where)
    extra: dict[str, Any] = {}
    if values.get("level_fractions") is not None:
        levels = _list(values["level_fractions"], f"{where}, level_fractions")
        extra["level_fractions"] = tuple(_number(level, f"{where}, level_fractions") for level in levels)
    for key in ("transfer_gbps", "transfer_kwh_per_gib"):
        if values.get(key) is not None:
            extra[key] = _typed(ClusterSpec, key, values[key], f"{where}, {key}")
    if values.get("maintenance"):
        items = _list(values["maintenance"], f"{where}, maintenance")
        extra["maintenance"] = tuple(_entry(Maintenance, item, f"{where}, maintenance[{i}]") for i, item in enumerate(items))
    if values.get("curves"):
        extra["curves"] = _curves(values["curves"], f"{where}, curves", folder)
    return ClusterSpec(
        name=str(values.get("name") or default_name),
        sites=tuple(_entry(SiteSpec, item, f"{where}, sites[{i}]") for i, item in enumerate(_list(values["sites"], f"{where}, sites"))),
        pools=tuple(_entry(PoolSpec, item, f"{where}, pools[{i}]") for i, item in enumerate(_list(values["pools"], f"{where}, pools"))),
        objectives=_objectives(values.get("objectives") or {}, f"{where}, objectives"),
        **extra,
    )


def _objectives(values: Any, where: str) -> dict[str, ClassObjective]:
    _check_keys(values, list(DEFAULT_OBJECTIVES), [], where)
    objectives = dict(DEFAULT_OBJECTIVES)
    for name, changes in values.items():
        _check_keys(changes, [f.name for f in fields(ClassObjective)], [], f"{where}.{name}")
        typed = {key: _typed(ClassObjective, key, value, f"{where}.{name}.{key}") for key, value in changes.items()}
        objectives[name] = replace(objectives[name], **typed)
    return objectives


def _curves(given: Any, where: str, folder: Path | None) -> tuple[CurvePoint, ...]:
    if isinstance(given, str):
        beside = None if folder is None else folder / given
        return read_curves(beside if beside is not None and beside.is_file() else given)
    if not isinstance(given, list | tuple):
        raise InputError(f"{given!r}", where=where, allowed="the path of a CSV, or a list of its rows")
    return checked_points([_entry(CurvePoint, row, f"{where}[{index}]") for index, row in enumerate(given)], where)


def _entry(kind: type[T], values: Any, where: str) -> T:
    names = [f.name for f in fields(kind)]
    _check_keys(values, names, [f.name for f in fields(kind) if f.default is MISSING], where)
    return kind(**{key: _typed(kind, key, value, f"{where}.{key}") for key, value in values.items()})


def _check_keys(values: Any, allowed: list[str], required: list[str], where: str) -> None:
    if not isinstance(values, Mapping):
        raise InputError(f"{values!r} is no mapping", where=where, allowed=f"keys {', '.join(allowed)}")
    unknown = sorted(str(key) for key in values if key not in allowed)
    if unknown:
        raise InputError(f"unknown key {', '.join(unknown)}", where=where, allowed=", ".join(allowed))
    missing = [key for key in required if key not in values]
    if missing:
        raise InputError(f"missing key {', '.join(missing)}", where=where, allowed=", ".join(allowed))


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{value!r} is no list", where=where, allowed="a list")
    return list(value)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{value!r}", where=where, allowed="a number")
    return float(value)


def _typed(kind: type, key: str, value: Any, where: str) -> Any:
    hint = get_type_hints(kind)[key]
    if hint is float:
        number = _number(value, where)
        if not 0 <= number < float("inf"):
            raise InputError(f"{value!r}", where=where, allowed="a finite number, 0 or more")
        return number
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise InputError(f"{value!r}", where=where, allowed=f"a value of type {hint.__name__}")
    if hint is int and value < 0:
        raise InputError(f"{value!r}", where=where, allowed="0 or more")
    return value
