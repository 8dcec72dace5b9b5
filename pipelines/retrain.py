"""``python -m pipelines.retrain``: open triggers, or the schedule, to challengers that replace their champions only through the gates.

Killed at any point it resumes when it is started again, or leaves the champion as it was. See docs/retraining.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from pipelines.cli import build, hydra_command
from pipelines.config import TrainConfig, train_config
from pipelines.retraining.attempt_run import Learning, described, run_attempt
from pipelines.retraining.attempts import Attempt, ModelState, Outcome, record
from pipelines.retraining.fresh import Fresh
from pipelines.retraining.notify import notify
from pipelines.triggers import Trigger, TriggerLog
from pipelines.workspace import fingerprint
from registry.manifest import REGISTERED_NAMES
from registry.tracking import open_tracking
from telemetry.errors import InputError
from telemetry.times import utc_times

WARM = ("lightgbm", "lstm", "ensemble", "agent")
OWN_KEYS = ("models", "trigger", "triggers", "force", "now", "state", "keep", "warm", "fresh", "notify", "lock_timeout_s")


@dataclass(frozen=True)
class NotifyConfig:
    """Whom to tell: a file that holds the URL of a webhook, and how long to wait for it."""

    url_file: str | None = None
    timeout_s: float = 10.0


@dataclass(frozen=True)
class RetrainConfig:
    """The command's configuration, checked."""

    train: TrainConfig
    models: tuple[str, ...]
    trigger: str | None
    triggers: TriggerLog
    force: bool
    learning: Learning
    state: Path
    keep: int
    notify: NotifyConfig
    lock_timeout_s: float


def retrain_config(cfg: DictConfig) -> RetrainConfig:
    """Check and convert.

    Raises:
        InputError: a value outside its range.
    """
    raw: Any = OmegaConf.to_container(cfg, resolve=True)
    own = {key: raw[key] for key in OWN_KEYS}
    given = DictConfig({key: value for key, value in raw.items() if key not in OWN_KEYS})
    models = (own["models"],) if isinstance(own["models"], str) else tuple(own["models"] or ())
    if not models or set(models) - set(REGISTERED_NAMES):
        raise InputError(f"{list(models)}", where="models", allowed=", ".join(REGISTERED_NAMES))
    warm = own["warm"]
    if not isinstance(warm, dict) or set(warm) - set(WARM) or not all(isinstance(value, bool) for value in warm.values()):
        raise InputError(f"{warm!r}", where="warm", allowed=f"true or false for each of {', '.join(WARM)}")
    fresh = build(Fresh, own["fresh"], "fresh")
    if not 0 < fresh.test_share < 1:
        raise InputError(f"{fresh.test_share}", where="fresh.test_share", allowed="between 0 and 1")
    if fresh.min_windows < 2:
        raise InputError(f"{fresh.min_windows}", where="fresh.min_windows", allowed="a whole number from 2")
    if isinstance(own["keep"], bool) or not isinstance(own["keep"], int) or own["keep"] < 1:
        raise InputError(f"{own['keep']!r}", where="keep", allowed="a whole number from 1")
    if not isinstance(own["force"], bool):
        raise InputError(f"{own['force']!r}", where="force", allowed="true, false")
    timeout_s = own["lock_timeout_s"]
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or timeout_s < 0:
        raise InputError(f"{timeout_s!r}", where="lock_timeout_s", allowed="seconds from 0")
    return RetrainConfig(
        train=train_config(given),
        models=models,
        trigger=None if own["trigger"] is None else str(own["trigger"]),
        triggers=TriggerLog(Path(str(own["triggers"])), 0.0),
        force=own["force"],
        learning=Learning(warm, fresh, _moment(own["now"])),
        state=Path(str(own["state"])),
        keep=own["keep"],
        notify=build(NotifyConfig, own["notify"], "notify"),
        lock_timeout_s=float(timeout_s),
    )


def _moment(value: Any) -> pd.Timestamp | None:
    if value is None:
        return None
    times, wrong = utc_times([str(value)])
    if wrong.any() or times.isna().any():
        raise InputError(f"{value!r}", where="now", allowed="a time such as 2026-01-05T12:00 (UTC)")
    return times.iloc[0].tz_localize(None)


def config_mark(config: RetrainConfig) -> str:
    """What an attempt has to agree with to be gone on with."""
    learning = config.learning
    return fingerprint([config.train.raw, dict(learning.warm), str(learning.fresh), str(learning.now)])


def retrain_model(config: RetrainConfig, model: str) -> list[tuple[Attempt, Outcome, str]]:
    """Go on with what a killed process left of this model, then take its open triggers, or the schedule; one attempt after the other.

    Returns:
        Attempts with their outcomes and whether someone was told; none when there was nothing to do.

    Raises:
        InputError: another process retrains this model.
    """
    state, mark, done = ModelState(config.state, model), config_mark(config), []
    with state.locked(config.lock_timeout_s):
        left = state.open()
        if left is not None and left.fingerprint != mark and left.outcome is None:
            left = state.settle(left, Outcome("abandoned", "it was begun with another configuration"))
        if left is not None:
            if left.outcome is None:
                print(f"{model}: resuming {left.id}", flush=True)
            done.append(_finish(config, state, left))
        forced = config.force and not (left is not None and done[-1][1].action != "abandoned")
        if triggers := _open_triggers(config, model):
            attempt = state.begin(tuple(trigger.id for trigger in triggers), _why(triggers), mark)
            claimed = [trigger for trigger in triggers if config.triggers.claim(trigger.id)]
            if claimed:
                if len(claimed) < len(triggers):
                    attempt = state.begin(tuple(trigger.id for trigger in claimed), _why(claimed), mark)
                done.append(_finish(config, state, attempt))
            else:
                state.end(config.keep)
        elif forced:
            done.append(_finish(config, state, state.begin((), "schedule", mark)))
    return done


def _open_triggers(config: RetrainConfig, model: str) -> list[Trigger]:
    own = [trigger for trigger in config.triggers.open() if trigger.model == model]
    return [trigger for trigger in own if config.trigger in (None, trigger.id)]


def _why(triggers: Sequence[Trigger]) -> str:
    return "; ".join(f"{trigger.rule}: {trigger.reason} ({trigger.id})" for trigger in triggers)


def _finish(config: RetrainConfig, state: ModelState, attempt: Attempt) -> tuple[Attempt, Outcome, str]:
    """Train unless that is done, then tell, record and close: each of it can be done again after a kill."""
    if attempt.outcome is None:
        attempt = state.settle(attempt, _train(config, state, attempt))
    outcome = attempt.outcome
    assert outcome is not None
    entry = {"id": attempt.id, "model": attempt.model, "trigger": attempt.why, "triggers": list(attempt.triggers), "begun": attempt.begun}
    entry |= described(outcome)
    told = notify(
        None if config.notify.url_file is None else Path(config.notify.url_file),
        {**entry, "text": line(attempt, outcome)},
        config.notify.timeout_s,
    )
    record(config.state, {**entry, "ended": datetime.now(UTC).isoformat(timespec="seconds"), "notified": told})
    known = {trigger.id for trigger in config.triggers.open()}
    for id in known.intersection(attempt.triggers) if outcome.closes_triggers else ():
        config.triggers.finish(id, outcome.action)
    state.end(config.keep)
    return attempt, outcome, told


def _train(config: RetrainConfig, state: ModelState, attempt: Attempt) -> Outcome:
    registry = config.train.registry
    try:
        tracking = open_tracking(registry.tracking_uri, registry.artifact_root, registry.experiment)
        return run_attempt(replace(config.train, output_dir=state.workspace(attempt)), attempt, config.learning, tracking)
    except Exception as error:  # whatever fails in a night's run must be recorded and told; the champion is as it was
        return Outcome("failed", f"{type(error).__name__}: {error}")


def line(attempt: Attempt, outcome: Outcome) -> str:
    """One line for people."""
    version = f" version {outcome.version}" if outcome.version else ""
    serves = f"; version {outcome.champion} serves" if outcome.champion else ""
    started = f" ({outcome.started})" if outcome.started else ""
    return f"{attempt.model}{version}{started}: {outcome.action}: {outcome.reason}{serves}; because of {attempt.why}"


@hydra_command("retrain")
def main(cfg: DictConfig) -> int:
    """Retrain each model that has a reason to be."""
    config = retrain_config(cfg)
    if config.trigger is not None and config.trigger not in {trigger.id for trigger in config.triggers.open()}:
        raise InputError(
            f"no open trigger {config.trigger}",
            where=str(config.triggers.path),
            allowed=", ".join(t.id for t in config.triggers.open()) or "none is open",
        )
    worst = 0
    with tqdm(config.models, desc="models", unit="model", dynamic_ncols=True) as bar:
        for model in bar:
            bar.set_postfix_str(model)
            try:
                done = retrain_model(config, model)
            except InputError as error:
                tqdm.write(f"{model}: not retrained: {error}")
                worst = 1
                continue
            if not done:
                tqdm.write(f"{model}: no open trigger (force=true retrains without one)")
            for attempt, outcome, told in done:
                tqdm.write(line(attempt, outcome))
                if told.startswith("failed"):
                    tqdm.write(f"  notification {told}")
                worst = max(worst, 1 if outcome.action == "failed" else 0)
    return worst


if __name__ == "__main__":
    main()
