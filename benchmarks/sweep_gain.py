"""``python -m benchmarks.sweep_gain``: what a sweep of LightGBM brings on windows that took no part in it.

Searches the shipped space on the validation windows of a public data set, then scores the configuration as it is and the best of the search
on the test windows, which no trial saw. Prints and writes as JSON both WQL, their ratio with the 95 % interval of a bootstrap over windows,
and the same ratio on the windows that were searched.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.forecast_data import DATA_SETS, FREQ, traces_root
from models.backtest import run_backtest
from models.backtest_plan import BacktestConfig, plan_origins
from models.backtest_scores import skill
from models.engine import make_engine
from models.series import default_season_length
from models.series_store import frame_batches, read_store
from models.validation import validation_of
from pipelines.cli import compose_config
from pipelines.sweeping.scoring import Question, run_trial
from pipelines.sweeping.space import current, space_of
from pipelines.sweeping.study import TrialStore, open_storage
from pipelines.workspace import write_json
from registry.provenance import frame_hash

GROUP = "forecaster.lightgbm."


def gain(name: str, trials: int, workers: int, origins: int, calibration: int, seed: int) -> dict[str, Any]:
    """Search on one data set and judge on its test windows."""
    begun = time.perf_counter()
    series = DATA_SETS[name].load(traces_root(), Path(tempfile.gettempdir()))
    config = BacktestConfig(origins=origins, calibration_origins=calibration, seed=seed)
    plan = plan_origins(read_store(frame_batches(series), FREQ), config, default_season_length(FREQ))
    family = validation_of(series, FREQ, config, plan)
    cfg = compose_config("sweep", ["target=workload", "forecaster.lightgbm.threads=1", f"seed={seed}"])
    space, raw = space_of(cfg), OmegaConf.to_container(cfg, resolve=True)
    question = Question(space, raw, Path(), {name: family}, {name: {}}, family.origins, {name: frame_hash(series)})
    with tempfile.TemporaryDirectory() as folder, make_engine("local", workers) as engine:
        storage = open_storage(f"sqlite:///{folder}/optuna.db")
        store = TrialStore(storage, name, space, {}, seed=seed, owner="benchmark", pruner="median")
        while batch := store.propose(2, trials, current(raw, space), question.steps):
            for place, outcome in engine.map(run_trial, [task for _, task in batch], question):
                store.tell(batch[place][0], outcome)
        finished, best = store.finished(), store.best()
        searched_s = time.perf_counter() - begun
    values = {key.removeprefix(GROUP): value for key, value in space.read(best.params).items()}
    common = raw["forecaster"]["lightgbm"]
    common = {key: value for key, value in common.items() if key != "name"}
    scores = {}
    for kind, options in (("as configured", common), ("best of the sweep", {**common, **values})):
        scores[kind] = run_backtest(series, FREQ, {"lightgbm": options}, config, plan=plan).scores["lightgbm"]
    tuned, plain = scores["best of the sweep"], scores["as configured"]
    held_out = skill(tuned, plain, seed=seed)
    return {
        "data_set": name,
        "trials": len(finished),
        "pruned": sum(trial.state.name == "PRUNED" for trial in finished),
        "seconds": searched_s,
        "origins": {"validation": family.origins, "test": len(plan.test)},
        "values": values,
        "wql": {kind: score.overall["wql"] for kind, score in scores.items()},
        "ratio_validation": tuned.calibration["wql"] / plain.calibration["wql"],
        "ratio_test": held_out["wql_ratio"],
        "ratio_test_low": held_out["wql_ratio_low"],
        "ratio_test_high": held_out["wql_ratio_high"],
        "coverage80": {kind: score.overall["coverage80"] for kind, score in scores.items()},
    }


def main() -> None:
    """Search, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["helios"], choices=list(DATA_SETS))
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--origins", type=int, default=20)
    parser.add_argument("--calibration", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/sweep_gain.json"))
    arguments = parser.parse_args()
    rows = []
    print(f"{'data':<16}{'trials':>7}{'pruned':>7}{'s':>7}{'validation':>12}{'held out':>10}  95 % interval")
    for name in arguments.data:
        row = gain(name, arguments.trials, arguments.workers, arguments.origins, arguments.calibration, arguments.seed)
        rows.append(row)
        interval = f"[{row['ratio_test_low']:.3f}, {row['ratio_test_high']:.3f}]"
        numbers = f"{row['trials']:>7}{row['pruned']:>7}{row['seconds']:>7.0f}{row['ratio_validation']:>12.3f}{row['ratio_test']:>10.3f}"
        print(f"{name:<16}{numbers}  {interval}  {row['values']}", flush=True)
    write_json(arguments.out, rows)


if __name__ == "__main__":
    main()
