"""Guardrails: each rule fires on what it is for, none on equal arms, and the file that stops is whole or refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from registry.guardrails import STOPPED_FILE, Breach, GuardConfig, stop, stopped_experiments, watch
from telemetry.errors import InputError

START = pd.Timestamp("2026-03-01", tz="UTC")


def outcomes(seed=0, jobs=4000, days=10, watched_rate=0.05, rate=0.05, watched_cost=1.0, cost=1.0):
    rng = np.random.default_rng(seed)
    watched = rng.random(jobs) < 0.5
    return pd.DataFrame(
        {
            "time": START + pd.to_timedelta(np.sort(rng.uniform(0, days * 86_400, jobs)), unit="s"),
            "watched": watched,
            "cost_usd": rng.exponential(np.where(watched, watched_cost, cost)),
            "violated": rng.random(jobs) < np.where(watched, watched_rate, rate),
        }
    )


def test_equal_arms_run_on():
    fired = [watch(outcomes(seed), GuardConfig()).breach for seed in range(40)]
    assert sum(breach is not None for breach in fired) <= 4


@pytest.mark.parametrize(
    ("change", "config", "rule"),
    [
        ({"watched_rate": 0.15}, GuardConfig(), "sla"),
        ({"watched_cost": 2.0}, GuardConfig(), "cost"),
        ({"watched_rate": 0.9, "rate": 0.9}, GuardConfig(), "hard_sla"),
        ({"watched_cost": 3.0, "cost": 3.0}, GuardConfig(hard_cost_usd=2.0), "hard_cost"),
    ],
)
def test_each_rule_fires_and_says_why(change, config, rule):
    found = watch(outcomes(1, **change), config)
    assert found.breach.rule == rule
    assert found.breach.reason
    assert found.breach.job < 4000
    assert found.jobs + found.reference == 4000
    before = outcomes(1, **change)[: found.breach.job]
    assert watch(before, config).breach is None
    assert watch(outcomes(1, **change)[: found.breach.job + 1], config).breach == found.breach


def test_a_better_arm_is_left_alone_and_a_tolerance_is_kept():
    assert watch(outcomes(2, watched_rate=0.01, watched_cost=0.5), GuardConfig()).breach is None
    assert watch(outcomes(2, watched_rate=0.15), GuardConfig(violation_tolerance=0.12)).breach is None
    assert watch(outcomes(2, watched_cost=2.0), GuardConfig(cost_tolerance=0.12)).breach is None


def test_hard_limits_wait_for_enough_jobs():
    few = outcomes(3, jobs=60, watched_rate=1.0, rate=0.0)
    config = GuardConfig(alpha=1e-9, hard_jobs=100)
    assert watch(few, config).breach is None
    assert watch(few, GuardConfig(alpha=1e-9, hard_jobs=20)).breach.rule == "hard_sla"


def test_a_loss_counts_by_days_in_a_row_up_to_the_last():
    lasting = watch(outcomes(4, watched_rate=0.25), GuardConfig(sustained=3))
    assert lasting.lost_days >= 3
    assert lasting.sustained(GuardConfig(sustained=3))
    assert not lasting.sustained(GuardConfig(sustained=50))
    recovered = outcomes(4, jobs=600, days=2, watched_rate=0.6, rate=0.0)
    good = outcomes(5, jobs=8000, days=10, watched_rate=0.0, rate=0.6).assign(time=lambda t: t["time"] + pd.Timedelta(days=2))
    both = watch(pd.concat([recovered, good]), GuardConfig())
    assert both.breach is not None
    assert both.lost_days == 0
    assert watch(outcomes(1).iloc[:0], GuardConfig()).lost_days == 0


def test_order_of_rows_does_not_matter_but_their_time_does():
    rows = outcomes(6, watched_rate=0.15)
    assert watch(rows, GuardConfig()).breach == watch(rows.sample(frac=1.0, random_state=1), GuardConfig()).breach


@pytest.mark.parametrize(
    ("change", "said"),
    [({"alpha": 0}, "alpha"), ({"cost_cap_usd": 0}, "cost_cap_usd"), ({"hard_jobs": 0}, "hard_jobs"), ({"sustained": 0}, "days")],
)
def test_impossible_limits_are_refused(change, said):
    with pytest.raises(InputError, match=said):
        GuardConfig(**change)


def test_unusable_outcomes_are_refused():
    with pytest.raises(InputError, match="no column violated"):
        watch(outcomes().drop(columns="violated"), GuardConfig())
    with pytest.raises(InputError, match="not finite"):
        watch(outcomes().assign(cost_usd=np.nan), GuardConfig())


def test_what_stopped_is_written_once_and_a_broken_file_is_refused(tmp_path):
    folder = tmp_path / "log"
    assert stopped_experiments(folder) == {}
    stop(folder, "one", Breach("sla", "2026-03-01T00:00:00+00:00", 5, "worse"))
    stop(folder, "one", Breach("cost", "2026-03-02T00:00:00+00:00", 9, "later"))
    stop(folder, "two", Breach("cost", "2026-03-02T00:00:00+00:00", 9, "dear"))
    assert {name: entry["reason"] for name, entry in stopped_experiments(folder).items()} == {"one": "worse", "two": "dear"}
    for text in ("{", "[]"):
        (folder / STOPPED_FILE).write_text(text)
        with pytest.raises(InputError, match=STOPPED_FILE):
            stopped_experiments(folder)
