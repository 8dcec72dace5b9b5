"""Gates pass on the right evidence, refuse on the wrong, and refuse without any."""

from __future__ import annotations

import numpy as np
import pytest

from registry.gates import (
    AgentOverJudge,
    BeatsChampion,
    ClassSla,
    Coverage,
    Decision,
    Digest,
    GateSettings,
    LatencyAndSize,
    Licence,
    NoLeakage,
    NoPickle,
    SeedStability,
    SkillOverNaive,
    StandIn,
    TrainingData,
    all_passed,
    diebold_mariano,
    run_configured,
    run_gates,
    skill_interval,
)
from telemetry.errors import InputError

SKILL = {"naive": "seasonal_naive", "skill": 0.1, "low": 0.02, "high": 0.2, "windows": 20}
JUDGE = {
    "judge": "lookahead",
    "gain": 0.05,
    "low": 0.01,
    "high": 0.09,
    "sla_violation_rate": 0.02,
    "judge_sla_violation_rate": 0.02,
    "windows": 50,
}
DECISION = {
    "naive": "persistence",
    "fractile": 0.83,
    "ratio": 0.9,
    "low": 0.8,
    "high": 1.04,
    "windows": 20,
    "kwh": -0.01,
    "kwh_low": -0.02,
    "kwh_high": 0.004,
    "sla_violation_rate": 0.02,
    "naive_sla_violation_rate": 0.0195,
    "simulated_windows": 20,
}
PINBALL_ONLY = {key: DECISION[key] for key in ("naive", "fractile", "ratio", "low", "high", "windows")} | {"not_simulated": "power"}
COVERAGE = {"observed": 0.8, "bands": {"near": 0.82, "middle": 0.8, "far": 0.78}}
CHAMPION = {
    "version": "3",
    "gain": 0.02,
    "low": 0.01,
    "high": 0.03,
    "dm_statistic": -2.5,
    "dm_p_value": 0.01,
    "overlap": 2,
    "windows_sha256": "w",
    "champion_windows_sha256": "w",
}
CLASSES = {"judge": "planner", "classes": {"training": {"jobs": 90, "rate": 0.02, "judge_rate": 0.01}}}
LEAKAGE = {"compared": 288, "differing": 0, "futures": 2, "series": 4, "origins": 4}
SEEDS = {"losses": [1.0, 1.02, 0.99], "identical": False, "series": 4, "origins": 4}
SERVING = {"kind": "policy", "p95_ms": 2.0, "calls": 50, "bytes": 10_000}
LICENCES = {"data": {"sample": "Apache-2.0"}, "dependencies": {"numpy": "BSD-3-Clause AND 0BSD"}}
TRAINING = {"span_days": 42.0, "age_days": 1.0, "series": 10, "drifted": 1, "dead": 0, "flat": 0, "median_psi": 0.1}


@pytest.mark.parametrize(
    ("gate", "key", "good", "bad"),
    [
        (SkillOverNaive(), "skill_over_naive", SKILL, {"low": 0.0}),
        (SkillOverNaive(), "skill_over_naive", SKILL, {"windows": 19}),
        (Coverage(), "coverage", COVERAGE, {"observed": 0.69}),
        (Coverage(), "coverage", COVERAGE | {"observed": 0.92}, {"observed": 0.93}),
        (Coverage(), "coverage", COVERAGE, {"bands": {"near": 0.9, "middle": 0.8, "far": 0.6}}),
        (BeatsChampion(), "champion", CHAMPION, {"low": -0.01}),
        (BeatsChampion(), "champion", CHAMPION, {"dm_p_value": 0.06}),
        (ClassSla(), "class_sla", CLASSES, {"classes": {"training": {"jobs": 90, "rate": 0.03, "judge_rate": 0.01}}}),
        (ClassSla(), "class_sla", CLASSES, {"classes": {"training": {"jobs": 90, "rate": 0.6, "judge_rate": 0.6}}}),
        (NoLeakage(), "leakage", LEAKAGE, {"differing": 1}),
        (SeedStability(), "seed_stability", SEEDS, {"losses": [1.0, 1.0, 1.2]}),
        (LatencyAndSize(), "serving", SERVING, {"p95_ms": 101.0}),
        (LatencyAndSize(), "serving", SERVING, {"bytes": 2**29}),
        (Licence(), "licence", LICENCES, {"data": {"somebody's": None}}),
        (TrainingData(), "training_data", TRAINING, {"age_days": 15.0}),
        (TrainingData(), "training_data", TRAINING, {"drifted": 6}),
        (TrainingData(), "training_data", TRAINING, {"dead": 3}),
        (BeatsChampion(), "champion", CHAMPION, {"champion_windows_sha256": "other"}),
        (Decision(), "decision", DECISION, {"ratio": 1.01}),
        (Decision(), "decision", DECISION, {"high": 1.06}),
        (Decision(), "decision", DECISION, {"windows": 19}),
        (Decision(), "decision", DECISION, {"kwh_high": 0.006}),
        (Decision(), "decision", DECISION, {"sla_violation_rate": 0.021}),
        (Decision(), "decision", DECISION, {"simulated_windows": 19}),
        (Decision(simulated=False), "decision", PINBALL_ONLY, {"high": 1.06}),
        (AgentOverJudge(), "best_judge", JUDGE, {"low": -0.001}),
        (AgentOverJudge(), "best_judge", JUDGE, {"sla_violation_rate": 0.021}),
        (AgentOverJudge(), "best_judge", JUDGE, {"windows": 5}),
        (StandIn(), "stand_in", {"learned": "lstm", "refusals": ["skill_over_naive"]}, {"refusals": []}),
    ],
)
def test_gate_passes_and_refuses(gate, key, good, bad):
    (passed,) = run_gates([gate], {key: good})
    assert passed.passed, passed
    assert passed.line.startswith("passed: ")
    assert passed.threshold
    (refused,) = run_gates([gate], {key: good | bad})
    assert not refused.passed
    assert refused.line.startswith("refused: ")


@pytest.mark.parametrize(
    ("gate", "key", "good"),
    [
        (SkillOverNaive(), "skill_over_naive", SKILL),
        (Coverage(), "coverage", COVERAGE),
        (Decision(), "decision", DECISION),
        (Decision(simulated=False), "decision", PINBALL_ONLY),
        (BeatsChampion(), "champion", CHAMPION),
        (AgentOverJudge(), "best_judge", JUDGE),
        (StandIn(), "stand_in", {"learned": "lstm", "refusals": ["x"]}),
    ],
)
def test_any_missing_or_senseless_part_of_the_evidence_refuses(gate, key, good):
    assert not run_gates([gate], {})[0].passed
    assert not run_gates([gate], {key: None})[0].passed
    assert not run_gates([gate], {key: "yes"})[0].passed
    for name, value in good.items():
        without = {other: item for other, item in good.items() if other != name}
        assert "no evidence" in run_gates([gate], {key: without})[0].reason
        if isinstance(value, float):
            for senseless in (float("nan"), float("inf"), None, "0.5", True):
                assert not run_gates([gate], {key: good | {name: senseless}})[0].passed


def test_a_decision_that_was_to_be_simulated_needs_the_simulation():
    unsaid = {key: value for key, value in PINBALL_ONLY.items() if key != "not_simulated"}
    for entry, said in ((PINBALL_ONLY, "not simulated, which it has to be"), (unsaid, "kwh")):
        (verdict,) = run_gates([Decision(simulated=True)], {"decision": entry})
        assert not verdict.passed
        assert said in verdict.reason
    assert "SLA misses" in Decision().threshold
    assert "SLA misses" not in Decision(simulated=False).threshold


def test_package_gates_refuse_without_a_package():
    verdicts = run_gates([NoPickle(), Digest()], {})
    assert [verdict.reason for verdict in verdicts] == ["no evidence: 'package' was not given"] * 2
    assert not all_passed(verdicts)
    assert not all_passed([])


def test_no_champion_yet_must_be_said_to_pass():
    assert run_gates([BeatsChampion()], {"champion": {"version": None}})[0].passed
    assert not run_gates([BeatsChampion()], {"champion": {}})[0].passed


def test_skill_interval_of_a_constant_ratio_is_exact():
    naive = np.random.default_rng(0).uniform(1, 2, 60)
    interval = skill_interval(0.7 * naive, naive)
    assert interval.mean == pytest.approx(0.3)
    assert interval.low == pytest.approx(0.3)
    assert interval.high == pytest.approx(0.3)


def test_skill_interval_covers_the_truth_and_is_wider_in_blocks_when_windows_are_correlated():
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(100):
        naive = rng.gamma(4, 1, 80)
        model = naive * 0.9 + rng.normal(0, 0.3, 80)
        interval = skill_interval(model, naive, samples=400, seed=seed)
        hits += interval.low <= 0.1 <= interval.high
    assert 86 <= hits <= 100
    slow = np.repeat(rng.normal(0, 0.5, 20), 4)
    single, blocks = (skill_interval(3 + slow, np.full(80, 3.0), block=block) for block in (1, 8))
    assert blocks.high - blocks.low > 1.2 * (single.high - single.low)


@pytest.mark.parametrize(("losses", "baseline"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 2.0], [0.0, 0.0]), ([1.0, np.nan], [1, 1])])
def test_skill_interval_refuses_what_it_cannot_judge(losses, baseline):
    with pytest.raises(ValueError):
        skill_interval(np.array(losses), np.array(baseline))


def test_diebold_mariano_is_statsmodels_hac_t_times_the_small_sample_correction():
    sm = pytest.importorskip("statsmodels.api")
    from statsmodels.stats.sandwich_covariance import weights_uniform

    rng = np.random.default_rng(3)
    noise = rng.normal(0, 1, 62)
    first, second = 5 + noise[2:] + 0.6 * noise[1:-1] + 0.3 * noise[:-2], np.full(60, 5.2)
    kernel = {"maxlags": 2, "kernel": weights_uniform, "use_correction": False}
    fit = sm.OLS(first - second, np.ones(60)).fit(cov_type="HAC", cov_kwds=kernel)
    factor = np.sqrt((60 + 1 - 6 + 3 * 2 / 60) / 60)
    test = diebold_mariano(first, second, overlap=3)
    assert test.kernel == "rectangular"
    assert test.statistic == pytest.approx(factor * float(fit.tvalues[0]))


def test_diebold_mariano_rejects_equal_losses_about_as_often_as_it_says():
    rng, rejected = np.random.default_rng(4), 0
    for _ in range(2000):
        noise = rng.normal(0, 1, 61)
        rejected += diebold_mariano(5 + noise[1:] + 0.5 * noise[:-1], np.full(60, 5.0), overlap=2).p_value <= 0.05
    assert 0.03 <= rejected / 2000 <= 0.08


def test_the_same_losses_are_no_evidence_of_a_better_forecaster():
    losses = np.random.default_rng(5).gamma(4, 1, 30)
    assert diebold_mariano(losses, losses, overlap=2).p_value == 0.5


def test_a_gate_is_turned_off_only_by_name_and_reason_and_its_verdict_says_so():
    off = GateSettings(turned_off={"coverage": "no test windows yet"}).turned_off
    (verdict,) = run_configured([Coverage()], {}, off)
    assert verdict.passed
    assert verdict.reason == "not judged: turned off (no test windows yet)"
    for wrong in ({"digest": "why"}, {"coverage": ""}):
        with pytest.raises(InputError):
            GateSettings(turned_off=wrong)
