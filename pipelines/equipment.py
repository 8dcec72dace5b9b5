"""What befalls and what is added to the windows of an evaluation: outages of nodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
from omegaconf import DictConfig

from envs.outages import check_outages, with_outages
from pipelines.trials import Trial
from telemetry.errors import InputError


def read_table(path: str) -> pd.DataFrame:
    """A CSV or Parquet table as it is.

    Raises:
        InputError: no such file, or one that cannot be read.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError("no such file", where=path, allowed="a CSV or Parquet file")
    try:
        return pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"cannot be read: {str(error).splitlines()[0]}", where=path, remedy="give a whole CSV or Parquet table") from error


def with_given_outages(cfg: DictConfig, trial: Trial) -> Trial:
    """The trial with maintenance and failures of its cluster, drawn by each seed, and those of ``outages=FILE``."""
    given = check_outages(read_table(str(cfg.outages)), trial.cluster, str(cfg.outages)) if cfg.outages else None
    windows = {seed: with_outages(tables, trial.cluster, seed, given) for seed, tables in trial.windows.items()}
    count = sum(len(table.outages) for tables in windows.values() for table in tables if table.outages is not None)
    failing = sum(pool.mtbf_hours > 0 for pool in trial.cluster.pools)
    if not (given is not None or failing or trial.cluster.maintenance):
        return trial
    sources = [f"{failing} pools with failures"] if failing else []
    sources += ["maintenance"] if trial.cluster.maintenance else []
    sources += [str(cfg.outages)] if given is not None else []
    return replace(
        trial, windows=windows, notes=[*trial.notes, f"outages: {count:,} in or after the windows of all seeds ({', '.join(sources)})"]
    )
