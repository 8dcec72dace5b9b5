"""Trials in a database: one study a search, the same whether it ran at once or was killed and went on.

Trials run in batches of fixed size. A batch is proposed from the trials before it and pruned by them alone, never by its neighbours, and
every trial draws with a seed of its own: what is proposed depends neither on which worker was faster nor on where a process ended.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipelines.sweeping.space import Space, Values
from registry.mlflow_client import sqlite_path
from telemetry.errors import InputError

PRUNERS = ("median", "hyperband", "none")
DATABASE = "optuna.db"
SCHEMA = "optuna"  # both Optuna and MLflow keep their version in a table "alembic_version"
RUNG = "completed_rung_"


def optuna_module(where: str) -> Any:
    """Optuna, quiet.

    Raises:
        InputError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise InputError("Optuna is not installed", where=where, remedy="pip install -e '.[bench]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def storage_url(tracking_uri: str, storage: str | None, storage_file: str | None, folder: Path) -> str:
    """Where trials are kept: what is named; else beside the registry's sqlite file, in a schema of its Postgres, or in ``folder``.

    Raises:
        InputError: both are named, or the file cannot be read.
    """
    if storage and storage_file:
        raise InputError("both given", where="sweep.storage, sweep.storage_file", allowed="one of them")
    if storage_file:
        try:
            return Path(storage_file).read_text().strip()
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=storage_file, remedy="a file that holds the URL") from error
    if storage:
        return storage
    if tracking_uri.startswith("postgresql"):
        joint = "&" if "?" in tracking_uri else "?"
        return f"{tracking_uri}{joint}options={quote(f'-csearch_path={SCHEMA}')}"
    beside = sqlite_path(tracking_uri)
    return f"sqlite:///{(beside.parent if beside else folder.absolute()) / DATABASE}"


def open_storage(url: str) -> Any:
    """Optuna's relational storage; makes the folder of an sqlite file and the schema in Postgres.

    Raises:
        InputError: the database does not answer.
    """
    optuna = optuna_module("sweep")
    import sqlalchemy

    try:
        if (path := sqlite_path(url)) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        elif f"search_path%3D{SCHEMA}" in url:
            engine = sqlalchemy.create_engine(url)
            with engine.begin() as connection:
                connection.execute(sqlalchemy.text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
            engine.dispose()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
            return optuna.storages.RDBStorage(url)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        shown = url.split("://")[0]  # never the URL itself: it may hold a password
        raise InputError(f"no {shown} database there: {type(error).__name__}", where="sweep.storage", remedy="is it running?") from error


@dataclass(frozen=True)
class Task:
    """A trial to run, by value: a worker knows nothing of the database.

    Attributes:
        place: number of the trial among those that count, from 0.
        known: trials before the batch, by place: what pruning compares with.
    """

    place: int
    values: Values
    pruner: str
    steps: int
    known: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: ``complete``, ``pruned`` or ``failed``."""

    state: str
    value: float | None
    intermediate: dict[int, float]
    seconds: float
    error: str | None = None
    facts: dict[str, float] = field(default_factory=dict)
    rungs: dict[str, float] = field(default_factory=dict)


class Pruning:
    """Optuna's pruner in a worker, over the trials that the task knows."""

    def __init__(self, task: Task) -> None:
        optuna = optuna_module("sweep")
        states, kinds = optuna.trial.TrialState, optuna.pruners
        pruner = {
            "median": lambda: kinds.MedianPruner(n_startup_trials=4, n_warmup_steps=max(1, task.steps // 4)),
            "hyperband": lambda: kinds.HyperbandPruner(min_resource=1, max_resource=max(2, task.steps), reduction_factor=3),
            "none": kinds.NopPruner,
        }[task.pruner]()
        self._study = optuna.create_study(study_name="pruning", pruner=pruner)
        state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
        for place in range(task.place):  # its number here is its place, which decides its bracket
            known = task.known[place] if place < len(task.known) else {"state": "failed"}
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=state[known["state"]],
                    value=known.get("value") if known["state"] != "failed" else None,
                    intermediate_values=known.get("intermediate", {}),
                    system_attrs=known.get("rungs", {}),
                )
            )
        self._trial = self._study.ask()
        self.intermediate: dict[int, float] = {}

    def report(self, step: int, value: float) -> bool:
        """Take an intermediate value; True when the trial is not worth going on with."""
        self.intermediate[step] = value
        self._trial.report(value, step)
        return bool(self._trial.should_prune())

    def rungs(self) -> dict[str, float]:
        """Hyperband's marks on the trial."""
        own = self._study.get_trials(deepcopy=False)[self._trial.number].system_attrs
        return {key: float(value) for key, value in own.items() if key.startswith(RUNG)}


class TrialStore:
    """One study: proposes trials, keeps what came of them, and picks up what a killed process left.

    Args:
        asked: all that the score of a trial depends on, as plain values; a study of that name that was asked anything else is refused.
        owner: host on which the caller holds the study's lock.

    Raises:
        InputError: the study was begun with another question, or runs on another host.
    """

    def __init__(
        self,
        storage: Any,
        name: str,
        space: Space,
        asked: Mapping[str, Any],
        *,
        seed: int,
        owner: str,
        pruner: str,
        take_over: bool = False,
    ) -> None:
        self._optuna = optuna_module("sweep")
        if pruner not in PRUNERS:
            raise InputError(f"{pruner!r}", where="sweep.pruner", allowed=", ".join(PRUNERS))
        self.storage, self.space, self.seed, self.pruner = storage, space, seed, pruner
        self.study = self._optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
        self._same_question(name, {**asked, "pruner": pruner})
        before = self.study.user_attrs.get("owner", owner)
        if before != owner and self._running() and not take_over:
            raise InputError(
                f"study '{name}' has trials that run on {before}",
                where="sweep.study",
                remedy=f"wait for it; if {before} is gone: sweep.take_over=true",
            )
        self.study.set_user_attr("owner", owner)
        self.lost = self._retry_lost()

    @classmethod
    def opened(cls, storage: Any, name: str, space: Space) -> TrialStore:
        """A study that is there, to read."""
        store = cls.__new__(cls)
        store._optuna = optuna_module("sweep")
        store.storage, store.space, store.lost = storage, space, 0
        store.study = store._optuna.load_study(study_name=name, storage=storage)
        return store

    def _same_question(self, name: str, asked: Mapping[str, Any]) -> None:
        before = self.study.user_attrs.get("asked")
        if before is None:
            self.study.set_user_attr("asked", dict(asked))
            return
        changed = sorted(key for key in {*before, *asked} if before.get(key) != asked.get(key))
        if not changed:
            return
        told = []
        for key in changed:
            old, new = before.get(key), asked.get(key)
            if isinstance(old, Mapping) and isinstance(new, Mapping):
                inner = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
                told += [f"{key}.{k}: {_short(old.get(k))} -> {_short(new.get(k))}" for k in inner]
            else:
                told.append(f"{key}: {_short(old)} -> {_short(new)}")
        raise InputError(
            f"study '{name}' was begun with another question ({'; '.join(told)})",
            where="sweep.study",
            allowed="the same space, data and settings: values of different questions cannot be compared",
            remedy="give the new one a name of its own: sweep.study=NAME",
        )

    def _running(self) -> list[Any]:
        return self.study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.RUNNING,))

    def _retry_lost(self) -> int:
        """Mark trials that a process left running as failed and queue the same values again; how many."""
        waiting = self.study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.WAITING,))
        queued = {trial.user_attrs.get("place") for trial in waiting}
        lost = self._running()
        for trial in lost:
            self.storage.set_trial_user_attr(trial._trial_id, "lost", True)
            place = trial.user_attrs.get("place")
            if place is not None and place not in queued and set(trial.params) == set(self.space.parameters):
                self.study.enqueue_trial(trial.params, user_attrs={"place": place})
            self.study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
        return len(lost)

    def finished(self) -> list[Any]:
        """Optuna's trials that count, by place."""
        states = self._optuna.trial.TrialState
        ended = self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED, states.FAIL))
        counted = [trial for trial in ended if "place" in trial.user_attrs and not trial.user_attrs.get("lost")]
        return sorted(counted, key=lambda trial: trial.user_attrs["place"])

    def best(self) -> Any | None:
        """The complete trial of the least value; None before there is one."""
        complete = [trial for trial in self.finished() if trial.state == self._optuna.trial.TrialState.COMPLETE]
        return min(complete, key=lambda trial: (trial.value, trial.user_attrs["place"]), default=None)

    def propose(self, batch: int, total: int, first: Values, steps: int) -> list[tuple[Any, Task]]:
        """The next trials of the batch that is not whole yet, up to ``total`` in all; empty when there are none.

        Args:
            first: values of the first trial, the configuration as it is.
        """
        finished = self.finished()
        done = {trial.user_attrs["place"] for trial in finished}
        begin = next((place for place in range(total) if place not in done), total)
        begin -= begin % batch
        known = tuple(self._known(trial) for trial in finished if trial.user_attrs["place"] < begin)
        proposed = []
        for place in range(begin, min(begin + batch, total)):
            if place not in done:
                trial, values = self._ask(place, first)
                proposed.append((trial, Task(trial.user_attrs["place"], values, self.pruner, steps, known)))
        return proposed

    def _ask(self, place: int, first: Values) -> tuple[Any, Values]:
        waiting = self.study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.WAITING,))
        if place == 0 and not waiting and all(one.holds(first[key]) for key, one in self.space.parameters.items()):
            self.study.enqueue_trial(self.space.stored(first), user_attrs={"place": 0})
        drawn = hashlib.sha256(f"{self.seed}:{place}".encode()).digest()
        self.study.sampler = self._optuna.samplers.TPESampler(seed=int.from_bytes(drawn[:4], "big"))
        trial = self.study.ask()
        if "place" not in trial.user_attrs:
            trial.set_user_attr("place", place)
        return trial, self.space.suggested(trial)

    def _known(self, trial: Any) -> dict[str, Any]:
        states = self._optuna.trial.TrialState
        state = {states.COMPLETE: "complete", states.PRUNED: "pruned"}.get(trial.state, "failed")
        rungs = trial.user_attrs.get("rungs", {})
        return {"state": state, "value": trial.value, "intermediate": dict(trial.intermediate_values), "rungs": rungs}

    def release(self, batch: list[tuple[Any, Task]]) -> None:
        """Give proposed trials back: they are queued with the same values."""
        for trial, task in batch:
            trial.set_user_attr("lost", True)
            self.study.enqueue_trial(self.space.stored(task.values), user_attrs={"place": task.place})
            self.study.tell(trial, state=self._optuna.trial.TrialState.FAIL)

    def tell(self, trial: Any, outcome: Outcome) -> None:
        """Keep what came of a trial."""
        states = self._optuna.trial.TrialState
        for step, value in outcome.intermediate.items():
            trial.report(value, step)
        for key in ("seconds", "error", "facts", "rungs"):
            if getattr(outcome, key):
                trial.set_user_attr(key, getattr(outcome, key))
        state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[outcome.state]
        self.study.tell(trial, outcome.value if state == states.COMPLETE else None, state=state)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
