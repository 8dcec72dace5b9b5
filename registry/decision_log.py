"""The log of decisions: what was asked, what was answered with which probability, by whom, what others would have said, what it cost.

A folder of JSON lines in numbered parts, ``decisions-000001.jsonl`` and ``outcomes-000001.jsonl``. Lines are only ever appended, under a
lock between processes, and are on disk before :meth:`DecisionLog.append` returns; what a killed writer left of its last line is cut off by
the next one and skipped by readers. A part that has grown to ``part_bytes`` is closed and never touched again.

A decision:

| field | unit | meaning |
|---|---|---|
| ``schema`` | | 1 |
| ``time`` | UTC, ISO 8601 | when it was asked |
| ``decision_id``, ``job_id`` | | one answer; the job that it is about |
| ``team``, ``pod`` | | whose job it is; may be empty |
| ``pools``, ``levels`` | | shape of the answers: 0 is hold, 1 + p levels + l runs in pool p at level l |
| ``observation`` | docs/observation.md | what the policy saw: the features of every answer, then of the question |
| ``allowed`` | | answers that mask and shield left |
| ``propensities`` | 0-1, sum 1 | probability of every answer under the policy that acted; 1 for its own choice when it did not explore |
| ``action`` | | the answer given |
| ``policy``, ``version`` | | who answered; version in the registry, empty for a judge that was not promoted |
| ``answered_by`` | | ``policy``, ``policy_again``, ``fallback``, ``least_score`` (``envs.shielded``) or ``explored`` |
| ``arm``, ``experiment`` | | ``champion``, ``challenger`` or ``outside``, and of which experiment (``runtime.split``) |
| ``arm_propensity`` | 0-1 | probability with which the arm was drawn; 1 without an experiment |
| ``block`` | | decisions that go together, as the unit of an interval or of a policy drawn by window; the UTC day unless told |
| ``shadow`` | | what others answered to the same question: ``name, version, action, seconds, error`` |

An outcome, joined by ``decision_id``, or by ``job_id`` to every decision of the job that has none of its own:

| field | unit | meaning |
|---|---|---|
| ``time`` | UTC, ISO 8601 | when it was known |
| ``objective_usd`` | USD | bill of the job from the decision to its end, weighted as the objective (``envs.reward``) |
| ``cost_usd, carbon_kg, energy_kwh, penalty_usd`` | USD, kg, kWh, USD | its parts, where known |
| ``sla_violated`` | | whether the job started late or missed its deadline; null = not known |
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from registry.locks import exclusive
from telemetry.errors import InputError

SCHEMA = 1
ARMS: tuple[str, ...] = ("champion", "challenger", "outside")
DECISIONS, OUTCOMES = "decisions", "outcomes"
PART_BYTES = 64 * 2**20
SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class DecisionRecord:
    """One decision; the fields are those of the table above.

    Raises:
        InputError: a field outside what the table says.
    """

    time: str
    job_id: str
    pools: int
    levels: int
    observation: tuple[float, ...]
    allowed: tuple[int, ...]
    propensities: tuple[float, ...]
    action: int
    policy: str
    version: str = ""
    answered_by: str = "policy"
    team: str = ""
    pod: str = ""
    arm: str = "champion"
    arm_propensity: float = 1.0
    experiment: str = ""
    block: str = ""
    shadow: tuple[Mapping[str, Any], ...] = ()
    decision_id: str = ""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        where = f"decision '{self.decision_id or self.job_id}'"
        if self.schema != SCHEMA:
            raise InputError(f"schema {self.schema}", where=where, allowed=str(SCHEMA), remedy="read it with the version that wrote it")
        answers = 1 + self.pools * self.levels
        if len(self.propensities) != answers or not abs(math.fsum(self.propensities) - 1) <= SUM_TOLERANCE or min(self.propensities) < 0:
            raise InputError(f"propensities {list(self.propensities)}", where=where, allowed=f"{answers} numbers from 0 with sum 1")
        if not 0 <= self.action < answers or self.propensities[self.action] <= 0:
            raise InputError(f"action {self.action}", where=where, allowed="an answer of propensity above 0")
        if self.action not in self.allowed or any(p > 0 and a not in self.allowed for a, p in enumerate(self.propensities)):
            raise InputError(f"allowed answers {list(self.allowed)}", where=where, allowed="all answers of propensity above 0")
        if not all(math.isfinite(value) for value in self.observation):
            raise InputError("an observation that is not finite", where=where)
        if self.arm not in ARMS or not 0 < self.arm_propensity <= 1:
            raise InputError(
                f"arm '{self.arm}' of probability {self.arm_propensity}", where=where, allowed=f"{', '.join(ARMS)}; above 0 to 1"
            )
        object.__setattr__(self, "decision_id", self.decision_id or uuid.uuid4().hex)
        object.__setattr__(self, "block", self.block or _utc(self.time, where).strftime("%Y-%m-%d"))


@dataclass(frozen=True)
class Outcome:
    """What a decision, or a whole job, cost; the fields are those of the table above.

    Raises:
        InputError: neither or both of the ids, or an objective that is not finite.
    """

    time: str
    objective_usd: float
    decision_id: str = ""
    job_id: str = ""
    cost_usd: float | None = None
    carbon_kg: float | None = None
    energy_kwh: float | None = None
    penalty_usd: float | None = None
    sla_violated: bool | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        where = f"outcome of '{self.decision_id or self.job_id}'"
        _utc(self.time, where)
        if bool(self.decision_id) == bool(self.job_id):
            raise InputError("decision_id and job_id", where=where, allowed="one of the two")
        if not math.isfinite(self.objective_usd):
            raise InputError(f"objective_usd {self.objective_usd}", where=where, allowed="a finite number of USD")


class DecisionLog:
    """Appends to the log in ``folder``, which is made when it is not there.

    Args:
        part_bytes: a part is closed when it has reached this size.
    """

    def __init__(self, folder: Path, part_bytes: int = PART_BYTES) -> None:
        if part_bytes < 1:
            raise InputError(f"part_bytes {part_bytes}", where="decision log", allowed="bytes from 1")
        self.folder, self.part_bytes = folder, part_bytes

    def append(self, record: DecisionRecord | Outcome) -> None:
        """On disk before this returns.

        Raises:
            InputError: the folder cannot be written, or another process held the lock for too long.
        """
        stem = DECISIONS if isinstance(record, DecisionRecord) else OUTCOMES
        line = json.dumps(asdict(record), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with exclusive(self.folder / f".{stem}.lock"):
                path = self._active(stem)
                with path.open("ab") as handle:
                    handle.write(line)
                    handle.flush()
                    os.fsync(handle.fileno())
        except OSError as error:
            raise InputError(error.strerror or str(error), where=str(self.folder), remedy="a folder where files can be written") from error

    def _active(self, stem: str) -> Path:
        """The part to append to, without what a killed writer left of its last line."""
        parts = _parts(self.folder, stem)
        path = parts[-1] if parts else self.folder / f"{stem}-000001.jsonl"
        if path.exists():
            _cut_unfinished(path)
            if path.stat().st_size >= self.part_bytes:
                path = self.folder / f"{stem}-{int(path.stem.rpartition('-')[2]) + 1:06d}.jsonl"
        return path


@dataclass(frozen=True)
class Logged:
    """A log as read.

    Attributes:
        decisions: one row each, oldest first, with the columns of the table and ``objective_usd``, ``cost_usd``, ``penalty_usd``,
            ``sla_violated``; NaN or None where no outcome is known yet.
        counts: ``decisions``, ``outcomes``, ``unreadable`` lines, ``duplicates`` (the first one counts), ``orphans`` (outcomes of nothing
            in the log), ``without_outcome``.
        first_unreadable: file, line and reason of the first line that could not be read, or empty.
    """

    decisions: pd.DataFrame
    counts: dict[str, int]
    first_unreadable: str = ""


def read_log(folder: Path) -> Logged:
    """The whole log with outcomes joined; of several outcomes of one thing the last counts.

    Raises:
        InputError: no log there.
    """
    if not _parts(folder, DECISIONS):
        raise InputError("no decision log", where=str(folder), allowed=f"a folder with {DECISIONS}-000001.jsonl")
    counts: Counter[str] = Counter()
    bad: list[str] = []
    records: dict[str, DecisionRecord] = {}
    for record in _lines(folder, DECISIONS, DecisionRecord, counts, bad):
        counts["duplicates"] += record.decision_id in records
        records.setdefault(record.decision_id, record)
    outcomes = list(_lines(folder, OUTCOMES, Outcome, counts, bad))
    by_decision = {o.decision_id: o for o in outcomes if o.decision_id}
    by_job = {o.job_id: o for o in outcomes if o.job_id}
    jobs = {record.job_id for record in records.values()}
    counts["orphans"] = sum(o.decision_id not in records if o.decision_id else o.job_id not in jobs for o in outcomes)
    rows = []
    for record in records.values():
        known = by_decision.get(record.decision_id) or by_job.get(record.job_id)
        row = {field.name: getattr(record, field.name) for field in fields(record)}
        for name in ("objective_usd", "cost_usd", "penalty_usd"):
            value = None if known is None else getattr(known, name)
            row[name] = math.nan if value is None else float(value)
        row["sla_violated"] = None if known is None else known.sla_violated
        row["outcome_time"] = None if known is None else known.time
        rows.append(row)
    frame = pd.DataFrame(rows, columns=[*(f.name for f in fields(DecisionRecord)), *_JOINED])
    frame = frame.assign(time=pd.to_datetime(frame["time"], utc=True, format="ISO8601"))
    frame = frame.sort_values(["time", "decision_id"], kind="stable", ignore_index=True)
    counts["decisions"], counts["outcomes"] = len(records), len(outcomes)
    counts["without_outcome"] = int(frame["objective_usd"].isna().sum())
    names = ("decisions", "outcomes", "unreadable", "duplicates", "orphans", "without_outcome")
    return Logged(frame, {name: int(counts[name]) for name in names}, bad[0] if bad else "")


_JOINED = ("objective_usd", "cost_usd", "penalty_usd", "sla_violated", "outcome_time")


def _parts(folder: Path, stem: str) -> list[Path]:
    return sorted(folder.glob(f"{stem}-[0-9][0-9][0-9][0-9][0-9][0-9].jsonl"))


def _lines(folder: Path, stem: str, kind: type, counts: Counter[str], bad: list[str]) -> Iterator[Any]:
    """Records of all parts; lines that are none are counted, a last line without its end is left out."""
    for path in _parts(folder, stem):
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                content = json.loads(line)
                yield kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})
            except (ValueError, TypeError, AttributeError, InputError) as error:
                counts["unreadable"] += 1
                bad.append(f"{path}, line {number}: {error}")


def _cut_unfinished(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb+") as handle:
        at = size
        while at > 0:
            step = min(4096, at)
            handle.seek(at - step)
            end = handle.read(step).rfind(b"\n")
            if end >= 0:
                at = at - step + end + 1
                break
            at -= step
        if at < size:
            handle.truncate(at)


def _utc(text: str, where: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise InputError(f"time {text!r}", where=where, allowed="ISO 8601 with a zone") from error
    if moment.tzinfo is None:
        raise InputError(f"time {text!r} without a zone", where=where, allowed="ISO 8601 with a zone, such as 2026-02-10T08:00:00+00:00")
    return moment
