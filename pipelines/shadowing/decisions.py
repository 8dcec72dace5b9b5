"""The log of decisions as what off-policy estimates take: which rows count, what a decision cost, and who else would have answered what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from envs.exploration import Exploration, answer_features, blind_spot
from envs.observation import GLOBAL_FEATURES, ObservationLayout
from envs.off_policy import LoggedDecisions
from envs.state import Policy
from registry.decision_log import Logged
from telemetry.errors import InputError

COUNTED = ("policy", "policy_again", "explored")
_NAMES = [name for name, _ in GLOBAL_FEATURES]


@dataclass(frozen=True)
class Questions:
    """N logged decisions with their outcome.

    Attributes:
        frame: rows of ``registry.decision_log.read_log``.
        rows: observations float32 ``[N, D]``, only what mask and shield left open.
        allowed: bool ``[N, A]``.
        dropped: decisions that do not count, by reason.
    """

    frame: pd.DataFrame
    rows: np.ndarray
    allowed: np.ndarray
    layout: ObservationLayout
    dropped: dict[str, int]


def with_outcomes(logged: Logged, path: Path | None) -> Logged:
    """The log with outcomes of a table (CSV or Parquet) by ``job_id`` where it has none of its own.

    Raises:
        InputError: no such table, or no columns ``job_id`` and ``objective_usd``.
    """
    if path is None:
        return logged
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(str(error).splitlines()[0], where=str(path), allowed="CSV or Parquet") from error
    missing = [name for name in ("job_id", "objective_usd") if name not in table]
    if missing:
        allowed = "job_id, objective_usd and optional sla_violated, time"
        raise InputError(f"no column {', '.join(missing)}", where=str(path), allowed=allowed)
    known = table.assign(job_id=table["job_id"].astype(str)).drop_duplicates("job_id", keep="last").set_index("job_id")
    frame = logged.decisions.copy()
    open_ = frame["objective_usd"].isna()
    frame.loc[open_, "objective_usd"] = frame.loc[open_, "job_id"].map(known["objective_usd"]).astype(float)
    for column, source in (("sla_violated", "sla_violated"), ("outcome_time", "time")):
        if source in known:
            frame.loc[open_, column] = frame.loc[open_, "job_id"].map(known[source])
    counts = {**logged.counts, "without_outcome": int(frame["objective_usd"].isna().sum())}
    return Logged(frame, counts, logged.first_unreadable)


def questions_of(logged: Logged, *, since: str | None = None, until: str | None = None) -> Questions:
    """The decisions that count: within ``[since, until)``, answered by a policy itself, with an outcome.

    Raises:
        InputError: none is left, or they were put to clusters of different shapes.
    """
    frame, dropped = logged.decisions, {"outside the time asked for": 0}
    inside = np.ones(len(frame), dtype=bool)
    for text, late in ((since, False), (until, True)):
        if text is not None:
            moment = _moment(text)
            inside &= (frame["time"] < moment if late else frame["time"] >= moment).to_numpy()
    dropped["outside the time asked for"] = int((~inside).sum())
    frame = frame[inside]
    own = frame["answered_by"].isin(COUNTED)
    dropped["answered by the fallback"] = int((~own).sum())
    known = frame["objective_usd"].notna()
    dropped["no outcome yet"] = int((own & ~known).sum())
    frame = frame[own & known].reset_index(drop=True)
    if frame.empty:
        said = "; ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
        raise InputError("no decision that counts", where="decision log", remedy=said or "log decisions first")
    shapes = frame.groupby(["pools", "levels"]).size()
    if len(shapes) > 1:
        named = ", ".join(f"{pools} pools x {levels} levels ({n})" for (pools, levels), n in shapes.items())
        raise InputError(f"decisions of {named}", where="decision log", allowed="one cluster", remedy="since= and until= of one of them")
    layout = ObservationLayout(*(int(value) for value in shapes.index[0]))
    lengths = frame["observation"].map(len)
    if (lengths != layout.size).any():
        raise InputError(f"an observation of {lengths[lengths != layout.size].iloc[0]} values", where="log", allowed=str(layout.size))
    rows = np.array(frame["observation"].tolist(), dtype=np.float32)
    allowed = np.zeros((len(frame), layout.n_candidates), dtype=bool)
    for at, actions in enumerate(frame["allowed"]):
        allowed[at, list(actions)] = True
    layout.candidates(rows)[~allowed] = 0.0
    return Questions(frame, rows, allowed, layout, dropped)


def decisions_of(questions: Questions) -> LoggedDecisions:
    """Each decision by itself; those of one block (a day) go together."""
    features, scale = answer_features(questions.rows, questions.layout)
    return LoggedDecisions(
        np.array(questions.frame["propensities"].tolist(), dtype=float),
        questions.frame["action"].to_numpy(dtype=np.int64),
        questions.frame["objective_usd"].to_numpy(dtype=float),
        pd.factorize(questions.frame["block"])[0].astype(np.int64),
        features,
        scale,
    )


def chances_of(policy: Policy, explore: Exploration, questions: Questions) -> np.ndarray:
    """Probabilities of a target's answers behind the same shield, float64 ``[N, A]``.

    Raises:
        InputError: the questions lack what it decides by.
    """
    if blind := blind_spot(policy, questions.rows, questions.layout):
        raise InputError(blind, where="target", remedy="log with a policy of the same kind")
    return explore.propensities(policy, questions.rows, questions.layout, allowed=questions.allowed)


def groups_of(questions: Questions, unit: str, experiment: str | None) -> tuple[LoggedDecisions, pd.DataFrame]:
    """Days or teams as single decisions between the champion (answer 0) and the challenger (answer 1), and a table of them.

    What one cost is the bills of its jobs, each from its first decision, and its size how many there were; what is known of it whatever the
    arm is that number and the GPU-hours that they asked for.

    Raises:
        InputError: no experiment, or one unit in both arms.
    """
    frame = questions.frame[questions.frame["arm"].isin(["champion", "challenger"]) & (questions.frame["experiment"] != "")]
    names = sorted(frame["experiment"].unique())
    if experiment is None and len(names) == 1:
        experiment = names[0]
    if experiment not in names:
        raise InputError(f"experiment '{experiment}'", where="decision log", allowed=", ".join(names) or "none was run")
    frame = frame[frame["experiment"] == experiment]
    first = frame.drop_duplicates("job_id")
    split = questions.layout.n_candidates * questions.layout.n_candidate_features
    asked = questions.rows[first.index][:, split:]
    hours = np.expm1(asked[:, _NAMES.index("gpus")]) * np.expm1(asked[:, _NAMES.index("estimate")])
    column = {"day": "block", "team": "team"}[unit]
    table = (
        first.assign(hours=hours.astype(float), key=first[column])
        .groupby("key")
        .agg(arm=("arm", "first"), arms=("arm", "nunique"), chance=("arm_propensity", "first"), jobs=("job_id", "size"),
             hours=("hours", "sum"), cost_usd=("objective_usd", "sum"))
        .reset_index()
    )  # fmt: skip
    if (mixed := table[table["arms"] > 1]).shape[0]:
        raise InputError(f"{unit} '{mixed['key'].iloc[0]}' in both arms", where=f"experiment '{experiment}'", remedy=f"split by {unit}")
    arm = (table["arm"] == "challenger").to_numpy(dtype=np.int64)
    jobs = table["jobs"].to_numpy(dtype=float)
    mine = table["chance"].to_numpy(dtype=float)
    chances = np.where(arm[:, None] == np.arange(2), mine[:, None], 1.0 - mine[:, None])
    x = np.column_stack([np.log1p(table["jobs"]), np.log1p(table["hours"] / table["jobs"])])
    features = np.concatenate([x[:, None] * (np.arange(2) == a)[None, :, None] for a in range(2)], axis=2)
    features = np.concatenate([features, np.broadcast_to(np.eye(2), (len(table), 2, 2))], axis=2)
    return LoggedDecisions(chances, arm, table["cost_usd"].to_numpy(dtype=float), np.arange(len(table)), features, jobs, jobs), table


def outcomes_of(frame: pd.DataFrame, watched: Mapping[str, Any], reference: Mapping[str, Any]) -> pd.DataFrame:
    """Jobs of two sides as ``registry.guardrails.watch`` takes them; a side is told by values of columns of the log.

    Jobs whose violations are not known, or that both sides decided on, are left out.
    """
    sides = []
    for match in (watched, reference):
        hit = (frame["sla_violated"].notna() & frame["objective_usd"].notna()).to_numpy()
        for column, value in match.items():
            hit &= (frame[column] == value).to_numpy()
        sides.append(frame[hit].drop_duplicates("job_id"))
    both = set(sides[0]["job_id"]) & set(sides[1]["job_id"])
    rows = pd.concat([side.assign(watched=mine) for side, mine in zip(sides, (True, False), strict=True)])
    rows = rows[~rows["job_id"].isin(both)]
    moment = pd.to_datetime(rows["outcome_time"].where(rows["outcome_time"].notna(), rows["time"].astype(str)), utc=True, format="ISO8601")
    return pd.DataFrame(
        {"time": moment, "watched": rows["watched"], "cost_usd": rows["objective_usd"], "violated": rows["sla_violated"].astype(bool)}
    ).reset_index(drop=True)


def _moment(text: str) -> pd.Timestamp:
    try:
        at = pd.Timestamp(text)
    except ValueError as error:
        raise InputError(f"'{text}'", where="since, until", allowed="a time such as 2026-02-10T08:00Z") from error
    return at.tz_localize("UTC") if at.tzinfo is None else at.tz_convert("UTC")
