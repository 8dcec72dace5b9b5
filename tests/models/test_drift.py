"""Detectors of drift: quiet on what does not drift, by simulation, and not deaf; signals are those of their definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from models.base import QUANTILE_COLUMNS, QUANTILES
from models.drift.blocks import FLOOR, Training, chosen_rows, psi, score_blocks
from models.drift.detectors import Detector
from models.drift.rules import Rule, judge
from models.drift.standard import Reference
from telemetry.errors import InputError

PER_DAY, REFERENCE = 8, 56
STEP_NS = 600 * 10**9
CUSUM = Rule("loss", "loss_ratio", Detector("cusum", threshold=9.0))
RULES = {
    "cusum": CUSUM,
    "page_hinkley": replace(CUSUM, detector=Detector("page_hinkley", threshold=12.0)),
    "adwin": replace(CUSUM, detector=Detector("adwin", threshold=0.0005)),
    "kswin": replace(CUSUM, detector=Detector("kswin", threshold=0.0001)),
}
NEEDS_RIVER = ("page_hinkley", "adwin", "kswin")


def signal(seed: int, blocks: int, phi: float = 0.6, shift: float = 0.0, at: int = 0) -> np.ndarray:
    """Autocorrelated, with a rhythm of the day as large as the noise; its mean moves by ``shift`` deviations from block ``at`` on."""
    rng = np.random.default_rng(seed)
    noise, out = rng.normal(size=blocks) * np.sqrt(1 - phi**2), np.zeros(blocks)
    for k in range(1, blocks):
        out[k] = phi * out[k - 1] + noise[k]
    return 5.0 + out + np.sin(2 * np.pi * np.arange(blocks) / PER_DAY) + shift * (np.arange(blocks) >= at)


def run(rule: Rule, values: np.ndarray):
    return judge(rule, np.arange(len(values)), values, PER_DAY)


@pytest.mark.parametrize("name", RULES)
def test_stationary_but_autocorrelated_signals_alarm_less_than_once_a_month(name):
    if name in NEEDS_RIVER:
        pytest.importorskip("river")
    months, alarms = 0.0, 0
    for seed in range(12):
        judged = run(RULES[name], signal(seed, REFERENCE + 60 * PER_DAY))
        alarms, months = alarms + len(judged.alarms), months + 2.0
    assert alarms / months < 1.0


def test_without_the_treatment_the_same_detector_alarms_all_the_time():
    raw = [signal(seed, 30 * PER_DAY, phi=0.85) for seed in range(12)]
    alarms = sum(Detector("cusum", threshold=9.0).first_alarm((x - x.mean()) / x.std()) is not None for x in raw)
    treated = sum(bool(run(CUSUM, signal(seed, REFERENCE + 30 * PER_DAY, phi=0.85)).alarms) for seed in range(12))
    assert alarms >= 9
    assert treated <= 4


@pytest.mark.parametrize("name", RULES)
def test_a_planted_shift_is_found_soon_and_not_before_it_is_there(name):
    if name in NEEDS_RIVER:
        pytest.importorskip("river")
    start, delays = REFERENCE + 80, []
    for seed in range(12):
        values = signal(100 + seed, start + 20 * PER_DAY, shift=4.0, at=start)
        quiet = run(RULES[name], values[:start])
        if not quiet.alarms:
            alarms = run(RULES[name], values).alarms
            delays.append(min((b - start for b in alarms), default=10**6))
    assert len(delays) >= 8
    assert min(delays) >= 0
    assert np.median(delays) <= 5 * PER_DAY


def test_what_a_rule_said_it_says_again_when_more_has_come():
    values = signal(3, REFERENCE + 300, shift=3.0, at=REFERENCE + 40)
    whole = run(CUSUM, values).alarms
    assert len(whole) > 1
    for end in range(REFERENCE, len(values), 17):
        assert run(CUSUM, values[:end]).alarms == tuple(b for b in whole if b < end)
    assert min(np.diff(whole)) > CUSUM.cooldown_blocks


def test_a_rule_waits_for_its_reference_and_for_its_evidence():
    wild = np.concatenate([signal(1, REFERENCE), np.full(20, 50.0)])
    assert run(CUSUM, wild[: REFERENCE - 3]).waiting == 3
    assert run(replace(CUSUM, min_blocks=6), wild).alarms[0] == REFERENCE + 5
    longer = np.concatenate([signal(1, 2 * REFERENCE), np.full(20, 50.0)])
    gap = np.where(np.arange(len(longer)) % 5 == 0, np.nan, longer)
    assert run(CUSUM, gap).alarms, "blocks without a value are left out"


def test_one_wild_block_is_no_drift():
    values = signal(6, REFERENCE + 40)
    values[REFERENCE + 20] = 1e6
    assert run(CUSUM, values).alarms == ()


def test_betting_on_coverage_is_quiet_as_long_as_it_promises_and_finds_misses():
    """E-detector: mean time to an alarm at least the threshold, here with dependent shares whose conditional mean is what is promised."""
    detector = Detector("betting", threshold=1000.0, promised=0.25)
    rng, horizon, alarmed = np.random.default_rng(0), 1000, 0
    for _ in range(40):
        # Few wide blocks and many without a miss: far from normal.
        alarmed += detector.first_alarm((rng.random(horizon) < 0.25).astype(float)) is not None
    # Shiryaev-Roberts: P(alarm before n) <= n / threshold only in the mean; what is sure is the mean time.
    times = [detector.first_alarm((rng.random(4000) < 0.25).astype(float)) for _ in range(40)]
    assert np.mean([4000 if t is None else t for t in times]) >= 1000
    assert alarmed < 30
    assert detector.first_alarm((rng.random(400) < 0.6).astype(float)) < 60


def test_reference_takes_away_the_rhythm_and_the_memory():
    values, phases = signal(0, 4000, phi=0.7), np.arange(4000) % PER_DAY
    reference = Reference.of(values, phases, PER_DAY)
    scores = reference.scores(values, phases)
    assert reference.phi == pytest.approx(0.7, abs=0.05)
    assert scores.std() == pytest.approx(1.0, abs=0.05)
    assert abs(np.corrcoef(scores[1:], scores[:-1])[0, 1]) < 0.05
    assert max(abs(scores[phases == p].mean()) for p in range(PER_DAY)) < 0.15
    constant = Reference.of(np.ones(50), np.arange(50) % PER_DAY, PER_DAY)
    assert np.isfinite(constant.scores(np.ones(50), np.arange(50) % PER_DAY)).all()


def forecast_rows(issued: str, steps: int, centre: float, half: float) -> pd.DataFrame:
    at = pd.Timestamp(issued)
    rows = pd.DataFrame({"unique_id": "a", "issued_at": at, "ds": at + pd.to_timedelta(600 * (1 + np.arange(steps)), unit="s")})
    return rows.assign(**{q: centre + half * (level - 0.5) / 0.4 for q, level in zip(QUANTILE_COLUMNS, QUANTILES, strict=True)})


def test_every_value_counts_once_and_by_the_first_issue_of_its_block():
    forecasts = pd.concat(
        [forecast_rows(t, 6, 0.0, 1.0) for t in ("2026-01-05 00:00", "2026-01-05 00:10", "2026-01-05 00:30", "2026-01-05 01:20")]
    )
    rows = chosen_rows(forecasts.sample(frac=1, random_state=0), STEP_NS, 6)
    assert not rows.duplicated(["unique_id", "ds"]).any()
    assert sorted(rows["issued_at"].unique()) == [pd.Timestamp("2026-01-05 00:00"), pd.Timestamp("2026-01-05 01:20")]
    assert rows["block"].nunique() == 2


def test_signals_are_those_of_their_definitions():
    rows = chosen_rows(forecast_rows("2026-01-05 00:00", 2, 10.0, 2.0), STEP_NS, 6)
    observed = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2026-01-05", periods=3, freq="10min"), "y": [8.0, 11.0, 14.0]})
    training = {"a": Training(scale=2.0, mean=9.0, deviation=4.0, edges=(5.0, 10.0), shares=(0.2, 0.4, 0.4))}
    (block,) = score_blocks(rows, observed, training, STEP_NS).itertuples()
    levels = np.array(QUANTILES)
    quantiles = 10.0 + 2.0 * (levels - 0.5) / 0.4
    loss = np.mean([2 * np.mean(np.maximum(levels * (y - quantiles), (levels - 1) * (y - quantiles))) for y in (11.0, 14.0)]) / 2.0
    naive = np.mean([3.0, 6.0]) / 2.0
    assert block.rows == 2
    assert block.loss == pytest.approx(np.log(loss + FLOOR))
    assert block.loss_ratio == pytest.approx(np.log((loss + FLOOR) / (naive + FLOOR)))
    assert block.miss == 0.5
    assert block.bias == pytest.approx(np.mean([1.0, 4.0]) / 4.0)
    assert block.level == pytest.approx(np.mean([0.5, 1.25]))
    assert score_blocks(rows, observed.iloc[:1], training, STEP_NS).empty
    assert score_blocks(rows, observed, {}, STEP_NS).empty


def test_population_stability_index():
    rng = np.random.default_rng(0)
    values = rng.normal(size=5000)
    training, flat = Training.of(values, 6), Training.of(np.zeros(5000), 6)
    edges, shares = np.array(training.edges), np.array(training.shares)
    assert shares == pytest.approx(np.full(10, 0.1), abs=0.001)
    assert psi(rng.normal(size=1000), edges, shares) < 0.05
    assert psi(rng.normal(loc=1.0, size=1000), edges, shares) > 0.5
    assert psi(np.zeros(1000), np.array(flat.edges), np.array(flat.shares)) < 0.01, "a series that never moves, and still does not"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kind": "oracle", "threshold": 1.0}, "page_hinkley"),
        ({"kind": "adwin", "threshold": 2.0}, "detector.threshold"),
        ({"kind": "cusum", "threshold": -1.0}, "detector.threshold"),
        ({"kind": "kswin", "threshold": 0.1, "stat_size": 70}, "stat_size"),
        ({"kind": "cusum", "threshold": 1.0, "direction": "sideways"}, "both"),
    ],
)
def test_wrong_options_are_named(options, named):
    with pytest.raises(InputError, match=named):
        Detector(**options)


def test_wrong_rules_are_named():
    for options in ({"severity": "panic"}, {"reference_blocks": 2}, {"min_blocks": 0}):
        with pytest.raises(InputError, match="rule 'loss'"):
            replace(CUSUM, **options)


def test_a_limit_needs_no_reference_and_holds_for_every_version():
    """A version that was bad from its first block on has a bad reference: only what is allowed at all tells of it."""
    bad, good = np.full(20, 0.2), np.full(20, -0.5)
    limit = Rule("worthless", "loss_ratio", Detector("limit", 0.0, run=8), severity="rollback", min_blocks=8)
    numbers = np.arange(20)
    assert judge(limit, numbers, bad, 8).alarms[0] == 7
    assert judge(limit, numbers, good, 8).alarms == ()
    assert judge(limit, numbers, np.concatenate([good[:10], bad[:4], good[:6]]), 8).alarms == ()
    cusum = Rule("loss", "loss_ratio", Detector("cusum", 10.0), reference_blocks=8)
    assert judge(cusum, numbers, bad, 8).alarms == ()
