"""``python -m pipelines.replay``: one window under one policy, as a page to read and as files from which every total can be recomputed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from tqdm import tqdm

from envs.evaluate import window_metrics
from envs.events import events_frame
from envs.kernel import run_policy
from envs.replay.episode import STEPS, Episode, files_of, largest_difference, tell
from envs.replay.facts import facts_of
from envs.replay.page import page_of
from envs.reward import RewardSpec
from envs.state import Policy
from envs.world import World, build_world
from pipelines.cli import build, hydra_command, name_sources
from pipelines.equipment import equipped
from pipelines.policies import policy_names, resolve_policy
from pipelines.trials import Trial, by_jobs, queue_policy, queue_runs_itself, span_trial, swf_trial, table_trial, whole_number
from telemetry.errors import InputError

TOLERANCE = 1e-9
PAGE, TOTALS = "replay.html", "totals.json"


def replay(
    world: World,
    policy: Policy,
    reward: RewardSpec,
    *,
    name: str = "",
    about: Mapping[str, Any] | None = None,
    slowdown_threshold_s: float = 10.0,
    progress: bool = False,
) -> Episode:
    """Run the world's only window under the policy and tell it from its log.

    Totals of the log that do not agree with the simulator's own to ``TOLERANCE`` are told as a warning on the page.

    Raises:
        InputError: more than one window.
    """
    if world.n_windows != 1:
        raise InputError(f"{world.n_windows} windows", where="replay", allowed="one", remedy="take one with window=")
    with tqdm(total=len(STEPS) + 1, desc="replay", unit="step", disable=not progress, dynamic_ncols=True) as bar:

        def step(doing: str) -> None:
            bar.set_postfix_str(doing, refresh=False)
            bar.update()

        bar.set_postfix_str("simulate")
        totals = run_policy(world, policy, reward, event_log=True)
        assert totals.events is not None
        facts = facts_of(world, 0, name or policy.name, policy.settings, reward)
        told = {"policy_summary": getattr(policy, "summary", ""), **(about or {})}
        events = events_frame(world, 0, totals.events[0])
        episode = tell(events, facts, about=told, slowdown_threshold_s=slowdown_threshold_s, step=step)
        step("compare")
    simulated = window_metrics(world, totals, reward, slowdown_threshold_s).iloc[0].to_dict()
    worst, gap = largest_difference(episode.totals["window"], simulated, list(episode.totals["window"]))
    told["largest_difference_to_simulator"] = {"name": worst, "relative": gap}
    if gap > TOLERANCE:
        told["warnings"] = [f"The event log and the simulator disagree: {worst} by {gap:.1e} of its value."]
    return replace(episode, about=told)


def run(cfg: DictConfig) -> Episode:
    """Everything but writing."""
    reward = build(RewardSpec, cfg.reward, "reward")
    seed = whole_number(cfg.seed, "seed", low=0)
    if queue_runs_itself(cfg, named=cfg.policy is not None):
        ((name, policy),) = queue_policy(cfg.queue.order or "fcfs", cfg.queue.discipline or "strict").items()
        trial, window = swf_trial(cfg, (seed,)), _index(cfg.window, cfg.windows or 1)
    else:
        if cfg.policy is None:
            raise InputError("no policy given", where="policy", allowed=", ".join(policy_names()), remedy="policy=NAME")
        name = str(cfg.policy)
        policy = resolve_policy(name, cfg.registry.tracking_uri)
        trial, window = _trial(cfg, seed)
    if trial.reported:
        raise InputError("telemetry_loss", where="stress", allowed="stresses of the world itself", remedy="see it with pipelines.evaluate")
    trial, _ = equipped(cfg, trial)
    if hasattr(policy, "reseed"):
        policy.reseed(seed)
    world = build_world(trial.cluster, [trial.windows[seed][window]])
    about = {**trial.description, "window": window, "seed": seed, "notes": list(trial.notes)}
    threshold = float(cfg.trace.bounded_slowdown_threshold_s)
    return replay(world, policy, reward, name=name, about=about, slowdown_threshold_s=threshold, progress=bool(cfg.progress))


def _trial(cfg: DictConfig, seed: int) -> tuple[Trial, int]:
    """The windows and which of them."""
    if by_jobs(cfg):
        with_default = cfg.copy()
        with_default.windows = cfg.windows or 1
        return table_trial(with_default, (seed,)), _index(cfg.window, with_default.windows)
    if isinstance(cfg.window, int) and not isinstance(cfg.window, bool):
        trial = table_trial(cfg, (seed,))
        return trial, _index(cfg.window, len(trial.windows[seed]))
    if cfg.windows is not None and cfg.window is None:
        trial = table_trial(cfg, (seed,))
        return trial, _index(None, len(trial.windows[seed]))
    return span_trial(cfg, seed, None if cfg.window is None else _time(cfg.window)), 0


def _index(value: Any, count: int) -> int:
    if value is None and count == 1:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise InputError(f"window={value} of {count} windows", where="window", allowed=f"a whole number from 0 to {count - 1}")
    return value


def _time(value: Any) -> pd.Timestamp:
    try:
        at = pd.Timestamp(str(value))
    except ValueError as error:
        raise InputError(
            f"window={value}", where="window", allowed="a time such as 2017-10-09T00:00 (UTC), or a whole number from 0"
        ) from error
    if at is pd.NaT:
        raise InputError(f"window={value}", where="window", allowed="a time such as 2017-10-09T00:00 (UTC)")
    return at.tz_localize("UTC") if at.tzinfo is None else at.tz_convert("UTC")


# ---------------------------------------------------------------- writing


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds something that no replay wrote.

    Raises:
        InputError: it does.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / TOTALS).is_file())):
        raise InputError(
            "exists and was not written by a replay",
            where=str(folder),
            allowed="a new or empty folder, or an earlier replay",
            remedy="out=FOLDER",
        )


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A fresh folder that takes the place of ``folder`` when the block succeeds.

    Raises:
        InputError: ``folder`` holds something that no replay wrote, or cannot be written.
    """
    check_folder(folder)
    fresh, stale = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    try:
        for leftover in (fresh, stale):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
        if folder.exists():
            os.replace(folder, stale)
        os.replace(fresh, folder)
        shutil.rmtree(stale, ignore_errors=True)
    except OSError as error:
        raise InputError(error.strerror or str(error), where=str(folder), remedy="out=FOLDER where files can be written") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_replay(episode: Episode, folder: Path) -> None:
    """Page, log, tables and totals, as a whole or not at all."""
    with replacing(folder) as fresh:
        for name, content in files_of(episode).items():
            (fresh / name).write_bytes(content)
        (fresh / PAGE).write_text(page_of(episode), encoding="utf-8")


def render(episode: Episode) -> str:
    """What the command prints."""
    window, facts = episode.totals["window"], episode.facts
    lines = [f"{facts.policy} on {facts.cluster} from {facts.window_start:%Y-%m-%d %H:%M} UTC, {window['hours']:,.1f} h"]
    lines += [f"note: {note}" for note in episode.about.get("notes", ())]
    lines.append(f"{window['energy_kwh']:,.3f} kWh, {window['cost_usd']:,.3f} USD, {window['carbon_kg']:,.3f} kg CO2e")
    rate = window["sla_violation_rate"]
    lines.append(
        f"{window['jobs_submitted']:,} jobs, {'no' if rate is None else f'{100 * rate:.2f} %'} violated "
        f"({window['late_starts']:,} late starts, {window['missed_deadlines']:,} missed deadlines, {window['jobs_rejected']:,} rejected)"
    )
    causes = episode.misses["cause"].value_counts()
    if len(causes):
        lines.append("main causes: " + ", ".join(f"{cause} {count:,}" for cause, count in causes.items()))
    gap = episode.about["largest_difference_to_simulator"]["relative"]
    lines.append(f"totals recomputed from the log: largest relative difference to the simulator {gap:.1e}")
    return "\n".join(lines)


@hydra_command("replay")
def _command(cfg: DictConfig) -> int:
    out = Path(str(cfg.out))
    check_folder(out)
    episode = run(cfg)
    write_replay(episode, out)
    print(render(episode))
    print(f"\nwritten: {out / PAGE}")
    warnings = episode.about.get("warnings", [])
    for text in warnings:
        print(f"warning: {text}")
    return 1 if warnings else 0


def main() -> None:
    """Entry point."""
    name_sources()
    _command()


if __name__ == "__main__":
    main()
