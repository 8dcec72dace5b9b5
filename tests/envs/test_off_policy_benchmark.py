"""The benchmark of off-policy estimates on a small pool: every part runs, and what it prints and draws is what it measured."""

import numpy as np
import pytest

import benchmarks.off_policy as bench
from benchmarks.guardrails import CASES, outcomes


@pytest.fixture(scope="module")
def found(worlds):
    """A small pool of random windows in the place of the traces."""
    options = bench.parse(
        [
            "--replays",
            "3",
            "--windows",
            "12",
            "--truth-runs",
            "2",
            "--truth-share",
            "0.3",
            "--samples",
            "50",
            "--model",
            "ridge",
            "--switched",
            "30",
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "pool_of", lambda _: worlds.random_world(13, count=25, windows=5))
        return bench.measure(options, progress=lambda _: None)


def test_every_target_is_scored_against_its_truth(found):
    assert [entry["target"] for entry in found["targets"]] == list(bench.TARGETS)
    for entry in found["targets"]:
        assert entry["replays"] == 3
        for kind in ("value", "difference"):
            score = entry[f"{kind}.dr"]
            if score is not None:
                assert score["of"] == 3 - entry["refused"]
                assert score["bias"] == pytest.approx(score["mean"] - score["truth"])
    assert any(entry["difference.dr"] is not None for entry in found["targets"])


def test_the_truth_of_what_costs_more_is_told_as_such(found):
    change = {name: entry["usd"] for name, entry in found["truth"]["change"].items()}
    assert change["k8s_default"] > change["lookahead"]
    assert found["throughout"]["k8s_default"]["throughout_usd"] > 0


def test_tables_and_picture_show_it(found):
    lines = bench.lines_of(found)
    assert sum(line.startswith("greedy_cost") for line in lines) >= 3
    figure = bench.coverage_figure(found)
    shown = [entry for entry in found["targets"] if entry["difference.dr"] is not None]
    assert len(figure.axes) == 2 * len(shown)


def test_scores_count_what_is_inside():
    score = bench._score(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.9, 2.9]), np.array([2.0, 2.1, 3.1]), 1.95)
    assert (score["inside"], score["of"]) == (2, 3)
    assert score["bias"] == pytest.approx(0.05)


def test_experiments_of_the_guardrails_are_as_their_case_says():
    rows = outcomes(CASES["20 % dearer"] | {"watched": 0.3}, 20_000, 1)
    mean = rows.groupby("watched")[["cost_usd", "violated"]].mean()
    assert mean.loc[True, "cost_usd"] / mean.loc[False, "cost_usd"] == pytest.approx(1.2, rel=0.05)
    assert mean.loc[True, "violated"] == pytest.approx(0.3, abs=0.02)
