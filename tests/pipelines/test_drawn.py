"""Months drawn from a trace: fitted on its first part only, compared with both, written with a picture."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines import make_trace as command
from pipelines.drawn import DRAWN, FITTED, HELD_OUT, DrawConfig, draw_jobs, render
from pipelines.drawn_plot import comparison_figure
from telemetry.errors import InputError

ROOT = Path(__file__).parents[2]
TRACES = Path(os.environ.get("JOULEWISE_TRACES", ROOT / ".." / "shared" / "traces")).resolve()
needs_traces = pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not there")
MONDAY = pd.Timestamp("2024-01-01", tz="UTC")


def jobs(days=28, seed=0):
    """Ten sessions of three jobs by day, two by night, by two users."""
    rng = np.random.default_rng(seed)
    start = np.concatenate([day * 86_400 + np.append(rng.integers(28_800, 72_000, 10), rng.integers(0, 28_800, 2)) for day in range(days)])
    second = np.sort((start[:, None] + np.array([0, 20, 40])).ravel())
    frame = pd.DataFrame({"submit_time": MONDAY + pd.to_timedelta(second, unit="s"), "gpus": 1.0, "workers": 1})
    return frame.assign(
        job_id=[f"j{i:05d}" for i in range(len(frame))],
        duration_s=rng.integers(60, 6000, len(frame)).astype(float),
        team=np.where(second % 2, "a", "b"),
        workload_class="training",
    )


def test_the_model_sees_the_first_part_only():
    table = jobs()
    config = DrawConfig(months=1.0, seed=3, fit_share=0.7)
    drawn = draw_jobs(table, config)
    late = table["submit_time"] >= MONDAY + pd.Timedelta(days=20)
    pd.testing.assert_frame_equal(drawn.jobs, draw_jobs(table.assign(gpus=np.where(late, 8.0, 1.0)), config).jobs)
    assert not drawn.jobs["submit_time"].equals(draw_jobs(table, DrawConfig(months=1.0, seed=4)).jobs["submit_time"])
    assert list(drawn.parts) == [FITTED, DRAWN, HELD_OUT]
    assert len(drawn.parts[FITTED]) + len(drawn.parts[HELD_OUT]) == len(table)
    assert drawn.parts[FITTED]["submit_time"].max() < drawn.parts[HELD_OUT]["submit_time"].min()
    assert drawn.jobs["submit_time"].min() >= drawn.parts[FITTED]["submit_time"].max()
    assert drawn.figures.loc["jobs_per_day", DRAWN] == pytest.approx(36, rel=0.15)
    told = render(drawn)
    for words in ("fitted - drawn", "drawn - held out", "hour_of_day_tv", "jobs_per_session", f"drawn: {len(drawn.jobs):,} jobs"):
        assert words in told


def test_what_cannot_be_compared_is_said():
    drawn = draw_jobs(jobs(), DrawConfig(months=1.0, fit_share=0.98))
    assert list(drawn.parts) == [FITTED, DRAWN]
    assert "held-out rest is too short" in render(drawn)
    assert list(draw_jobs(jobs(), DrawConfig(months=1.0, fit_share=1.0)).parts) == [FITTED, DRAWN]
    tiny = draw_jobs(jobs(), DrawConfig(months=0.01))
    assert "too little was drawn to compare" in render(tiny)
    assert tiny.figures.empty


def test_the_start_is_ones_own():
    drawn = draw_jobs(jobs(), DrawConfig(months=0.5, start="2030-06-01"))
    assert drawn.jobs["submit_time"].between("2030-06-01", "2030-06-16").all()
    for wrong in ({"start": "tomorrow or so"}, {"start": "2030-13-01"}):
        with pytest.raises(InputError, match=r"draw\.start"):
            draw_jobs(jobs(), DrawConfig(months=0.5, **wrong))
    for wrong in ({"months": -1.0}, {"fit_share": 0.0}, {"seed": -1}, {"session_gap_s": -1.0}, {"months": float("nan")}):
        with pytest.raises(InputError, match=rf"draw\.{next(iter(wrong))}"):
            DrawConfig(**wrong)


def test_the_picture_has_a_line_for_each_part_in_each_panel():
    drawn = draw_jobs(jobs(), DrawConfig(months=1.0))
    figure = comparison_figure(drawn.parts, title="drawn")
    assert len(figure.axes) == 8
    for axes in figure.axes:
        assert [line.get_label() for line in axes.get_lines() if not line.get_label().startswith("_")] == [FITTED, DRAWN, HELD_OUT]
        assert all(np.isfinite(line.get_ydata()).all() for line in axes.get_lines())


@needs_traces
def test_the_command_draws_writes_and_tells(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JOULEWISE_TRACES", str(TRACES))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["make_trace", f"out={tmp_path}/drawn.parquet", f"hydra.run.dir={tmp_path}/h", *arguments])
        with pytest.raises(SystemExit) as ended:
            command.main()
        return ended.value.code, capsys.readouterr()

    code, streams = call("trace=philly", "draw.months=1", "draw.seed=2")
    assert code == 0, streams.err
    table = pd.read_parquet(tmp_path / "drawn.parquet")
    assert table["job_id"].str.startswith("drawn-").all()
    assert f"{len(table):,} jobs over" in streams.out
    held = json.loads((tmp_path / "drawn.comparison.json").read_text())
    assert held["parts"]["drawn"]["jobs"] == len(table)
    assert held["distances"]["fitted - drawn"]["duration_ks"] < held["distances"]["drawn - held out"]["duration_ks"]
    assert (tmp_path / "drawn.comparison.png").read_bytes()[:4] == b"\x89PNG"
    code, streams = call("trace=eagle", "without_gpus=keep", "draw.months=1")
    assert code == 2
    assert "at least 48" in streams.err
    code, streams = call("trace=philly", "draw.months=many")
    assert code == 2
    assert "draw.months" in streams.err
