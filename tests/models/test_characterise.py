"""The workload classifier: features by hand, calibrated out of fold, silent where it should be, stored without code."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from models.characterise.classifier import (
    FIGURES,
    TREES,
    UNKNOWN,
    ClassifierOptions,
    Space,
    WorkloadClassifier,
    fit_temperature,
    folds_of,
    threshold_for,
)
from models.characterise.features import FEATURES, feature_table, features_of
from models.characterise.generator import SETTINGS, ProfileSetting, drawn_profiles, generate_profiles
from models.characterise.power_profiles import PARTS, power_profiles
from models.characterise.scores import calibration_error, confusion, coverage_curve, scores
from telemetry.classes import CLASS_INDEX, WORKLOAD_CLASSES
from telemetry.errors import InputError
from telemetry.job_profiles import JobProfile

OPTIONS = ClassifierOptions(trees=40, folds=3)


def profile(use, *, step_s=60.0, kind="training", group="g/0", gpus=1.0, watts=None, job_id="j"):
    use = np.asarray(use, dtype=float)
    seconds = step_s * np.arange(1, len(use) + 1)
    power = use * 0.8
    shown = 30.0 + 270.0 * power if watts is None else np.asarray(watts, dtype=float)
    nothing = np.full(len(use), np.nan)
    return JobProfile(job_id, group, kind, gpus, 1.0, step_s * len(use), np.nan, seconds, use, nothing, power, shown)


def named(values):
    return dict(zip(FEATURES, values, strict=True))


@pytest.fixture(scope="module")
def trained():
    return WorkloadClassifier.train(drawn_profiles(700, sites=14, seed=1), OPTIONS)


def test_features_by_hand():
    use = np.tile([0.8, 0.8, 0.8, 0.4], 25)
    found = named(features_of(profile(use, gpus=0.5)))
    assert found["use_mean"] == pytest.approx(0.7)
    assert found["use_q50"] == pytest.approx(0.8)
    assert found["use_dips"] == pytest.approx(0.25)
    assert found["use_period_strength"] > 0.9  # every fourth reading dips
    assert found["use_gaps_per_hour"] == 0.0
    assert found["shared"] == 1.0
    assert found["watts_per_use"] == pytest.approx(0.8)
    assert np.isnan(found["memory_mean"])
    gaps = named(features_of(profile(np.repeat([0.5, 0.0, 0.5, 0.0], 15))))
    assert gaps["use_gaps_per_hour"] == pytest.approx(2 / (59 / 60), rel=0.01)
    assert gaps["use_longest_gap"] == pytest.approx(0.25)


def test_a_day_wave_is_seen_from_half_a_day_on():
    hours = np.arange(1, 49)
    wave = 0.5 + 0.3 * np.sin(2 * np.pi * hours / 24)
    assert named(features_of(profile(wave, step_s=3600.0)))["day_wave"] > 0.99
    assert np.isnan(named(features_of(profile(wave[:6], step_s=3600.0)))["day_wave"])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_short_profiles_give_features_without_a_fuss(count):
    values = features_of(profile(np.full(count, 0.5)) if count else profile([]))
    assert values.shape == (len(FEATURES),)
    assert not np.isinf(values).any()


def test_features_of_a_job_do_not_know_its_future():
    whole = generate_profiles(10, SETTINGS["base"], seed=3)
    for job in whole:
        half = job.until(job.elapsed_s / 2)
        changed = replace(job, utilization=np.where(job.seconds > job.elapsed_s / 2, 0.123, job.utilization))
        np.testing.assert_array_equal(features_of(half), features_of(changed.until(job.elapsed_s / 2)))


def test_whole_groups_are_left_out_together():
    jobs = drawn_profiles(120, sites=7)
    fold = folds_of(jobs, 5)
    for group in {job.group for job in jobs}:
        assert len({int(f) for f, job in zip(fold, jobs, strict=True) if job.group == group}) == 1
    assert len(set(fold)) == 5
    alone = folds_of([replace(job, group="") for job in jobs], 5)
    assert len(set(alone)) == 2


def test_left_out_sites_are_told_well_and_with_honest_probabilities(trained):
    model, validation = trained
    right = validation.probabilities.argmax(axis=1) == validation.truth
    assert right.mean() > 0.8
    assert calibration_error(validation.probabilities, validation.truth) < 0.06
    answered = validation.probabilities.max(axis=1) >= model.threshold
    assert 1.0 - right[answered].mean() <= OPTIONS.target_error + 1e-9
    assert validation.groups == 14


def test_another_generator_setting_is_told_better_than_chance_and_its_answers_better_than_its_guesses(trained):
    model, _ = trained
    jobs = generate_profiles(300, SETTINGS["coarse"], seed=50)
    answer = model.answer(jobs)
    truth = np.array([CLASS_INDEX[job.workload_class] for job in jobs])
    right = answer.probabilities.argmax(axis=1) == truth
    given = answer.label != UNKNOWN
    assert right.mean() > 0.7
    assert right[given].mean() >= right.mean()


def test_jobs_unlike_all_are_unknown(trained):
    model, _ = trained
    strange = [replace(job, gpus=4096.0, workers=900.0, elapsed_s=3e8) for job in generate_profiles(10, SETTINGS["base"])]
    answer = model.answer(strange)
    assert answer.far.all()
    assert set(answer.label) == {UNKNOWN}
    usual = model.answer(drawn_profiles(200, sites=10, seed=77))
    assert usual.far.mean() < 0.15


def test_it_is_stored_as_text_and_answers_the_same(trained, tmp_path):
    model, _ = trained
    model.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FIGURES, TREES]
    again = WorkloadClassifier.load(tmp_path)
    jobs = generate_profiles(50, SETTINGS["shifted"], seed=4)
    np.testing.assert_allclose(again.answer(jobs).probabilities, model.answer(jobs).probabilities, rtol=1e-9)
    assert (again.answer(jobs).label == model.answer(jobs).label).all()
    assert len(again.answer([]).label) == 0


@pytest.mark.parametrize("spoil", ["no trees", "bad json", "other features", "cut trees", "missing key"])
def test_a_broken_model_is_named(trained, tmp_path, spoil):
    trained[0].save(tmp_path)
    figures = json.loads((tmp_path / FIGURES).read_text())
    if spoil == "no trees":
        (tmp_path / TREES).unlink()
    elif spoil == "bad json":
        (tmp_path / FIGURES).write_text("{")
    elif spoil == "other features":
        (tmp_path / FIGURES).write_text(json.dumps(figures | {"features": ["x"]}))
    elif spoil == "cut trees":
        (tmp_path / TREES).write_text("tree\n")
    else:
        (tmp_path / FIGURES).write_text(json.dumps({k: v for k, v in figures.items() if k != "space"}))
    with pytest.raises(InputError, match=str(tmp_path)):
        WorkloadClassifier.load(tmp_path)


def test_the_same_seed_gives_the_same_model():
    jobs = drawn_profiles(200, sites=6, seed=2)
    first, second = (WorkloadClassifier.train(jobs, ClassifierOptions(trees=10, folds=2))[0] for _ in range(2))
    np.testing.assert_array_equal(first.answer(jobs).probabilities, second.answer(jobs).probabilities)


def test_too_few_of_a_class_is_refused():
    jobs = [job for job in generate_profiles(300, SETTINGS["base"]) if job.workload_class != "interactive"]
    with pytest.raises(InputError, match=r"interactive 0 jobs.*train=generated"):
        WorkloadClassifier.train(jobs, OPTIONS)


def test_temperature_and_threshold():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (4000, 5))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(5, p=row) for row in p])
    assert fit_temperature(3.0 * logits, truth) == pytest.approx(3.0, rel=0.1)
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    assert threshold_for(p, np.array([0, 0, 1, 0]), 0.0) == pytest.approx(0.8)
    assert threshold_for(p, np.array([0, 0, 1, 0]), 0.25) == pytest.approx(0.6)
    assert threshold_for(p, np.ones(4, dtype=int), 0.1) > 1.0


def test_space_ignores_what_was_never_read_and_grows_with_distance():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(0, 1, 500), np.full(500, np.nan)])
    space = Space.of(X)
    near, far, farther = space.distance(np.array([[0.0, np.nan], [20.0, np.nan], [60.0, np.nan]]))
    assert near < far < farther


def test_scores_by_hand():
    p = np.eye(5)[[0, 1, 1]] * 0.8 + 0.04
    truth = np.array([0, 1, 2])
    value = scores(p, truth, np.array([True, True, False]))
    assert value["accuracy"] == pytest.approx(2 / 3)
    assert value["error_of_answers"] == 0.0
    assert value["coverage"] == pytest.approx(2 / 3)
    assert value["balanced_accuracy"] == pytest.approx(2 / 3)
    assert confusion(truth, p.argmax(axis=1))[2, 1] == 1
    assert value["calibration_error"] == pytest.approx(abs(0.84 - 2 / 3))
    coverage, error = coverage_curve(p, truth)
    assert coverage[-1] == 1.0
    assert error[-1] == pytest.approx(1 / 3)
    assert scores(p[:0], truth[:0], np.zeros(0, dtype=bool)) == {"jobs": 0}


def test_watts_and_joules_over_job_time_by_hand():
    watts = np.repeat([100.0, 200.0], 50)
    jobs = [profile(np.full(100, 0.5), watts=watts, job_id=str(i)) for i in range(6)]
    table = power_profiles([*jobs, profile([0.5])], [*["training"] * 6, "unknown"])
    assert len(table) == PARTS
    assert table["jobs"].unique().tolist() == [6]
    np.testing.assert_allclose(table["watts_q50"], [100.0] * 5 + [200.0] * 5, rtol=1e-6)
    assert table["joules_q50"].iloc[-1] == pytest.approx(50 * 60 * 300.0, rel=1e-6)
    assert power_profiles(jobs[:2], ["training"] * 2).empty


def test_generated_profiles_are_lawful_and_settings_are_checked():
    for setting in SETTINGS.values():
        for job in generate_profiles(40, setting, seed=6):
            assert job.workload_class in WORKLOAD_CLASSES
            known = job.utilization[np.isfinite(job.utilization)]
            assert ((known >= 0) & (known <= 1)).all()
            assert (np.diff(job.seconds) > 0).all()
            assert job.seconds.max(initial=0.0) <= job.elapsed_s + 1e-6
    assert feature_table(generate_profiles(7, SETTINGS["base"])).shape == (7, len(FEATURES))
    with pytest.raises(InputError, match="above 0"):
        ProfileSetting(step_s=0.0)
    with pytest.raises(InputError, match="error between 0 and 1"):
        ClassifierOptions(target_error=1.5)
