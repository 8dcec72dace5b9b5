"""``python -m pipelines.shadow``: what another policy's answers would have cost, from the log of decisions; and the guardrails on it."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from envs.exploration import Exploration
from envs.off_policy import ESTIMATES, Evaluation, Interval, OverlapLimits, compare_answers, direct_model, evaluate_target, weights_of
from pipelines.cli import build, hydra_command
from pipelines.evaluation_report import plain
from pipelines.policies import PROMOTED, resolve_policy
from pipelines.shadowing.decisions import chances_of, decisions_of, groups_of, outcomes_of, questions_of, with_outcomes
from pipelines.shadowing.picture import evaluation_figure, guard_figure
from pipelines.workspace import write_json
from registry.decision_log import Logged, read_log
from registry.guardrails import GuardConfig, Watched, stop, watch
from registry.mlflow_client import open_client
from registry.promotion import PromotionError, current_aliases, rollback
from telemetry.errors import InputError

MODES, UNITS, MODELS = ("evaluate", "guard"), ("decision", "day", "team"), ("lightgbm", "ridge", "none")
ESTIMAND = {
    "decision": "mean bill in USD of the job of a decision, from the decision to the job's end, over the questions that the logging policy "
    "met, if this one answer were the target's and all others stayed as they were",
    "day": "mean bill in USD of a job on a day that the arm decides throughout",
    "team": "mean bill in USD of a job of a team that the arm decides for throughout; the arms share the cluster",
}


@dataclass(frozen=True)
class Settings:
    """How estimates are made; see ``envs.off_policy``."""

    unit: str
    model: str
    switch_weight: float
    level: float
    samples: int
    seed: int

    def __post_init__(self) -> None:
        for name, allowed in (("unit", UNITS), ("model", MODELS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{getattr(self, name)!r}", where=f"estimate.{name}", allowed=", ".join(allowed))
        if not 0 < self.level < 1 or self.samples < 0 or not self.switch_weight > 0:
            raise InputError(
                f"level {self.level}, samples {self.samples}, switch_weight {self.switch_weight}",
                where="estimate",
                allowed="level above 0 and below 1, samples from 0, switch_weight above 0",
            )


@dataclass(frozen=True)
class Found:
    """What an evaluation found: the document, its lines, and whether every target was concluded on."""

    document: dict[str, Any]
    lines: list[str]
    figure: Any
    concluded: bool


def evaluate_log(cfg: DictConfig, logged: Logged) -> Found:
    """Estimates of every target from the log."""
    settings, limits = build(Settings, cfg.estimate, "estimate"), build(OverlapLimits, cfg.limits, "limits")
    questions = questions_of(logged, since=_text(cfg.since), until=_text(cfg.until))
    head: dict[str, Any] = {"estimand": ESTIMAND[settings.unit], "log": logged.counts, "dropped": questions.dropped, **asdict(settings)}
    if settings.unit != "decision":
        return _evaluate_arms(cfg, settings, limits, questions, head)
    names = _names(cfg.policies)
    policies = {name: resolve_policy(name, str(cfg.registry.tracking_uri)) for name in names}
    log = decisions_of(questions)
    predicted = direct_model(log, settings.model, seed=settings.seed)
    found: dict[str, Evaluation] = {}
    weights: dict[str, np.ndarray] = {}
    explore = build(Exploration, cfg.explore, "explore")
    for name, policy in policies.items():
        chances = chances_of(policy, explore, questions)
        found[name] = _evaluated(log, chances, predicted, limits, settings)
        weights[name] = weights_of(log, chances)
    document = head | {"targets": {name: _plain(one) for name, one in found.items()}}
    figure = evaluation_figure(found, weights)
    return Found(document, _lines(head, found), figure, not any(one.overlap.refusals for one in found.values()))


def _evaluate_arms(cfg: DictConfig, settings: Settings, limits: OverlapLimits, questions: Any, head: dict[str, Any]) -> Found:
    """Champion and challenger where whole days or teams were drawn."""
    log, table = groups_of(questions, settings.unit, _text(cfg.split))
    predicted = direct_model(log, settings.model if len(table) >= 2 else "none", seed=settings.seed)
    limits = replace(limits, effective=min(limits.effective, float(limits.clusters)), largest=max(limits.largest, 2 / limits.clusters))
    found, weights = {}, {}
    for arm, name in enumerate(("champion", "challenger")):
        chances = np.tile(np.eye(2)[arm], (len(table), 1))
        found[name], weights[name] = _evaluated(log, chances, predicted, limits, settings), weights_of(log, chances)
    document = head | {"targets": {name: _plain(one) for name, one in found.items()}}
    lines, concluded = _lines(head, found), not any(one.overlap.refusals for one in found.values())
    if concluded:
        gap = compare_answers(log, predicted, 1, 0, level=settings.level, samples=settings.samples, seed=settings.seed)
        document["challenger_less_champion"] = {name: asdict(one) for name, one in gap.items()}
        lines += ["", *(f"challenger less champion, {name:<4} {_shown(one)} USD a job" for name, one in gap.items())]
    return Found(document, lines, evaluation_figure(found, weights), concluded)


def _evaluated(log: Any, chances: np.ndarray, predicted: np.ndarray, limits: OverlapLimits, settings: Settings) -> Evaluation:
    return evaluate_target(
        log, chances, predicted, limits=limits, switch_weight=settings.switch_weight, level=settings.level, samples=settings.samples,
        seed=settings.seed, refuse=False,
    )  # fmt: skip


def _plain(one: Evaluation) -> dict[str, Any]:
    document: dict[str, Any] = {"overlap": {**asdict(one.overlap), "effective_share": one.overlap.effective_share}}
    document["logged_usd"] = asdict(one.logged)
    if not one.overlap.refusals:
        document |= {"value_usd": {name: asdict(i) for name, i in one.value.items()}}
        document |= {"difference_usd": {name: asdict(i) for name, i in one.difference.items()}}
    return document


def _lines(head: dict[str, Any], found: dict[str, Evaluation]) -> list[str]:
    dropped = "; ".join(f"{count} {reason}" for reason, count in head["dropped"].items() if count)
    lines = [f"estimated: {head['estimand']}"]
    lines += [f"left out: {dropped}"] if dropped else []
    for name, one in found.items():
        o = one.overlap
        lines += [
            "",
            f"{name}: {o.decisions:,} {head['unit']}s in {o.clusters} clusters, effective {o.effective:,.0f} ({o.effective_share:.1%}), "
            f"largest weight {o.largest_weight:.1f}, never logged {o.unlogged:.2%}, mean weight {o.mean_weight:.3f}",
        ]
        if o.refusals:
            lines.append(f"no overlap: {'; '.join(o.refusals)}")
            continue
        lines.append(f"  logged     {_shown(one.logged)} USD")
        lines += [f"  {e:<10} {_shown(one.value[e])} USD, to the log {_shown(one.difference[e], sign=True)}" for e in ESTIMATES]
    return lines


def _shown(one: Interval, *, sign: bool = False) -> str:
    form = "+.4f" if sign else ".4f"
    return f"{one.mean:{form}} [{one.low:{form}}, {one.high:{form}}]"


def _names(policies: Any) -> list[str]:
    names = [str(policies)] if isinstance(policies, str) else [str(name) for name in policies or ()]
    if not names:
        raise InputError("no policy given", where="policies", allowed=f"a judge, {', '.join(PROMOTED)}, or the folder of an exported agent")
    return names


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


# ---------------------------------------------------------------- guardrails


def guard_log(cfg: DictConfig, logged: Logged) -> tuple[Watched, dict[str, Any], list[str]]:
    """Watch an experiment's challenger, or the champion against the version before it, and act when ``guard.act`` is set."""
    plain_guard = {key: value for key, value in cfg.guard.items() if key not in ("watch", "act")}
    config = build(GuardConfig, plain_guard, "guard")
    name, frame = str(cfg.model), logged.decisions
    if cfg.guard.watch == "experiment":
        if cfg.split is None:
            run = ", ".join(sorted(set(frame["experiment"]) - {""}))
            raise InputError("no experiment given", where="split", allowed=run or "none was run")
        inside = frame[frame["experiment"] == str(cfg.split)]
        sides: tuple[dict[str, Any], dict[str, Any]] = ({"arm": "challenger"}, {"arm": "champion"})
        title = f"experiment '{cfg.split}': challenger against champion"
    elif cfg.guard.watch == "champion":
        aliases = current_aliases(open_client(str(cfg.registry.tracking_uri)), name)
        if not {"champion", "previous"} <= set(aliases):
            raise InputError(f"aliases {', '.join(aliases) or 'none'} of {name}", where="guard.watch", allowed="champion and previous")
        inside, sides = frame, ({"version": aliases["champion"]}, {"version": aliases["previous"]})
        title = f"{name}: champion, version {aliases['champion']}, against version {aliases['previous']}"
    else:
        raise InputError(f"{cfg.guard.watch!r}", where="guard.watch", allowed="experiment, champion")
    found = watch(outcomes_of(inside, *sides), config)
    lines = [f"{title}: {found.jobs:,} and {found.reference:,} jobs with an outcome"]
    done = "nothing"
    if found.breach is None:
        lines.append("within the limits")
    else:
        lines.append(f"BREACH ({found.breach.rule}) at outcome {found.breach.job}, {found.breach.time}: {found.breach.reason}")
        done = _act(cfg, found, config, name)
        lines.append(f"done: {done}")
    document = {
        "title": title, "jobs": found.jobs, "reference": found.reference, "breach": None if found.breach is None else asdict(found.breach),
        "lost_days": found.lost_days, "done": done, "config": asdict(config),
    }  # fmt: skip
    return found, document, lines


def _act(cfg: DictConfig, found: Watched, config: GuardConfig, name: str) -> str:
    assert found.breach is not None
    if not cfg.guard.act:
        return "nothing; guard.act=true stops and rolls back"
    if cfg.guard.watch == "experiment":
        stop(Path(str(cfg.log)), str(cfg.split), found.breach)
        return "experiment stopped: the champion answers everyone"
    if not found.sustained(config):
        return f"nothing yet: lost on {found.lost_days} days in a row, rolled back after {config.sustained}"
    folder = None if cfg.state_folder is None else Path(str(cfg.state_folder))
    reason = f"guardrails: {found.lost_days} days in a row, {found.breach.reason}"
    try:
        outcome = rollback(open_client(str(cfg.registry.tracking_uri)), name, reason=reason, state_folder=folder)
    except PromotionError as error:
        raise InputError(str(error), where="rollback", remedy="see python -m pipelines.promote history") from error
    return f"rolled back: version {outcome.champion} is the champion again"


# ---------------------------------------------------------------- command


@hydra_command("shadow")
def _command(cfg: DictConfig) -> int:
    if cfg.log is None:
        raise InputError("no log given", where="log", allowed="log=FOLDER", remedy="python -m runtime.decide ... --decision-log FOLDER")
    if cfg.mode not in MODES:
        raise InputError(f"{cfg.mode!r}", where="mode", allowed=", ".join(MODES))
    logged = with_outcomes(read_log(Path(str(cfg.log))), None if cfg.outcomes is None else Path(str(cfg.outcomes)))
    if logged.first_unreadable:
        print(f"note: {logged.counts['unreadable']} lines could not be read; the first: {logged.first_unreadable}")
    out = Path(str(cfg.out))
    if cfg.mode == "guard":
        watched, document, lines = guard_log(cfg, logged)
        figure, failed = guard_figure(watched, document["title"]), watched.breach is not None
    else:
        found = evaluate_log(cfg, logged)
        document, lines, figure, failed = found.document, found.lines, found.figure, not found.concluded
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{cfg.mode}.json", plain(document))
    fresh = out / f".{cfg.mode}.png"
    figure.savefig(fresh, dpi=110, format="png")
    os.replace(fresh, out / f"{cfg.mode}.png")
    print("\n".join(lines))
    print(f"\nwritten: {out / cfg.mode}.json, {cfg.mode}.png")
    return int(failed)


def main() -> None:
    """Entry point; ``guard`` as the first word sets ``mode=guard``."""
    if sys.argv[1:2] == ["guard"]:
        sys.argv[1] = "mode=guard"
    _command()


if __name__ == "__main__":
    main()
