"""``python -m runtime.decide JOB.json``: one job, one answer, from the promoted models.

Exit status: 0 a decision, 2 a state file or argument that cannot be used, 3 the job is refused, 4 no model that can be trusted.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from envs.candidates import Candidate
from envs.cluster import ClusterSpec
from envs.cluster_io import cluster_from_mapping
from envs.exploration import Exploration
from envs.reward import RewardSpec
from envs.shield import ShieldConfig
from envs.shield_io import load_shield
from envs.shielded import Ages, judge_named
from envs.state import Policy
from registry.loading import VerificationError
from registry.manifest import Manifest
from registry.mlflow_client import DEFAULT_URI
from runtime.ages import ages_of, carried_forward
from runtime.decision import Decision, decide
from runtime.forecasts import expectation_lines, expectations
from runtime.jobs import JobRefusedError, JobRequest, read_job
from runtime.logged import ALIASES, Logging, challengers_of, listen, promoted, write
from runtime.shadow import BUDGET_S
from runtime.split import UNITS, Split
from runtime.state_file import StateFile, read_state, time_of
from telemetry.errors import InputError

EXIT_INPUT, EXIT_REFUSED, EXIT_UNVERIFIED = 2, 3, 4
EXAMPLES = Path(__file__).resolve().parents[1] / "deploy" / "examples"

_EPILOG = f"""
JOB.json is a canonical job ({{"job_id", "gpus", "workload_class", and optionally "workers", "requested_duration_s", "deadline",
"max_watts", "gpu_model", "priority"}}), or a Kubernetes Pod or Job: GPUs from the resource nvidia.com/gpu, limits from annotations
such as joulewise.io/max-watts (any domain). STATE.json is described in runtime/state_file.py; examples of both lie in deploy/examples.

Hard rules hold whatever the policy proposes, and a judge answers in its place when the state or its prices are too old or cannot be
read: --shield SHIELD.yaml sets limits and margins (deploy/examples/shield.yaml, docs/shield.md). The answer says so.

With --decision-log every decision is logged with the probability of every answer (registry/decision_log.py); --shadow names challengers
that hear the same question after it is answered; --explore lets answers stray among what the shield leaves, so that the log can be
learned from; --experiment splits teams or pods between champion and challenger by a stable hash (docs/shadow.md).

exit status: 0 decided, {EXIT_INPUT} state or argument unusable, {EXIT_REFUSED} job refused, {EXIT_UNVERIFIED} no model that can be trusted

examples:
  python -m runtime.decide deploy/examples/job.json
  python -m runtime.decide pod.json --state now.json --json
  python -m runtime.decide pod.json --tracking-uri http://mlflow:5000 --fallback
  python -m runtime.decide pod.json --state now.json --shield shield.yaml --explain
  python -m runtime.decide pod.json --state now.json --decision-log decisions --shadow challenger planner --explore 0.05:0.02
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        answer = answer_for(
            options.job,
            options.state,
            options.tracking_uri,
            fallback=options.fallback,
            forecasts=not options.no_forecasts,
            shield=ShieldConfig() if options.shield is None else load_shield(options.shield),
            now=None if options.now is None else time_of(options.now, "--now"),
            explained=options.explain,
            logging=_logging(options),
        )
    except JobRefusedError as refusal:
        return _fail(options.json, EXIT_REFUSED, "refused", str(refusal))
    except VerificationError as doubt:
        remedy = "repair or roll back the registry, or decide by the judge with --fallback"
        return _fail(options.json, EXIT_UNVERIFIED, "unverified", f"{doubt}; no decision is made from it; remedy: {remedy}")
    except InputError as error:
        return _fail(options.json, EXIT_INPUT, "unusable", str(error))
    print(json.dumps(answer, indent=2) if options.json else render(answer))
    return 0


def answer_for(
    job: Path,
    state: Path | None = None,
    tracking_uri: str = DEFAULT_URI,
    *,
    fallback: bool = False,
    forecasts: bool = True,
    shield: ShieldConfig | None = None,
    now: pd.Timestamp | None = None,
    explained: bool = False,
    logging: Logging | None = None,
) -> dict[str, Any]:
    """The whole answer as plain data.

    Args:
        shield: margins, floors, limits of age, and the judge that answers beyond them.
        logging: whether and where the decision is logged, who listens, how far it may stray, and which experiment runs.
        now: by which ages are measured; None = this machine's clock, or the example state's own time when no ``state`` is given.

    Raises:
        JobRefusedError: the job must not run.
        VerificationError: no policy, or a promoted model fails its checks, and no ``fallback`` is wanted.
        InputError: the state file cannot be used.
    """
    config, logging = shield or ShieldConfig(), logging or Logging()
    request = read_job(job)
    notices = list(request.notes)
    example = state is None
    if state is None:
        state = EXAMPLES / "state.json"
        notices.append(f"no --state given: the example state of {state.name} is used")
    seen = read_state(state)
    clock = now if now is not None else seen.time if example else pd.Timestamp.now(tz="UTC")
    arm, why = logging.arm_of(request)
    notices += [why] if why else []
    policy, manifest, version, arm, doubt = _policy(tracking_uri, fallback, config, arm, notices)
    rows: list[dict[str, Any]] = []
    if forecasts:
        try:
            rows, more = expectations(tracking_uri, seen.history, seen.time)
            notices += more
        except (VerificationError, InputError) as error:
            if not fallback:
                raise
            notices.append(f"no forecast: {error}")
    explore = Exploration() if doubt else logging.explore
    decision = _decide(request, seen, policy, manifest, config, ages_of(seen, clock), explained, explore)
    listeners = challengers_of(logging.shadow, tracking_uri, notices)
    if arm == "challenger":
        listeners = [one for one in listeners if one.name != "challenger"]
    answers = listen(decision, listeners, logging.budget_s)
    written = write(logging, decision, request, version, arm, answers, notices)
    answer = _answer(decision, manifest, rows, notices, doubt)
    if logging.split is not None:
        answer["arm"] = arm
    if answers:
        answer["shadow"] = [one.plain() for one in answers]
    return answer if written is None else answer | {"decision_id": written}


def _policy(
    tracking_uri: str, fallback: bool, config: ShieldConfig, arm: str, notices: list[str]
) -> tuple[Policy, Manifest | None, str, str, str]:
    """The arm's policy with manifest and version, and the arm that answers; or the fallback, None, and why there is no other.

    A challenger that cannot be trusted leaves its unit to the champion, outside the comparison.
    """
    if arm == "challenger":
        try:
            return *promoted("challenger", tracking_uri), arm, ""
        except (VerificationError, InputError) as doubt:
            notices.append(f"the champion answers for the challenger: {doubt}")
            arm = "outside"
    try:
        return *promoted("champion", tracking_uri), arm, ""
    except (VerificationError, InputError) as doubt:
        if not fallback:
            raise doubt if isinstance(doubt, VerificationError) else VerificationError(str(doubt)) from doubt
        notices.append(f"FALLBACK: the judge '{config.fallback}' decides, because {doubt}")
        return judge_named(config.fallback), None, "", "outside" if arm == "challenger" else arm, str(doubt)


def _decide(
    request: JobRequest,
    seen: StateFile,
    policy: Policy,
    manifest: Manifest | None,
    config: ShieldConfig,
    ages: Ages,
    explained: bool,
    explore: Exploration,
) -> Decision:
    snapshot = carried_forward(seen.snapshot(request, _cluster(seen, manifest)))
    return decide(
        snapshot, request.job_id, policy, _reward(manifest), shield=config, ages=ages, explained=explained, explore=explore,
        uniform=random.random(),
    )  # fmt: skip


def _cluster(seen: StateFile, manifest: Manifest | None) -> ClusterSpec:
    if seen.cluster is not None:
        return seen.cluster
    if manifest is not None and manifest.layout.get("cluster"):
        return cluster_from_mapping(manifest.layout["cluster"], "cluster of the promoted policy")
    raise InputError("no cluster", where="state file", allowed="'cluster' as in conf/cluster", remedy="add it to the state file")


def _reward(manifest: Manifest | None) -> RewardSpec:
    return RewardSpec(**manifest.layout["reward"]) if manifest is not None and manifest.layout.get("reward") else RewardSpec()


def _answer(decision: Decision, manifest: Manifest | None, rows: list[dict[str, Any]], notices: list[str], doubt: str) -> dict[str, Any]:
    content = asdict(replace(decision, question=None))
    del content["question"]
    if doubt:
        content["fallback"] = {**decision.fallback, "used": True, "reason": doubt}
    content["decision"] = decision.chosen.verb
    content["policy"] = {"name": decision.policy, "verified": manifest is not None}
    if manifest is not None:
        gates = [f"{gate['gate']}: {gate['reason']}" for gate in manifest.gates]
        content["policy"] |= {"created": manifest.created, "commit": manifest.git.get("commit"), "gates": gates}
    return content | {"forecasts": rows, "notices": notices}


def render(answer: dict[str, Any]) -> str:
    """The answer for a person at a terminal."""
    chosen = Candidate(**answer["chosen"])
    title = "HOLD (no room now)" if answer["blocked"] else "HOLD" if chosen.verb == "hold" else f"RUN in {chosen.pool} ({chosen.site})"
    limit = f", power limit {chosen.power_limit:.0%} (level {chosen.level})" if chosen.verb == "run" else ""
    policy = answer["policy"]
    origin = f"verified, made {policy['created']}" if policy["verified"] else "not a promoted model"
    lines = [f"{answer['job_id']} at {answer['time']}: {title}{limit}", f"  by {policy['name']} ({origin})"]
    lines += [f"  because {reason}" for reason in answer["reasons"]]
    if answer["ahead"]:
        lines += ["first in the queue:", *(f"  {line}" for line in answer["ahead"])]
    lines += ["", _table([chosen, *(Candidate(**other) for other in answer["alternatives"])], answer["blocked"])]
    if answer["explanation"]:
        lines += ["", *explanation_lines(answer["explanation"])]
    if answer["forecasts"]:
        lines += ["", "expected:", *(f"  {line}" for line in expectation_lines(answer["forecasts"]))]
    lines += [f"shadow {one['name']}: {one['error'] or 'answers ' + str(one['action'])}" for one in answer.get("shadow", ())]
    lines += [f"note: {notice}" for notice in answer["notices"]]
    return "\n".join(lines)


def explanation_lines(explanation: dict[str, Any]) -> list[str]:
    """Shares of the features, and of the parts of the look-ahead score, as text."""
    lines = [f"why {explanation['chosen']} and not {explanation['runner_up']} (by {explanation['policy']}):"]
    parts = f"look-ahead {explanation['lookahead']:+.4f}, learned {explanation['residual']:+.4f}"
    lines.append(f"  ranks {explanation['difference']:+.4f} above it: {parts}")
    lines += [f"  {share:+10.4f}  {name}" for name, share in explanation["shares"].items()]
    lines.append("  the look-ahead scores differ by (less is better):")
    lines += [f"  {share:+10.4f}  {name}" for name, share in explanation["score_parts"].items() if abs(share) > 1e-6]
    return lines


def _table(candidates: list[Candidate], blocked: bool) -> str:
    head = ("", "choice", "kWh", "USD", "kg CO2", "penalty", "objective", "start", "finish")
    rows = [head]
    for index, candidate in enumerate(candidates):
        mark = "->" if index == 0 else ""
        if candidate.objective_usd is None or not candidate.allowed:
            rows.append((mark, candidate.name, candidate.why_not or ("waits for room" if blocked else ""), *[""] * 6))
            continue
        figures = (candidate.energy_kwh, candidate.cost_usd, candidate.carbon_kg, candidate.penalty_usd, candidate.objective_usd)
        shown = [f"{figure or 0.0:.3f}" for figure in figures]
        rows.append((mark, candidate.name, *shown, _clock(candidate.start), _clock(candidate.finish)))
    numeric = [row for row in rows if row[8] or row is head]
    widths = [max(len(row[column]) for row in (rows if column < 2 else numeric)) for column in range(len(head))]
    return "\n".join(_line(row, widths, excluded=not row[8]) for row in rows)


def _line(row: tuple[str, ...], widths: list[int], *, excluded: bool) -> str:
    start = f"{row[0]:>2} {row[1]:<{widths[1]}}"
    if excluded:
        return f"{start}  {row[2]}"
    return start + "".join(f"  {cell:>{width}}" for cell, width in zip(row[2:], widths[2:], strict=True))


def _clock(moment: str | None) -> str:
    return "" if moment is None else moment[5:16].replace("T", " ")


def _fail(as_json: bool, status: int, word: str, reason: str) -> int:
    if as_json:
        print(json.dumps({"decision": None, "error": word, "reason": reason}, indent=2))
    print(f"{word}: {reason}", file=sys.stderr)
    return status


def _logging(options: argparse.Namespace) -> Logging:
    explore = Exploration()
    if options.explore is not None:
        try:
            temperature, epsilon = (float(part) for part in options.explore.split(":"))
        except ValueError as error:
            raise InputError(f"'{options.explore}'", where="--explore", allowed="TEMPERATURE:EPSILON, such as 0.05:0.02") from error
        explore = Exploration(temperature=temperature, epsilon=epsilon)
    split = None if options.experiment is None else Split(options.experiment, options.share, unit=options.unit)
    return Logging(options.decision_log, tuple(options.shadow), options.shadow_budget, explore, split)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.decide",
        description="Hold this job, or run it in which pool at which power level? Answers from the promoted models, after verifying them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", type=Path, metavar="JOB.json", help="the job that asks")
    parser.add_argument("--state", type=Path, metavar="STATE.json", help="the cluster now (default: the example in deploy/examples)")
    parser.add_argument("--tracking-uri", default=DEFAULT_URI, help="model registry (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--fallback", action="store_true", help="decide by the judge that the shield names when no model can be trusted")
    parser.add_argument(
        "--shield", type=Path, metavar="SHIELD.yaml", help="margins, floors, limits of age and the fallback (default: those of the code)"
    )
    parser.add_argument(
        "--now", metavar="TIME", help="time by which ages are measured (default: this machine's clock; for the example state its own)"
    )
    parser.add_argument("--explain", action="store_true", help="add the shares of the features in the choice against the runner-up")
    parser.add_argument("--decision-log", type=Path, metavar="FOLDER", help="append the decision to the log in this folder")
    parser.add_argument(
        "--shadow", nargs="+", default=[], metavar="NAME", help=f"challengers that listen: judges, or {', '.join(ALIASES)} of the registry"
    )
    parser.add_argument("--shadow-budget", type=float, default=BUDGET_S, metavar="S", help="seconds for all of them (default: %(default)s)")
    parser.add_argument("--explore", metavar="T:EPSILON", help="let the answer stray: softmax temperature and share of even draws")
    parser.add_argument("--experiment", metavar="NAME", help="split between champion and challenger by a stable hash")
    parser.add_argument("--share", type=int, default=0, metavar="PERMILLE", help="units that take part in the experiment, of a thousand")
    parser.add_argument("--unit", choices=UNITS, default="team", help="what is split (default: %(default)s)")
    parser.add_argument("--no-forecasts", action="store_true", help="do not load the forecasters, which are shown but do not decide")
    return parser


if __name__ == "__main__":
    sys.exit(main())
