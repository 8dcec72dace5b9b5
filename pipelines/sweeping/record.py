"""A sweep in MLflow: one parent run a study, a nested run a trial, and plots to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException

from pipelines.sweeping.plots import figures
from pipelines.sweeping.study import TrialStore
from registry.mlflow_client import quiet
from registry.tracking import Run, Tracking

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


@contextmanager
def parent_run(tracking: Tracking, store: TrialStore, name: str, config: Mapping[str, Any]) -> Iterator[Run]:
    """The study's run: a new one at first, the same again when the sweep goes on."""
    known = store.study.user_attrs.get("mlflow_run")
    if known and _exists(tracking, known):
        run = Run(tracking, known, name)
        status = "FAILED"
        with quiet():
            tracking.client.update_run(known, status="RUNNING")
        try:
            yield run
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            with quiet():
                tracking.client.set_terminated(known, status=status)
        return
    with tracking.run(name, tags={"command": "pipelines.sweep", "study": store.study.study_name}) as run:
        store.study.set_user_attr("mlflow_run", run.run_id)
        run.log_config(config)
        run.log_provenance()
        yield run


def _exists(tracking: Tracking, run_id: str) -> bool:
    try:
        with quiet():
            return tracking.client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False


def log_trials(run: Run, store: TrialStore) -> None:
    """A nested run for every finished trial that has none yet, those that a killed process had not written included."""
    written = store.study.user_attrs
    for trial in store.finished():
        place, state = trial.user_attrs["place"], STATES[trial.state.name]
        if f"mlflow_run.{place}" in written:
            continue
        with run.child(f"trial {place:03d}", tags={"trial": str(place), "state": state, "pruned": str(state == "pruned").lower()}) as child:
            child.log_params(store.space.read(trial.params))
            child.log_steps({step: {"objective": value} for step, value in sorted(trial.intermediate_values.items())})
            ended = {"value": trial.value} if state == "complete" else {}
            child.log_metrics({**ended, "seconds": trial.user_attrs.get("seconds", float("nan")), **trial.user_attrs.get("facts", {})})
            if "error" in trial.user_attrs:
                child.set_tags({"error": trial.user_attrs["error"]})
        store.study.set_user_attr(f"mlflow_run.{place}", child.run_id)


def trials_frame(store: TrialStore) -> pd.DataFrame:
    """``trial, state, value, steps, seconds`` and a column a parameter, by trial."""
    rows = []
    for trial in store.finished():
        state = STATES[trial.state.name]
        facts = {"value": trial.value if state == "complete" else None, "steps": len(trial.intermediate_values)}
        seconds = trial.user_attrs.get("seconds")
        rows.append({"trial": trial.user_attrs["place"], "state": state, **facts, "seconds": seconds, **store.space.read(trial.params)})
    return pd.DataFrame(rows)


def log_study(run: Run, store: TrialStore) -> None:
    """Table and plots of the whole study on its run."""
    frame = trials_frame(store)
    best = store.best()
    if best is None:
        return
    told = {"best_value": float(best.value), "best_trial": float(best.user_attrs["place"])}
    counts = frame["state"].value_counts()
    run.log_metrics({**told, **{f"trials_{name}": float(count) for name, count in counts.items()}})
    run.log_table(frame.astype(dict.fromkeys(store.space.parameters, str)), "trials")
    for name, figure in figures(store, frame).items():
        run.log_figure(figure, name)


def best_table(store: TrialStore, top: int = 10) -> str:
    """The best trials, the configuration as it was marked, and how many there are of each kind."""
    frame = trials_frame(store)
    if frame.empty:
        return "no trial yet"
    counts = ", ".join(f"{count} {name}" for name, count in frame["state"].value_counts().items())
    names = {key: key.rpartition(".")[2] for key in store.space.parameters}
    lines = [f"{len(frame)} trials: {counts}", f"{'trial':>7}{'value':>12}{'seconds':>9}  parameters"]
    for row in frame[frame["state"] == "complete"].sort_values(["value", "trial"]).head(top).to_dict("records"):
        values = ", ".join(
            f"{short} {row[key]:.4g}" if isinstance(row[key], float) else f"{short} {row[key]}" for key, short in names.items()
        )
        lines.append(f"{row['trial']:>7}{row['value']:>12.5f}{row['seconds']:>9.1f}  {values}")
    first = frame[(frame["trial"] == 0) & (frame["state"] == "complete")]
    if len(first):
        lines.append(f"trial 0 is the first: {first['value'].iloc[0]:.5f}")
    return "\n".join(lines)
