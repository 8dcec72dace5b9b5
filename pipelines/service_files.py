"""``services=FILE.yaml``: services and the series of their request rates.

.. code-block:: yaml

    rates: rates.csv                 # time, service, requests_per_s; beside this file
    services:
      chat: {mean_service_s: 2.0, objective_s: 10, warm_replicas: 1}

In place of a file ``rates`` may name a public trace: ``rates: {trace: servegen_m_small, start: 2026-01-05}``; with ``repeat: true``
(also of ``{table: rates.csv, repeat: true}``) series are said again as often as the windows take.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from envs.services import ServicePlan, ServiceSpec, check_rates, plan_services, repeated
from pipelines.cli import CONF_DIR, build
from telemetry.errors import InputError
from telemetry.readers.public_requests import REQUEST_TRACES, read_request_rates
from telemetry.tables import read_table

TRACE_KEYS = ("trace", "start", "step_s", "path", "repeat")
TABLE_KEYS = ("table", "repeat")


def load_services(path: str, traces: str, begin: pd.Timestamp, end: pd.Timestamp) -> tuple[ServicePlan, ...]:
    """Services of a YAML file with their replicas planned.

    Args:
        begin, end: the time that repeated series have to cover.
        traces: folder of the public traces, for rates that name one without a path of its own.

    Raises:
        InputError: a file that is missing or wrong.
    """
    values = _yaml(Path(path), "a YAML file with rates and services")
    if not isinstance(values, dict) or set(values) != {"rates", "services"}:
        keys = ", ".join(map(str, values)) if isinstance(values, dict) else repr(values)
        raise InputError(f"keys {keys}", where=path, allowed="rates and services")
    given = values["services"]
    if not isinstance(given, dict) or not given:
        raise InputError(f"services: {given!r}", where=path, allowed="a mapping of names to services")
    specs = []
    for name, keys in given.items():
        where = f"{path}, service '{name}'"
        if not isinstance(keys, dict) or "name" in keys:
            raise InputError(f"{keys!r}", where=where, allowed="a mapping of the service's keys, without name")
        specs.append(build(ServiceSpec, {"name": str(name), **keys}, where))
    given = {"table": values["rates"]} if isinstance(values["rates"], str) else values["rates"]
    rates = check_rates(_rates(given, Path(path), traces), f"{path}, rates")
    repeat = given.get("repeat", False)
    if not isinstance(repeat, bool):
        raise InputError(f"repeat {repeat!r}", where=f"{path}, rates", allowed="true, false")
    if repeat:
        rates = repeated(rates, begin, end)
    return plan_services(specs, rates, f"{path}, rates")


def _rates(given: Any, path: Path, traces: str) -> pd.DataFrame:
    where = f"{path}, rates"
    if isinstance(given, dict) and "table" in given and set(given) <= set(TABLE_KEYS):
        return read_table(path.parent / str(given["table"]))
    if not isinstance(given, dict) or not {"trace", "start"} <= set(given) <= set(TRACE_KEYS):
        allowed = f"a CSV or Parquet file, {', '.join(TABLE_KEYS)}, or {', '.join(TRACE_KEYS)} (trace and start at least)"
        raise InputError(f"{given!r}", where=where, allowed=allowed)
    name = str(given["trace"])
    if name not in REQUEST_TRACES:
        raise InputError(f"no request trace '{name}'", where=where, allowed=", ".join(REQUEST_TRACES))
    step_s = given.get("step_s")
    if step_s is not None and (isinstance(step_s, bool) or not isinstance(step_s, int) or step_s < 1):
        raise InputError(f"step_s {step_s!r}", where=where, allowed="whole seconds from 1")
    try:
        start = pd.Timestamp(str(given["start"]))
    except ValueError as error:
        raise InputError(f"start {given['start']!r}", where=where, allowed="a time, ISO 8601") from error
    root = Path(str(given.get("path") or traces))
    parts = _yaml(CONF_DIR / "trace" / "requests" / f"{name}.yaml", "a trace")["fetch"]
    return read_request_rates(name, [root / part["file"] for part in parts], start, step_s)


def _yaml(path: Path, words: str) -> Any:
    if not path.is_file():
        raise InputError("no such file", where=str(path), allowed=words)
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"not YAML: {' '.join(str(error).split())}", where=str(path)) from error
