"""Forecasters of this project beside public libraries, on the same rolling origins: prints tables, draws two charts, writes JSON.

data sets   helios, servegen, azure_vm, nab, sample_power, and helios_running (queue as a past covariate; not in the means)
members     every name of models/catalog.py
peers       auto_ets, auto_theta, mstl (statsforecast), mlforecast_lightgbm, mlforecast_quantile, in this environment
            (pip install 'joulewise[bench]'); with the other kind of intervals, by name: auto_ets_native, auto_theta_native, mstl_conformal
outside     nhits, patchtst (neuralforecast) and autogluon (AutoGluon-TimeSeries), each in an environment of its own that
            --peer-python names; without it they are left out

python -m venv ../peers && ../peers/bin/pip install torch==2.13.0 neuralforecast
python -m benchmarks.forecast --only nhits patchtst --peer-python ../peers/bin/python

10-minute steps, 18 of them ahead, nine quantiles, 48 origins over the last 30 % of each history, a step apart that shares no factor
with the day. Global models are fitted once before the first origin and then shown the new rows; statsforecast's models, which have no other
documented way that keeps their quality, are refitted at every origin. CPU seconds are user and system time of all threads and
children, one thread each; libraries are imported before the clock starts. A result that is on disk and came from the same data, settings,
code and package versions is not computed again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import warnings
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.forecast_data import DATA_SETS, FREQ, load_data, traces_root
from benchmarks.forecast_outside import OUTSIDE, run_outside
from benchmarks.forecast_peers import PEERS, VARIANTS
from benchmarks.forecast_report import draw, lines_of, summarise, write_table
from benchmarks.forecast_runs import backtest_config, run_one
from models.backtest import NAIVES, BacktestConfig
from models.catalog import FORECASTERS
from pipelines.workspace import write_json
from telemetry.errors import InputError

NAMES = (*FORECASTERS, *PEERS, *VARIANTS, *OUTSIDE)
DEFAULT_OUT = Path("outputs/benchmarks/forecast")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """One data set and one forecaster, with what a worker process needs."""

    data: str
    name: str
    out: Path
    config: BacktestConfig
    python: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.forecast", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=DATA_SETS, default=list(DATA_SETS), metavar="SET", help=", ".join(DATA_SETS))
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, metavar="NAME", help=f"forecasters to run beside the naives: {', '.join(NAMES)}"
    )
    parser.add_argument("--quick", action="store_true", help="8 origins, and few training steps of the neural peers")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="(data set, forecaster) pairs at a time")
    parser.add_argument("--refit-every", type=int, default=0, help="origins between two fits of the global models; 0 fits once")
    parser.add_argument("--peer-python", action="append", default=[], metavar="[NAME=]PYTHON", help="interpreter that has outside peers")
    parser.add_argument("--time-limit-s", type=int, default=300, help="AutoGluon's time_limit for a fit")
    parser.add_argument("--fresh", action="store_true", help="compute also what is on disk")
    parser.add_argument("--report", action="store_true", help="report what is on disk, compute nothing")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="write the table between the markers of this Markdown page")
    parser.add_argument("--out", type=Path, help=f"folder of results; default {DEFAULT_OUT}, with --quick {DEFAULT_OUT}_quick")
    return parser


def interpreters(given: list[str]) -> dict[str, str]:
    """Interpreter by outside peer; one without a name is for all that no other names.

    Raises:
        InputError: an unknown peer, or no such file.
    """
    found: dict[str, str] = {}
    for entry in sorted(given, key=lambda text: "=" in text):
        name, _, python = entry.rpartition("=")
        if name and name not in OUTSIDE:
            raise InputError(f"unknown peer '{name}'", where="--peer-python", allowed=", ".join(OUTSIDE))
        if not Path(python).is_file():
            raise InputError(f"no such file '{python}'", where="--peer-python", allowed="an interpreter, such as ../peers/bin/python")
        # not resolved: an interpreter of a virtual environment is a link, and knows its packages by the place of the link
        found |= dict.fromkeys([name] if name else OUTSIDE, os.path.abspath(python))
    return found


def chosen_names(only: list[str] | None, python: dict[str, str]) -> list[str]:
    """Forecasters to run: the naives first, since everything is held against them.

    Raises:
        InputError: an outside peer is asked for without an interpreter.
    """
    names = list(only) if only else [*FORECASTERS, *PEERS, *python]
    lost = [name for name in names if name in OUTSIDE and name not in python]
    if lost:
        raise InputError(f"{lost[0]} has no interpreter", where="--only", remedy=f"--peer-python {lost[0]}=PYTHON (see --help)")
    return list(dict.fromkeys([*NAIVES, *names]))


def run_task(task: Task) -> tuple[str, str, str | None, float]:
    """Data set, forecaster, error if any, and wall seconds."""
    warnings.simplefilter("ignore")
    begin = time.perf_counter()
    series = load_data(task.data, traces_root(), task.out / "made")
    if task.python:
        record = run_outside(task.out, task.data, series, FREQ, task.name, task.python, task.config, task.options, _silent, task.fresh)
    else:
        record = run_one(task.out, task.data, series, FREQ, task.name, task.config, task.fresh)
    return task.data, task.name, record["error"], time.perf_counter() - begin


def load_libraries() -> None:
    """Imports that forecasters do late: they belong to no forecaster's fit."""
    import importlib

    for module in ("lightgbm", "mlforecast", "prophet", "statsforecast", "statsforecast.models", "statsmodels.api", "torch"):
        try:
            importlib.import_module(module)
        except ImportError:
            continue  # its forecaster says so itself
    import torch

    torch.set_num_threads(1)


def play(tasks: list[Task], jobs: int) -> None:
    """All tasks, ``jobs`` at a time, each result stored as it comes."""
    for variable in THREADS:
        os.environ.setdefault(variable, "1")
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(max_workers=jobs, mp_context=context, initializer=load_libraries) as pool,
        tqdm(total=len(tasks), unit="run", desc="forecast", dynamic_ncols=True) as bar,
    ):
        running: dict[Future[tuple[str, str, str | None, float]], Task] = {pool.submit(run_task, task): task for task in tasks}
        for future in as_completed(running):
            data, name, error, seconds = future.result()
            bar.update()
            bar.set_postfix_str(f"{data}, {name}")
            if seconds > 1 or error:
                bar.write(f"{data}, {name}: {'failed: ' + error if error else f'{seconds:.0f} s'}", file=sys.stderr)


def usable_sets(names: list[str]) -> list[str]:
    """Data sets that can be loaded here; the others are told and left out."""
    there = [name for name in names if not DATA_SETS[name].public or traces_root().is_dir()]
    for name in sorted(set(names) - set(there)):
        print(f"{name}: left out, no public traces in {traces_root()} (set JOULEWISE_TRACES)", file=sys.stderr)
    return there


def tasks_of(options: argparse.Namespace, sets: list[str], names: list[str], python: dict[str, str]) -> list[Task]:
    """What is to be run, forecaster by forecaster."""
    config = backtest_config(options.quick, options.refit_every)
    steps = {"max_steps": 50} if options.quick else {}
    tuned: dict[str, dict[str, Any]] = {"nhits": steps, "patchtst": steps, "autogluon": {"time_limit_s": options.time_limit_s}}
    return [Task(data, name, options.out, config, python.get(name), tuned.get(name, {}), options.fresh) for name in names for data in sets]


def _silent(name: str, done: int, total: int) -> None:
    """The bar counts whole runs."""


def main() -> int:
    options = arguments().parse_args()
    options.out = options.out or (DEFAULT_OUT.with_name("forecast_quick") if options.quick else DEFAULT_OUT)
    command = "python -m benchmarks.forecast" + "".join(f" {word}" for word in sys.argv[1:] if word not in ("--report", "--fresh"))
    try:
        if options.jobs < 1:
            raise InputError(f"{options.jobs}", where="--jobs", allowed="at least 1")
        sets, python = usable_sets(options.data), interpreters(options.peer_python)
        names = list(NAMES) if options.report else chosen_names(options.only, python)
        if not options.report:
            for name in sets:  # what has to be made is made once, before the workers look for it
                load_data(name, traces_root(), options.out / "made")
            play(tasks_of(options, sets, names, python), options.jobs)
        summary = summarise(options.out, sets, list(NAMES), [*PEERS, *VARIANTS, *OUTSIDE])
        if options.docs:
            write_table(options.docs, summary, command)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(lines_of(summary)))
    write_json(options.out / "summary.json", summary)
    for path in draw(summary, options.out):
        print(f"written: {path}")
    print(f"written: {options.out / 'summary.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
