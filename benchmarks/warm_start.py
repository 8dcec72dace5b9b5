"""Warm against cold starts of the learners on public demand: loss on held-out windows, and seconds of fitting.

At each of a few times a model that was fitted a week earlier is retrained: not at all (only updated), cold, and warm from its weights.
All are then walked through the same windows of the following four days, which none was fitted on.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.base import Forecaster
from models.catalog import make_forecaster
from pipelines.stages.incumbent import replay
from pipelines.stages.real_traces import public_series
from pipelines.workspace import write_json

TRACES = Path(os.environ.get("JOULEWISE_TRACES", Path(__file__).parents[2] / "shared" / "traces"))
FREQ, HORIZON, SEASON = "10min", 18, 144
AGE, AHEAD, APART = pd.Timedelta(days=7), pd.Timedelta(days=4), pd.Timedelta(days=3)
LEARNERS = ("lightgbm", "lstm", "ensemble")


def windows_of(series: pd.DataFrame, begin: pd.Timestamp, count: int) -> pd.DataFrame:
    """Rows ``unique_id, ds, y, issued_at, part`` of ``count`` windows of the days after ``begin``."""
    step = pd.Timedelta(FREQ)
    last = AHEAD - HORIZON * step
    parts = []
    for place in range(count):
        issued = begin + (last * place / (count - 1)).floor(FREQ)
        rows = series[(series["ds"] > issued) & (series["ds"] <= issued + HORIZON * step)]
        parts.append(rows.assign(issued_at=issued, part="test"))
    return pd.concat(parts, ignore_index=True)


def one_time(name: str, series: pd.DataFrame, begin: pd.Timestamp, count: int, folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Loss and seconds of the kept, the cold and the warm model."""
    common = {"freq": FREQ, "horizon": HORIZON, "season_length": SEASON, "seed": seed}
    known = series[series["ds"] <= begin]
    make_forecaster(name, **common).fit(series[series["ds"] <= begin - AGE]).save(folder)

    def fitted(**options: Any) -> tuple[Forecaster, float]:
        begun = time.process_time()
        model = make_forecaster(name, **common, **options).fit(known)
        return model, time.process_time() - begun

    earlier = type(make_forecaster(name, **common)).load(folder)
    models = {"kept": (earlier, begin - AGE, 0.0)}
    for way, options in (("cold", {}), ("warm", {"warm_start": str(folder)})):
        model, seconds = fitted(**options)
        models[way] = (model, begin, seconds)
    windows = windows_of(series, begin, count)
    return {
        way: {"loss": float(replay(model, series, windows, until).sum()), "fit_cpu_s": seconds}
        for way, (model, until, seconds) in models.items()
    }


def measure(times: int, count: int, seed: int) -> dict[str, Any]:
    """Figures by learner and way: loss relative to the cold model's (geometric mean over times), and processor seconds of a fit."""
    frame, _ = public_series(TRACES, "workload", FREQ)
    series = frame[frame["unique_id"].str.startswith("gpu_demand")]
    first, last = series["ds"].min(), series["ds"].max()
    begins = [(last - AHEAD - place * APART).floor(FREQ) for place in range(times)]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in LEARNERS:
            for begin in begins:
                found = one_time(name, series, begin, count, Path(scratch) / f"{name}-{begin:%Y%m%d}", seed)
                rows += [{"learner": name, "at": str(begin), "way": way, **numbers} for way, numbers in found.items()]
                print(name, begin, {way: (round(n["loss"], 1), round(n["fit_cpu_s"], 1)) for way, n in found.items()}, flush=True)
    table = pd.DataFrame(rows)
    cold = table[table["way"] == "cold"].set_index(["learner", "at"])["loss"]
    table["ratio"] = table["loss"] / cold.loc[list(zip(table["learner"], table["at"], strict=True))].to_numpy()
    means = table.groupby(["learner", "way"]).agg(
        ratio=("ratio", lambda values: float(np.exp(np.log(values).mean()))),
        worst=("ratio", "max"),
        best=("ratio", "min"),
        fit_cpu_s=("fit_cpu_s", "mean"),
    )
    return {
        "series": int(series["unique_id"].nunique()),
        "days": int((last - first).days),
        "times": times,
        "windows": count,
        "figures": means.reset_index().to_dict("records"),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/warm_start.json"))
    arguments = parser.parse_args()
    result = measure(arguments.times, arguments.windows, arguments.seed)
    print(pd.DataFrame(result["figures"]).to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
