"""A month without a person: watch, drift, retrain, promote, a bad model planted, rollback; and the time line of it.

python -m benchmarks.month [--days 30] [--history-days 28] [--shift-day 8] [--bad-day 22] [--seed 0] [--traces DIR]
                           [--out outputs/month] [--image docs/images/month.png]

Philly's jobs (public) become the hourly GPU demand of its virtual clusters. A champion is trained on the days before the month. Then, day
by day and by the commands' own functions: forecasts every six hours (``pipelines.forecast``), one look (``pipelines.watch``), retraining
of what has a trigger (``pipelines.retrain``), gates, promotion. Two things are planted: from ``--shift-day`` on a new tenant doubles the
demand of half of the clusters by night; on ``--bad-day`` somebody registers a forecaster that was fitted on other hours' values, counted
three times, and puts it before gates with evidence that is not its own, as a broken pipeline would. Nothing is told to the commands.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from omegaconf import OmegaConf
from tqdm import tqdm

from benchmarks.forecast_data import traces_root
from models.catalog import make_forecaster
from pipelines.cli import compose_config, quiet_libraries
from pipelines.forecast import forecast_config
from pipelines.forecast import run_once as forecast_once
from pipelines.live.observations import from_lake
from pipelines.retrain import retrain_config, retrain_model
from pipelines.watch import run_once as watch_once
from pipelines.watching.settings import watch_config
from pipelines.watching.target import WatchReport
from pipelines.workspace import write_json
from registry.gates import StandIn, run_gates
from registry.manifest import Manifest
from registry.packaging import draft_package, register, seal_package
from registry.promotion import champion_version, history, submit
from registry.provenance import data_facts, environment
from registry.tracking import Tracking, open_tracking
from telemetry.readers.public_traces import read_philly_gavel

MODEL, TARGET, FREQ, HORIZON = "workload-forecaster", "workload", "1h", 6
START = pd.Timestamp("2017-10-02", tz="UTC")
SITES = ("west", "east")
WRONG_HOURS, WRONG_UNIT = 9, 3.0
COLOURS = {"train": "tab:green", "retrain": "tab:green", "planted": "tab:red", "rollback": "tab:purple", "watch": "tab:orange"}
# Blocks are six hours here, not three: less of them say what is normal.
WATCH_RULES = (
    "rules.loss.reference_blocks=16",
    "rules.coverage.reference_blocks=16",
    "rules.bias.reference_blocks=16",
)


@dataclass(frozen=True)
class Happening:
    """One line of the month's record."""

    at: str
    what: str
    text: str


@dataclass
class Month:
    """The world, its registry and what happened so far."""

    folder: Path
    days: int
    history_days: int
    seed: int
    happenings: list[Happening] = field(default_factory=list)
    served: list[tuple[pd.Timestamp, str]] = field(default_factory=list)

    @property
    def begin(self) -> pd.Timestamp:
        return START + pd.Timedelta(days=self.history_days)

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    def tracking(self) -> Tracking:
        return open_tracking(self.uri, f"{self.folder}/artifacts")

    def tell(self, at: pd.Timestamp, what: str, text: str) -> None:
        self.happenings.append(Happening(at.isoformat(), what, text))
        tqdm.write(f"{at:%m-%d %H:%M}  {what:<10} {text}")

    def registry(self) -> list[str]:
        return [f"registry.tracking_uri={self.uri}", f"registry.artifact_root={self.folder}/artifacts"]


def write_world(root: Path, month: Month, shift_day: int) -> None:
    """``jobs.csv`` and ``grid.csv``: Philly's jobs, and from ``shift_day`` of the month on those of a tenant who works by night."""
    jobs, _ = read_philly_gavel(
        root / "a_jobs/philly_gavel_seed0_vcs.parquet",
        root / "a_jobs/gavel_simulation_throughputs_isolated.parquet",
        start=START.tz_localize(None).isoformat(),
        max_duration_s=12 * 3600,
        request_seed=month.seed,
    )
    until = month.begin + pd.Timedelta(days=month.days)
    jobs = jobs[jobs["submit_time"] < until]
    sizes = jobs["team"].value_counts()
    jobs = jobs[jobs["team"].isin(sizes.index[:6])]
    table = jobs[["job_id", "submit_time", "duration_s", "gpus", "workers", "workload_class", "team", "project"]].assign(pool=jobs["team"])
    table = pd.concat([table, _new_tenant(table, month, shift_day)], ignore_index=True).sort_values("submit_time", ignore_index=True)
    ends = table["submit_time"] + pd.to_timedelta(table["duration_s"], unit="s")
    table["end_time"] = [moment.isoformat() for moment in ends.dt.floor("s")]
    table["start_time"] = table["submit_time"] = [moment.isoformat() for moment in table["submit_time"]]
    table.to_csv(month.folder / "jobs.csv", index=False)
    hours = [hour.isoformat() for hour in pd.date_range(START, until, freq="1h")]
    sites = [pd.DataFrame({"time": hours, "site": site, "price_usd_per_kwh": 0.05, "carbon_g_per_kwh": 300.0}) for site in SITES]
    pd.concat(sites).to_csv(month.folder / "grid.csv", index=False)


def _new_tenant(table: pd.DataFrame, month: Month, shift_day: int) -> pd.DataFrame:
    rng = np.random.default_rng(month.seed)
    pools = sorted(table["pool"].unique())[::2]
    begin, parts = month.begin + pd.Timedelta(days=shift_day), []
    hours = pd.date_range(begin, month.begin + pd.Timedelta(days=month.days), freq="1h", inclusive="left")
    for pool in pools:
        own = table[table["pool"] == pool]
        a_day = (own["duration_s"] * own["gpus"] * own["workers"]).sum() / 3600 / (month.history_days + month.days)
        for hour in hours:
            share = 2.0 if hour.hour < 12 else 0.3
            count = rng.poisson(max(a_day / 24 * share / 4, 0.5))
            for k in range(count):
                moment = hour + pd.Timedelta(seconds=int(rng.integers(3600)))
                parts.append(
                    (f"n-{pool}-{hour:%m%d%H}-{k}", moment, int(rng.integers(1800, 5400)), 4.0, 1, "training", "night", "night", pool)
                )
    return pd.DataFrame(
        parts, columns=["job_id", "submit_time", "duration_s", "gpus", "workers", "workload_class", "team", "project", "pool"]
    )


def retrained(month: Month, now: pd.Timestamp, *, force: bool = False) -> list[str]:
    """``python -m pipelines.retrain`` at ``now``; a line an attempt."""
    files = f"[{{path: {month.folder}/jobs.csv, reader: jobs_table}}, {{path: {month.folder}/grid.csv, reader: grid}}]"
    overrides = [
        "source=files",
        f"source.files={files}",
        f"lake.root={month.folder}/lake",
        "cluster=small",
        "target=workload",
        f"target.freq={FREQ}",
        f"target.horizon={HORIZON}",
        "target.season_length=24",
        "backtest=quick",
        "backtest.origins=20",
        "forecaster=empirical_persistence",
        "engine.workers=1",
        "reserve.required=false",
        f"state={month.folder}/retrain",
        f"triggers={month.folder}/triggers.jsonl",
        f"models={MODEL}",
        f"force={str(force).lower()}",
        f"now={now.tz_localize(None).isoformat()}",
        *month.registry(),
    ]
    done = retrain_model(retrain_config(compose_config("retrain", overrides)), MODEL)
    return [f"{outcome.action}: {outcome.reason}" for _, outcome, _ in done]


def forecast(month: Month, series: Path, now: pd.Timestamp) -> None:
    """``python -m pipelines.forecast`` at ``now``."""
    overrides = [
        f"targets={TARGET}",
        f"series={series}",
        f"out={month.folder}/live",
        f"state={month.folder}/live_state",
        f"now={now.tz_localize(None).isoformat()}",
        *month.registry(),
    ]
    forecast_once(forecast_config(compose_config("forecast", overrides)))


def watched(month: Month, series: Path, now: pd.Timestamp) -> tuple[list[WatchReport], list[str]]:
    """``python -m pipelines.watch`` at ``now``: reports, and lines of what was done."""
    overrides = [
        f"targets={TARGET}",
        f"series={series}",
        f"forecasts={month.folder}/live",
        f"live_state={month.folder}/live_state",
        f"state={month.folder}/watch_state",
        f"out={month.folder}/watch",
        f"triggers={month.folder}/triggers.jsonl",
        "late_steps=0",
        "rollback=true",
        *WATCH_RULES,
        f"now={now.tz_localize(None).isoformat()}",
        *month.registry(),
    ]
    raw: Any = OmegaConf.to_container(compose_config("watch", overrides), resolve=True)
    return watch_once(watch_config(raw))


def plant_bad_model(month: Month, truth: pd.DataFrame, now: pd.Timestamp) -> str:
    """Register what was fitted on other hours' values, three times over, with the word of a pipeline that lost its evidence."""
    tracking = month.tracking()
    known = truth[truth["ds"] <= now.tz_localize(None)]
    wrong = known.assign(y=known.groupby("unique_id")["y"].transform(lambda y: WRONG_UNIT * np.roll(y.to_numpy(), WRONG_HOURS)))
    model = make_forecaster("seasonal_naive", freq=FREQ, horizon=HORIZON, season_length=24, seed=month.seed).fit(wrong)
    expected = champion_version(tracking.client, MODEL)
    identity = Manifest(
        kind="forecaster",
        name="seasonal_naive",
        registered_name=MODEL,
        created=now.isoformat(),
        config={},
        layout={"freq": FREQ, "horizon": HORIZON, "series": sorted(known["unique_id"].unique())},
        data=data_facts(wrong),
        git={"commit": None, "dirty": None},
        environment=environment(),
        metrics={},
    )
    with tempfile.TemporaryDirectory(dir=month.folder) as scratch:
        example = wrong.groupby("unique_id").tail(3)
        draft = draft_package(Path(scratch) / "bad", identity, model.save, figures={}, input_example=example)
        verdicts = run_gates([StandIn()], {"stand_in": {"learned": None, "refusals": []}})
        seal_package(draft, verdicts)
        with tracking.run("a pipeline that lost its evidence") as run:
            version = register(run, draft.folder)
    return f"version {version}: " + submit(tracking.client, MODEL, version, expected_champion=expected, reason="planted").action


def play(root: Path, month: Month, shift_day: int, bad_day: int) -> pd.DataFrame:
    """The whole month; returns the blocks that watching judged, by champion."""
    write_world(root, month, shift_day)
    for line in retrained(month, month.begin, force=True):
        month.tell(month.begin, "train", line)
    truth = from_lake(f"{month.folder}/lake", TARGET, FREQ, START.tz_localize(None), 6)
    series = month.folder / "series.parquet"
    truth.to_parquet(series)
    month.tell(month.begin + pd.Timedelta(days=shift_day), "planted", "a new tenant works by night in half of the clusters")
    blocks: dict[str, pd.DataFrame] = {}
    for day in tqdm(range(month.days), desc="month", unit="day", dynamic_ncols=True):
        midnight = month.begin + pd.Timedelta(days=day)
        month.served.append((midnight, str(champion_version(month.tracking().client, MODEL))))
        for hour in range(0, 24, HORIZON):
            forecast(month, series, midnight + pd.Timedelta(hours=hour))
        now = midnight + pd.Timedelta(hours=23, minutes=59)
        if day == bad_day:
            month.tell(now, "planted", f"a bad model, {plant_bad_model(month, truth, now)}")
            continue
        reports, done = watched(month, series, now)
        for report in reports:
            blocks[report.version] = report.blocks
            for one in report.fresh:
                month.tell(now, one.severity, one.trigger.reason)
        for line in done:
            month.tell(now, "watch", line)
        for line in retrained(month, now):
            month.tell(now, "retrain", line)
    return pd.concat([frame.assign(version=version) for version, frame in blocks.items() if len(frame)])


def _words(one: Happening) -> str:
    """Label of a line in the picture; empty for those that need none."""
    if one.what == "planted":
        return "planted: a bad model" if "bad model" in one.text else "planted: a new tenant"
    if one.what == "rollback":
        return "found, put back, retrained"
    return "asked to retrain" if one.what == "watch" and "retraining asked for" in one.text and "worthless" not in one.text else ""


def figure_of(month: Month, blocks: pd.DataFrame, truth: pd.DataFrame) -> Figure:
    """Demand, loss of the champion against the naive by block, the version that served, and what happened."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(2, 2, 1.2))
    shown = truth[truth["ds"] >= month.begin.tz_localize(None)]
    total = shown.groupby("ds")["y"].sum()
    top.plot(total.index, total.to_numpy(), color="0.3", lw=0.9)
    top.set_ylabel("GPUs in demand")
    for version, frame in blocks.groupby("version"):
        times = pd.to_datetime(frame.index.to_numpy(dtype=np.int64) * HORIZON * 3600, unit="s")
        middle.plot(times, np.exp(frame["loss_ratio"].to_numpy()), ".-", ms=3, lw=0.8, label=f"version {version}")
    middle.axhline(1.0, color="0.6", lw=0.8)
    middle.set_yscale("log")
    middle.set_ylabel("loss / naive's")
    middle.legend(loc="upper left", fontsize=8)
    days, versions = zip(*month.served, strict=True)
    bottom.step([at.tz_localize(None) for at in days], [int(version) for version in versions], where="post")
    bottom.yaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.set_ylabel("version that serves")
    for one in month.happenings:
        at = pd.Timestamp(one.at).tz_localize(None)
        for axis in (top, middle, bottom):
            axis.axvline(at, color=COLOURS.get(one.what, "0.7"), lw=1.0, ls="--", alpha=0.8)
        if words := _words(one):
            top.annotate(words, (at, 0.97), xycoords=("data", "axes fraction"), rotation=90, fontsize=7, ha="right", va="top")
    figure.suptitle("A month unattended: planted (red), retrained (green), found or put back (orange, purple)")
    return figure


def main(arguments: list[str] | None = None) -> int:
    """Play the month, print its record, write JSON and the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.month", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("days", 30), ("history-days", 28), ("shift-day", 8), ("bad-day", 22), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--traces", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("outputs/month"))
    parser.add_argument("--image", type=Path, default=None)
    options = parser.parse_args(arguments)
    quiet_libraries()
    began = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="month-", dir=options.out)).absolute()
    month = Month(folder, options.days, options.history_days, options.seed)
    blocks = play(options.traces or traces_root(), month, options.shift_day, options.bad_day)
    truth = pd.read_parquet(folder / "series.parquet")
    changes = history(month.tracking().client, MODEL)
    figure = figure_of(month, blocks, truth)
    figure.savefig(options.image or options.out / "month.png", dpi=100)
    record = {
        "happenings": [vars(one) for one in month.happenings],
        "changes": [{key: one[key] for key in ("action", "before", "after", "reason")} for one in changes],
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_json(options.out / "month.json", record)
    print(f"\n{len(changes)} changes of aliases, {record['seconds']} s; written: {options.out}/month.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
