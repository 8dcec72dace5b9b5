"""``python -m pipelines.make_trace``: a public job trace, or months drawn from its arrival model, as a canonical jobs table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from envs.worlds.transform import scale_time, tag_classes, thin
from pipelines.cli import build, hydra_command
from pipelines.config import PUBLIC_JOBS, TraceConfig
from pipelines.drawn import DrawConfig, Drawn, draw_jobs, render
from pipelines.drawn_plot import comparison_figure
from pipelines.stages.real_traces import load_trace
from pipelines.stress import ON_JOBS, stress_of
from pipelines.workspace import write_json
from telemetry.errors import InputError


def make_jobs(
    trace: TraceConfig, time_scale: float, keep: float, seed: int, tagging: str, without_gpus: str = "keep"
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Canonical jobs of a public trace, thinned, then stretched; and the reader's counts."""
    if trace.kind not in PUBLIC_JOBS:
        raise InputError(f"trace kind '{trace.kind}' is no public job trace", allowed=", ".join(f"trace={name}" for name in PUBLIC_JOBS))
    jobs, counts = load_trace(trace.kind, Path(str(trace.path)), trace.options)
    jobs = _without_gpus(jobs, counts, without_gpus, trace.kind)
    jobs = tag_classes(jobs, tagging)
    if keep != 1:
        jobs = thin(jobs, keep, seed)
    if time_scale != 1:
        jobs = scale_time(jobs, time_scale)
    if jobs.empty:
        raise InputError("no job is left", where=f"trace '{trace.kind}'", remedy="a larger thin=")
    return jobs, counts


def _without_gpus(jobs: pd.DataFrame, counts: dict[str, int], choice: str, name: str) -> pd.DataFrame:
    """Jobs without GPUs are work of CPUs alone: leave them out and count them, or keep them."""
    if choice not in ("drop", "keep"):
        raise InputError(f"{choice!r}", where="without_gpus", allowed="drop, keep")
    if choice == "keep":
        return jobs
    on_gpus = jobs["gpus"] > 0
    counts["without_gpus"] = int((~on_gpus).sum())
    if not on_gpus.any():
        raise InputError(
            "no job asks for GPUs",
            where=f"trace '{name}'",
            remedy="without_gpus=keep writes them; the simulator plays those that say their CPUs",
        )
    return jobs[on_gpus].reset_index(drop=True)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write Parquet atomically.

    Raises:
        InputError: the file cannot be written.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(fresh, index=False)
        os.replace(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise InputError(error.strerror or str(error), where=str(path), remedy="out=FILE.parquet where files can be written") from error


def write_comparison(drawn: Drawn, table: Path, users: tuple[str, ...], session_gap_s: float, title: str) -> tuple[Path, Path]:
    """Write the comparison beside the table, as JSON and as a picture."""
    data, picture = table.with_suffix(".comparison.json"), table.with_suffix(".comparison.png")
    write_json(data, drawn.as_json())
    fresh = picture.with_name(picture.name + ".new")
    comparison_figure(drawn.parts, users, session_gap_s, title).savefig(fresh, format="png", dpi=110)
    os.replace(fresh, picture)
    return data, picture


def _number(cfg: DictConfig, key: str) -> float:
    value = cfg[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{value!r}", where=key, allowed="a number")
    return float(value)


@hydra_command("make_trace")
def main(cfg: DictConfig) -> int:
    """Write the table and say what it holds."""
    if OmegaConf.is_missing(cfg, "out") or not str(cfg.out).endswith(".parquet"):
        raise InputError("no Parquet file to write", where="out", allowed="out=FILE.parquet")
    raw: Any = OmegaConf.to_container(cfg.trace, resolve=True)
    trace = build(TraceConfig, raw, "trace")
    jobs, counts = make_jobs(
        trace, _number(cfg, "time_scale"), _number(cfg, "thin"), int(_number(cfg, "seed")), str(cfg.class_tagging), str(cfg.without_gpus)
    )
    out, draw = Path(str(cfg.out)), build(DrawConfig, cfg.draw, "draw")
    if draw.months:
        drawn = draw_jobs(jobs, draw, trace.users)
        jobs = drawn.jobs
        if jobs.empty:
            raise InputError("no job was drawn", where="draw", remedy="more months=, or another seed=")
    stress = stress_of(cfg.stress, ON_JOBS, "the others change the grid or the nodes: python -m pipelines.evaluate stress=...")
    seed = draw.seed if draw.months else int(_number(cfg, "seed"))
    notes: list[str] = []
    if stress:
        stressed = stress.apply(jobs, None, None, seed)
        jobs, notes = stressed.jobs, stress.notes({seed: stressed})
    write_table(jobs, out)
    if draw.months:
        title = f"{trace.kind}: {draw.months:g} months drawn (seed {draw.seed}) from a model of the first {draw.fit_share:.0%}"
        files = write_comparison(drawn, out, trace.users, draw.session_gap_s, title)
        print(render(drawn) + f"\n\nwritten: {files[0]}, {files[1]}")
    days = (jobs["submit_time"].max() - jobs["submit_time"].min()).total_seconds() / 86_400
    print(f"{len(jobs):,} jobs over {days:.1f} days in {cfg.out}; left out: {counts}")
    for note in notes:
        print(note)
    for flaw in trace.flaws:
        print(f"known flaw: {flaw}")
    return 0


if __name__ == "__main__":
    main()
