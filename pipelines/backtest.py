"""``python -m pipelines.backtest``: every forecaster on any series, by rolling origin.

The JSON::

    {"n_origins": 20, "n_series": 8, "n_rows": ..., "freq": "10min", "horizon": 18, "season_length": 144, "origin_step": 77, ...,
     "reference": {"name": "persistence", "wql": {"persistence": ..., "seasonal_naive": ...}},
     "notes": [...],
     "forecasters": {
       "lightgbm": {
         "status": "ok",
         "wql": ..., "sql": ..., "mase": ..., "coverage80": ..., "width80": ..., "fit_s": ..., "predict_s": ...,
         "overall": {the same, and width80_relative, peak_error, ramp_error, rows, update_s},
         "series": {"<unique_id>": {wql, sql, mase, coverage80, width80, ..., fit_s, predict_s}},
         "by_horizon": [{"step": 1, wql, ...}, ...],
         "calibration": {...}, "skill": {wql_ratio, wql_ratio_low, wql_ratio_high, sql_ratio, mase_ratio},
         "fits": 1, "fallbacks": {"<unique_id>": "reason"}},
       "prophet": {"status": "failed", "error": "...", "wql": null, ...}}}

Seconds are wall clock over all origins; per series they are an equal share of the forecaster's. A metric that is not defined (no scale, no
observed row) is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from models.backtest import NAIVES, BacktestConfig, BacktestResult, run_backtest
from models.catalog import FORECASTERS, forecaster_class
from models.series import infer_freq, validate_series
from pipelines.cli import build, hydra_command
from pipelines.workspace import write_json
from telemetry.errors import InputError

READERS = {".parquet": pd.read_parquet, ".csv": lambda file: pd.read_csv(file, dtype={"unique_id": str})}


def read_series(file: Path) -> pd.DataFrame:
    """Frame of a Parquet or CSV file (CSV also gzipped).

    Raises:
        InputError: no such file, another format, or not readable.
    """
    kind = next((s for s in reversed(file.suffixes) if s in READERS), "")
    if not file.is_file():
        raise InputError("no such file", where=str(file), remedy="pass series=FILE.parquet or series=FILE.csv")
    if not kind:
        raise InputError(f"unknown format {file.suffix!r}", where=str(file), allowed=", ".join(READERS))
    try:
        return READERS[kind](file)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {str(error).splitlines()[0]}", where=str(file), remedy="check that the file is whole") from error


def member_options(node: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options by forecaster name of the config group ``forecaster``: one member (it has a ``name``) or ``all`` (one key per member)."""
    members = [node] if "name" in node else list(node.values())
    return {member["name"]: {k: v for k, v in member.items() if k != "name"} for member in members}


def chosen_members(names: list[str] | str | None, options: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Options of the forecasters asked for; all that are configured when none is named.

    Raises:
        InputError: an unknown name, or none at all.
    """
    if names is None:
        return dict(options)
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise InputError("no forecaster is named", where="forecasters", allowed=", ".join(FORECASTERS))
    for name in wanted:
        forecaster_class(name)
    return {name: options.get(name, {}) for name in wanted}


def score_table(result: BacktestResult) -> str:
    """The overall metrics as text, best WQL first, failures last."""
    lines = [
        f"{'forecaster':<22}{'WQL':>9}{'SQL':>9}{'MASE':>9}{'cover80':>9}{'width80':>11}{'fit s':>9}{'predict s':>11}{'WQL/naive':>11}"
    ]
    done = [s for s in result.scores.values() if s.error is None]
    for s in sorted(done, key=lambda s: s.overall["wql"]):
        o = s.overall
        lines.append(
            f"{s.name:<22}{o['wql']:>9.4f}{o['sql']:>9.3f}{o['mase']:>9.3f}{o['coverage80']:>9.3f}{o['width80']:>11.4g}"
            f"{s.fit_s:>9.2f}{s.predict_s:>11.2f}{s.skill.get('wql_ratio', float('nan')):>11.3f}"
        )
    lines += [f"{name:<22}failed: {error}" for name, error in result.failed.items()]
    return "\n".join(lines)


@hydra_command("backtest_command")
def main(cfg: DictConfig) -> int:
    """Read, score, print, write."""
    if OmegaConf.is_missing(cfg, "series"):
        raise InputError("no series given", where="series", remedy="pass series=FILE.parquet with unique_id, ds, y; --help tells more")
    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    config = replace(build(BacktestConfig, cfg.backtest, "backtest"), horizon=_count(cfg, "horizon"), origins=_count(cfg, "origins"))
    members = chosen_members(settings["forecasters"], member_options(settings["forecaster"]))
    file = Path(str(settings["series"]))
    frame = read_series(file)
    freq = str(settings["freq"]) if settings["freq"] is not None else infer_freq(_timed(frame, file))
    result = _run(frame, freq, members, config)
    size = f"{result.report.series} series, {result.report.rows} rows at {freq}"
    print(f"{file}: {size}; {result.n_origins} origins, {result.plan.step} steps apart")
    print(score_table(result))
    print(f"reference: {result.reference or 'none'}; scored on the same windows")
    for note in result.notes:
        print(f"note: {note}")
    for name, scored in result.scores.items():
        if scored.fallbacks:
            reason = next(iter(scored.fallbacks.values()))
            print(f"note: {name} fell back on empirical persistence for {len(scored.fallbacks)} series: {reason}")
    if settings["out"] is not None:
        write_json(Path(str(settings["out"])), result.to_json())
        print(f"wrote {settings['out']}")
    return 1 if result.failed else 0


def _run(frame: pd.DataFrame, freq: str, members: dict[str, dict[str, Any]], config: BacktestConfig) -> BacktestResult:
    with tqdm(total=None, desc="backtest", unit="origin", leave=False) as bar:

        def progress(name: str, done: int, total: int) -> None:
            bar.total = total * len({*NAIVES, *members})
            bar.set_description(name, refresh=False)
            bar.update()

        return run_backtest(frame, freq, members, config, progress)


def _timed(frame: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Frame with readable times, for finding the frequency; the smallest grid checks names, times and numbers."""
    return validate_series(frame, "1ns", where=str(file))[0]


def _count(cfg: DictConfig, key: str) -> int:
    value = cfg[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{value!r}", where=key, allowed="a whole number from 1")
    return value


if __name__ == "__main__":
    main()
