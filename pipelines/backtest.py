"""``python -m pipelines.backtest``: every forecaster on any series, by rolling origin.

The JSON::

    {"n_origins": 20, "n_series": 8, "n_rows": ..., "freq": "10min", "horizon": 18, "season_length": 144, "origin_step": 77, ...,
     "reference": {"name": "persistence", "wql": {"persistence": ..., "seasonal_naive": ...}},
     "notes": [...], "diagnosis": {counts, summary, findings: [{unique_id, finding, where, size, detail, action}]},
     "forecasters": {
       "lightgbm": {
         "status": "ok",
         "wql": ..., "sql": ..., "mase": ..., "coverage80": ..., "width80": ..., "fit_s": ..., "predict_s": ...,
         "overall": {the same, and width80_relative, peak_error, ramp_error, rows, update_s},
         "series": {"<unique_id>": {wql, sql, mase, coverage80, width80, ..., fit_s, predict_s}},
         "by_horizon": [{"step": 1, wql, ...}, ...],
         "calibration": {...}, "skill": {wql_ratio, wql_ratio_low, wql_ratio_high, sql_ratio, mase_ratio},
         "coverage80_by_band": {near, middle, far}, "crossings": 0, "cpu_s": {fit, update, predict},
         "fits": 1, "fallbacks": {"<unique_id>": "reason"}},
       "prophet": {"status": "failed", "error": "...", "wql": null, ...}}}

Seconds are wall clock over all origins, added up over chunks of series, so that more workers do not change them; ``cpu_s`` is the CPU's.
Per series they are an equal share of the forecaster's. ``coverage80_by_band`` is that of the near, middle and far third of the horizon,
``crossings`` the scored rows whose quantiles are out of order. A metric that is not defined (no scale, no observed row) is null.

Any number of series is read in batches, walked in chunks and scored where the chunks run: memory does not grow with the forecasts.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from models.backtest import NAIVES, backtest_key, run_backtest
from models.backtest_plan import BacktestConfig
from models.backtest_scores import BacktestResult
from models.catalog import FORECASTERS, forecaster_class
from models.diagnosis import Diagnosis, diagnose
from models.engine import Engine
from models.partial_results import PartialResults
from models.series_store import SeriesStore, read_store
from pipelines.cli import build, hydra_command, quiet_libraries
from pipelines.engine import EngineConfig
from pipelines.series_files import freq_of, series_batches
from pipelines.workspace import write_json
from telemetry.errors import InputError


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
    heads = f"{'forecaster':<22}{'WQL':>9}{'SQL':>9}{'MASE':>9}{'cover80':>9}{'width80':>11}"
    lines = [f"{heads}{'fit s':>9}{'predict s':>11}{'CPU s':>9}{'WQL/naive':>11}"]
    done = [s for s in result.scores.values() if s.error is None]
    for s in sorted(done, key=lambda s: s.overall["wql"]):
        o = s.overall
        lines.append(
            f"{s.name:<22}{o['wql']:>9.4f}{o['sql']:>9.3f}{o['mase']:>9.3f}{o['coverage80']:>9.3f}{o['width80']:>11.4g}"
            f"{s.fit_s:>9.2f}{s.predict_s:>11.2f}{sum(s.cpu_s.values()):>9.2f}{s.skill.get('wql_ratio', float('nan')):>11.3f}"
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
    engine = build(EngineConfig, settings["engine"], "engine").start(quiet_libraries)
    out, forecasts = (Path(str(settings[key])) if settings[key] is not None else None for key in ("out", "forecasts"))
    if forecasts and forecasts.exists():
        raise InputError("already there", where=str(forecasts), remedy="choose another folder for forecasts=, or remove it")
    file, work = Path(str(settings["series"])), Path(str(settings["work_dir"]))
    batches = series_batches(file)
    freq = str(settings["freq"]) if settings["freq"] is not None else freq_of(batches, file)
    work.mkdir(parents=True, exist_ok=True)
    store = read_store(batches, freq, where=str(file), folder=work)
    partials = PartialResults(work, backtest_key(store, freq, config))
    if not settings["resume"]:
        partials.forget()
    with engine:
        result = _run(store, freq, members, config, engine, partials, forecasts)
    fallbacks = {name: scored.fallbacks for name, scored in result.scores.items()}
    diagnosis = diagnose(store.panel(), freq, season_length=result.season_length, fallbacks=fallbacks)
    _print(file, result, diagnosis)
    if forecasts:
        publish_forecasts(partials, result, members, forecasts)
        print(f"wrote {forecasts}")
    if out:
        write_json(out, {**result.to_json(), "diagnosis": diagnosis.to_json()})
        print(f"wrote {out}")
    partials.forget()
    return 1 if result.failed else 0


def publish_forecasts(partials: PartialResults, result: BacktestResult, members: Mapping[str, Any], folder: Path) -> None:
    """Forecast files of all pieces, moved to ``folder/<forecaster>``; the folder appears whole."""
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{folder.name}.") as fresh:
        whole = Path(fresh) / "whole"
        for name in dict.fromkeys([*NAIVES, *members]):
            (whole / name).mkdir(parents=True)
            for file in partials.member(name, members.get(name, {})).forecast_files():
                shutil.move(file, whole / name / file.name)
        shutil.move(whole, folder)


def _print(file: Path, result: BacktestResult, diagnosis: Diagnosis) -> None:
    size = f"{result.report.series} series, {result.report.rows} rows at {result.freq}"
    print(f"{file}: {size}; {result.n_origins} origins, {result.plan.step} steps apart")
    print(score_table(result))
    print(f"reference: {result.reference or 'none'}; scored on the same windows")
    for note in result.notes:
        print(f"note: {note}")
    print("\n".join(diagnosis.lines()))


def _run(
    store: SeriesStore,
    freq: str,
    members: dict[str, dict[str, Any]],
    config: BacktestConfig,
    engine: Engine,
    partials: PartialResults,
    forecasts: Path | None,
) -> BacktestResult:
    done: dict[str, int] = {}
    with tqdm(total=None, desc="backtest", unit="origin", leave=False) as bar:

        def progress(name: str, pieces: int, total: int) -> None:
            bar.total = total * len({*NAIVES, *members})
            bar.set_description(name, refresh=False)
            bar.update(pieces - done.get(name, 0))
            done[name] = pieces

        keep = "files" if forecasts else "none"
        return run_backtest(store, freq, members, config, progress, engine=engine, partials=partials, forecasts=keep)


def _count(cfg: DictConfig, key: str) -> int:
    value = cfg[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{value!r}", where=key, allowed="a whole number from 1")
    return value


if __name__ == "__main__":
    main()
