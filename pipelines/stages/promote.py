"""Stage ``promote``: package what was learned, put it before the gates, register it, and move the champion where it won."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from envs.agent.policy import AgentPolicy
from envs.heuristics import JUDGES
from envs.observation import ObservationLayout
from models.catalog import FORECASTERS
from pipelines.stages.context import StageContext
from pipelines.stages.evaluate import POLICY_MODEL
from pipelines.stages.forecast_plots import target_figures
from pipelines.stages.forecasters import series_path
from pipelines.stages.incumbent import champion_evidence, champion_policy_evidence, class_evidence
from pipelines.stages.policy_plots import policy_figures
from pipelines.stages.probes import data_source, package_evidence, probe_evidence, training_evidence
from pipelines.stages.reserve import TARGET, decision_evidence, reserve_figure
from pipelines.workspace import read_json, write_json
from registry.gate_page import PAGE, gate_page
from registry.gates import Digest, Gate, NoPickle, StandIn, all_passed, run_configured
from registry.gates.supply import Scan, Signature
from registry.manifest import Manifest
from registry.packaging import draft_package, judge_weights, register, seal_package
from registry.promotion import champion_version, submit
from registry.provenance import data_facts, environment, git_state

INTEGRITY: tuple[Gate, ...] = (NoPickle(), Digest(), Scan(), Signature())


@dataclass(frozen=True)
class Candidate:
    """Something to package: identity, weights, what its card shows, the gates that judge it, and how it answers from its own weights."""

    identity: Manifest
    save: Callable[[Path], None]
    figures: Mapping[str, Figure]
    example: pd.DataFrame | np.ndarray
    gates: tuple[Gate, ...]
    evidence: Mapping[str, Any]
    answer: Callable[[Path], Callable[[], object]]


def _submit(context: StageContext, out: Path, candidate: Candidate) -> dict[str, Any]:
    """Judge, register and submit one candidate; returns what happened."""
    name = candidate.identity.registered_name
    expected = champion_version(context.tracking.client, name)
    draft = draft_package(
        out / name / candidate.identity.name, candidate.identity, candidate.save, figures=candidate.figures, input_example=candidate.example
    )
    asked = context.config.registry.gates
    evidence = {
        **candidate.evidence,
        **package_evidence(context, candidate.identity.kind, candidate.answer, draft.folder),
        "package": draft,
    }
    verdicts = run_configured([*candidate.gates, asked.latency_and_size, *INTEGRITY], evidence, asked.turned_off)
    sealed = seal_package(draft, verdicts)
    with context.run.child(f"package {name}: {candidate.identity.name}") as run:
        version = register(run, draft.folder)
        run.log_text(gate_page(sealed, draft.folder), PAGE)
        run.log_metrics(candidate.identity.metrics)
        run.set_tags({f"gate.{verdict.gate}": verdict.line for verdict in verdicts})
    place = context.config.registry
    outcome = submit(
        context.tracking.client,
        name,
        version,
        expected_champion=expected,
        reason="training run",
        state_folder=place.access.state,
        require_approval=place.require_approval,
    )
    return {
        "model": name,
        "name": candidate.identity.name,
        "version": version,
        "action": outcome.action,
        "champion": outcome.champion,
        "reason": outcome.reason,
        "passed": all_passed(verdicts),
        "refusals": [f"{verdict.gate}: {verdict.reason}" for verdict in verdicts if not verdict.passed],
        "gates": {verdict.gate: verdict.line for verdict in verdicts},
    }


def _with_stand_in(
    context: StageContext, out: Path, learned: Candidate | None, stand_in: Callable[[dict[str, Any]], Candidate]
) -> list[dict[str, Any]]:
    """Submit what was learned; where nothing serves afterwards, submit the stand-in."""
    results = [_submit(context, out, learned)] if learned is not None else []
    name = learned.identity.registered_name if learned is not None else stand_in({"learned": None, "refusals": []}).identity.registered_name
    if champion_version(context.tracking.client, name) is None:
        word = {"learned": results[0]["name"], "refusals": results[0]["refusals"]} if results else {"learned": None, "refusals": []}
        results.append(_submit(context, out, stand_in(word)))
    return results


def _identity(context: StageContext, kind: str, registered: str, name: str, **rest: Any) -> Manifest:
    created = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return Manifest(kind=kind, name=name, registered_name=registered, created=created, git=git_state(), environment=environment(), **rest)


def _promote_target(context: StageContext, out: Path, target: str) -> list[dict[str, Any]]:
    config = context.config
    folder = context.folder("forecasters") / target
    choice, scores = read_json(folder / "champion.json"), read_json(folder / "backtest.json")
    series = pd.read_parquet(series_path(context.folder("features"), target))
    registered = f"{target}-forecaster"
    source, licence = data_source(config)
    figures = target_figures(folder, series)
    reserve = reserve_figure(context.folder("evaluate"), choice["candidate"]) if target == TARGET else None
    figures |= {"reserve": reserve} if reserve is not None else {}
    example = series.groupby("unique_id").tail(3)[["unique_id", "ds", "y"]].reset_index(drop=True)
    skill = {"naive": choice["reference"], "windows": scores["n_origins"], "skill": 1 - choice["wql_ratio"]}
    skill |= {"low": 1 - choice["wql_ratio_high"], "high": 1 - choice["wql_ratio_low"]}

    def candidate(name: str, model: str, gates: tuple[Gate, ...], evidence: Mapping[str, Any]) -> Candidate:
        scored = scores["forecasters"][name]
        metrics = {
            key: scored["overall"][key] for key in ("wql", "sql", "mase", "coverage80", "width80") if scored["overall"].get(key) is not None
        }
        identity = _identity(
            context,
            "forecaster",
            registered,
            name,
            config={
                "target": config.raw["target"],
                "options": config.forecasters.get(name, {}),
                "backtest": config.raw["backtest"],
                "seed": config.seed,
            },
            layout={"freq": config.target.freq, "horizon": config.target.horizon, "series": sorted(series["unique_id"].unique())},
            data=data_facts(series) | {"source": source, "licence": licence},
            metrics=metrics,
        )
        loaded = FORECASTERS[name].load(folder / model)
        return Candidate(
            identity,
            loaded.save,
            figures,
            example,
            gates,
            {**evidence, "coverage": {"observed": scored["overall"]["coverage80"], "bands": scored["coverage80_by_band"]}},
            lambda weights: FORECASTERS[name].load(weights).predict,
        )

    learned = None
    if choice["candidate"]:
        gates = config.registry.gates
        simulated, decided = decision_evidence(
            context.folder("evaluate"), context.folder("forecasters"), target, required=config.reserve.required
        )
        decision = replace(gates.decision, simulated=simulated, tolerance=config.reserve.tolerance)
        evidence = {"skill_over_naive": skill, "decision": decided, "champion": champion_evidence(context, target, choice["candidate"])}
        evidence |= probe_evidence(folder) | {"training_data": training_evidence(context, series)}
        judged = (gates.skill_over_naive, decision, gates.coverage, gates.beats_champion)
        learned = candidate(
            choice["candidate"],
            "candidate",
            (*judged, gates.no_leakage, gates.seed_stability, gates.training_data, gates.licence),
            evidence,
        )
    return _with_stand_in(context, out, learned, lambda word: candidate(choice["reference"], "reference", (StandIn(),), {"stand_in": word}))


def _promote_policy(context: StageContext, out: Path) -> list[dict[str, Any]]:
    config, evaluated = context.config, context.folder("evaluate")
    summary = read_json(evaluated / "summary.json")
    jobs = pd.read_parquet(context.folder("features") / "jobs.parquet")
    best = summary["best_judge"]["judge"]
    layout = ObservationLayout(len(config.cluster.pools), len(config.cluster.level_fractions))
    figures = policy_figures(evaluated, context.folder("agent"), context.folder("features"))
    example = np.load(context.folder("agent") / "observation_example.npy")
    source, licence = data_source(config)

    def candidate(name: str, kind: str, save: Callable[[Path], None], gates: tuple[Gate, ...], evidence: Mapping[str, Any]) -> Candidate:
        keys = ("objective_usd", "cost_usd", "energy_kwh", "carbon_kg", "sla_violation_rate", "mean_wait_s", "mean_bounded_slowdown")
        identity = _identity(
            context,
            "policy",
            POLICY_MODEL,
            name,
            config={key: config.raw[key] for key in ("agent", "reward", "cluster", "trace", "seed")},
            layout={
                "pools": layout.n_pools,
                "levels": layout.n_levels,
                "observation": layout.describe(),
                "cluster": asdict(config.cluster),
                "reward": asdict(config.reward),
            },
            data=data_facts(jobs, "submit_time") | {"source": source, "licence": licence},
            metrics={key: summary["means"][kind][key] for key in keys},
        )
        champion = champion_policy_evidence(context, summary, kind)
        return Candidate(identity, save, figures, example, gates, {**evidence, "champion": champion}, answering(name))

    def answering(name: str) -> Callable[[Path], Callable[[], object]]:
        def of(weights: Path) -> Callable[[], object]:
            policy = AgentPolicy.load(weights) if name == "agent" else JUDGES[name]
            return lambda: policy.act(example[:1], layout)

        return of

    gates = config.registry.gates
    agent = AgentPolicy.load(context.folder("agent") / "policy")
    learned = candidate(
        "agent",
        "agent",
        agent.save,
        (gates.agent_over_judge, gates.class_sla, gates.beats_champion, gates.licence),
        {"best_judge": summary["best_judge"], "class_sla": class_evidence(context, summary)},
    )
    weights = judge_weights(best, JUDGES[best].settings)
    return _with_stand_in(
        context, out, learned, lambda word: candidate(best, best, weights, (StandIn(), gates.beats_champion), {"stand_in": word})
    )


def run_promote(context: StageContext, out: Path, models: Collection[str] | None = None) -> None:
    """Write ``promotion.json``: every submission with its gates' verdicts, and the champions that serve now.

    Args:
        models: registered names to submit; None for those of all targets and the policy.
    """
    results: list[dict[str, Any]] = []
    for target in context.config.target.names:
        if models is None or f"{target}-forecaster" in models:
            results += _promote_target(context, out, target)
    if models is None or POLICY_MODEL in models:
        results += _promote_policy(context, out)
    client = context.tracking.client
    names = dict.fromkeys(result["model"] for result in results)
    champions = {}
    for name in names:
        version = champion_version(client, name)
        champions[name] = {"version": version, "name": client.get_model_version(name, version).tags["model"]} if version else None
    write_json(out / "promotion.json", {"submissions": results, "champions": champions})
    context.run.log_text(json.dumps(results, indent=2), "promotion.json")
    context.run.set_tags({f"champion.{name}": json.dumps(value) for name, value in champions.items()})
