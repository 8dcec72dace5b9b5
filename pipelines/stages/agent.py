"""Stage ``agent``: training and validation windows, PPO, the exported policy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from envs.agent.policy import AgentPolicy
from envs.agent.population import Population, train_population
from envs.agent.selection import halves
from envs.agent.train import Metrics, TrainingResult
from envs.evaluate import evaluate
from envs.heuristics import JUDGES
from envs.kernel import Simulator
from envs.outages import with_outages
from envs.reward import RewardSpec
from envs.state import Policy, PolicySettings
from envs.windows import WindowTables, cut_windows, prepare_jobs
from envs.world import World, build_world
from pipelines.config import TrainConfig
from pipelines.spans import split_spans
from pipelines.stages.agent_worlds import training_envs
from pipelines.stages.context import StageContext
from pipelines.stages.policy_plots import learning_figure, training_figure
from pipelines.workspace import write_json
from registry.tracking import Run

# The judge whose scores the agent's logits start from, and which stays when training brings nothing.
STARTING_JUDGE = "planner"


def part_windows(config: TrainConfig, features: Path, part: str, count: int, seed: int) -> list[WindowTables]:
    """Windows of one part of the time line, from the tables of stage ``features``."""
    jobs, grid = pd.read_parquet(features / "jobs.parquet"), pd.read_parquet(features / "grid.parquet")
    start, end = split_spans(jobs, config.trace.split)[part]
    prepared = prepare_jobs(jobs, config.cluster)
    windows = cut_windows(prepared, grid, int(config.trace.window_hours * 3600), count, seed, start=start, end=end)
    return with_outages(windows, config.cluster, seed)


def part_world(config: TrainConfig, features: Path, part: str, count: int, seed: int) -> World:
    """:func:`part_windows` as a world."""
    return build_world(config.cluster, part_windows(config, features, part, count, seed))


def agent_settings() -> PolicySettings:
    """The agent decides under the same node rule, queue and sleep settings as the judge that it starts from."""
    return JUDGES[STARTING_JUDGE].settings


@dataclass
class _Progress:
    """Reports of all members to one progress bar and to a run of MLflow each, written at every validation."""

    bar: tqdm
    runs: list[Run]
    total_steps: int
    unwritten: dict[int, dict[str, float]] = field(default_factory=dict)

    def of(self, place: int) -> Metrics:
        """What member ``place`` reports to."""
        begun = place * self.total_steps

        def report(step: int, metrics: dict[str, float]) -> None:
            self.bar.update(max(0, begun + min(step, self.total_steps) - self.bar.n))
            self.unwritten.setdefault(step, {}).update(metrics)
            if "validation/objective_usd" in metrics:
                judge = metrics["validation/judge_usd"]
                self.bar.set_postfix_str(f"validation {metrics['validation/objective_usd']:.2f}, {STARTING_JUDGE} {judge:.2f} USD a window")
                self.runs[place].log_steps(self.unwritten)
                self.unwritten.clear()

        return report


def train_on(
    config: TrainConfig, features: Path, checkpoint: Path, report: Callable[[int], Metrics], warm_policy: Path | None = None
) -> Population:
    """Train on the training windows and choose on the validation windows.

    Args:
        report: what each member of the population reports to, by its place; it may raise to end the training.
        warm_policy: folder of an earlier agent to start from.
    """
    jobs, trace = pd.read_parquet(features / "jobs.parquet", columns=["submit_time"]), config.trace
    span, judge = split_spans(jobs, trace.split)["train"], JUDGES[STARTING_JUDGE]
    validation_world = part_world(config, features, "validation", trace.validation_windows, config.seed + 1)

    def objectives(policy: Policy) -> np.ndarray:
        return evaluate(validation_world, {"policy": policy}, reward=config.reward, threads=config.agent.threads)[
            "objective_usd"
        ].to_numpy()

    def make_env(seed: int) -> Any:
        return training_envs(config, features, span, judge, world_seed=config.seed, seed=seed)

    return train_population(
        make_env,
        judge.settings,
        config.agent,
        objectives,
        seed=config.seed,
        judge=objectives(judge),
        checkpoint=checkpoint,
        report=report,
        start=None if warm_policy is None else AgentPolicy.load(warm_policy).weights,
    )


def _train(
    config: TrainConfig, features: Path, checkpoint: Path, runs: list[Run], warm_policy: Path | None
) -> tuple[Population, np.ndarray]:
    """What was trained, and a few observations as an input example, float32 ``[4, D]``."""
    total = config.agent.total_steps * config.agent.population
    with tqdm(total=total, desc="agent", unit="decision", unit_scale=True, dynamic_ncols=True) as bar:
        population = train_on(config, features, checkpoint, _Progress(bar, runs, config.agent.total_steps).of, warm_policy)
    example = part_world(config, features, "train", config.trace.train_windows, config.seed)
    return population, _example(example, JUDGES[STARTING_JUDGE].settings)


def _example(world: World, settings: PolicySettings) -> np.ndarray:
    """First observations of four windows."""
    simulator = Simulator(world, 4, settings, RewardSpec())
    simulator.reset(np.arange(4) % world.n_windows)
    return simulator.observe().copy()


def windows_apart(start: pd.DatetimeIndex, hours: float) -> int:
    """How many of the windows that begin at ``start`` can be taken without two of them overlapping."""
    count, free = 0, None
    for begin in sorted(start):
        if free is None or begin >= free:
            count, free = count + 1, begin + pd.Timedelta(hours=hours)
    return count


def result_facts(population: Population, apart: int) -> dict[str, Any]:
    """What ``result.json`` says: whether the agent is better than its judge, by how much, on which windows, and all members.

    ``apart`` of the windows to confirm on do not overlap: those that do share their luck, and the interval does not know it.
    """
    result = population.result
    return {
        "improved": result.improved,
        "judge": STARTING_JUDGE,
        "verdict": result.verdict.described() if result.verdict is not None else None,
        "best_step": result.best_step,
        "best_objective_usd": result.best_objective,
        "stopped_early": result.stopped_early,
        "validation_objectives_usd": result.windows.tolist(),
        "judge_objectives_usd": result.judge.tolist(),
        "population": population.described(),
        "windows_apart": apart,
        "said": said(result, len(population.members), apart),
    }


def said(result: TrainingResult, members: int, apart: int) -> str:
    """The outcome in a sentence."""
    found = result.verdict
    if found is None:
        return "nothing was validated"
    of = f"the best of {members} trainings" if members > 1 else "the agent"
    held = "windows that took no part in choosing it" if found.held_back else "the same windows that it was chosen on"
    change = f"{abs(found.gain):.1%} {'below' if found.gain > 0 else 'above'} the judge {STARTING_JUDGE}'s objective"
    between = "" if np.isnan(found.low) else f" [{found.low:+.1%}, {found.high:+.1%}]"
    end = "it is accepted" if found.improved else f"{STARTING_JUDGE}'s decisions stay"
    overlap = f" ({apart} of them apart in time, so the interval is too narrow)" if apart < found.windows else ""
    return f"{of} is {change}{between} on {found.windows} {held}{overlap}: {end}"


def run_agent(context: StageContext, out: Path) -> None:
    """Train the agent and write ``policy/``, ``curve.parquet``, ``validation.parquet``, ``observation_example.npy`` and ``result.json``."""
    features, config = context.folder("features"), context.config
    checkpoint = context.workspace.scratch("agent", context.key("agent")) / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        population, example = _train(config, features, checkpoint, _runs(context, stack), context.warm_policy)
    result = population.result
    np.save(out / "observation_example.npy", example)
    result.policy.save(out / "policy")
    pd.DataFrame([{"step": step, **metrics} for step, metrics in result.curve]).to_parquet(out / "curve.parquet")
    validation_frame(result).to_parquet(out / "validation.parquet")
    validation = part_windows(config, features, "validation", config.trace.validation_windows, config.seed + 1)
    confirming = [window.start for window in validation][halves(len(validation))[1]]
    facts = result_facts(population, windows_apart(pd.DatetimeIndex(confirming), config.trace.window_hours))
    write_json(out / "result.json", facts)
    run = context.run
    run.set_tags({"agent.improved": str(result.improved).lower(), "agent.result": facts["said"]})
    gains = {"gain": result.verdict.gain, "gain_low": result.verdict.low, "gain_high": result.verdict.high}
    run.log_metrics({f"agent/{name}": value for name, value in gains.items() if np.isfinite(value)})
    run.log_figure(learning_figure(out), "learning")
    run.log_figure(training_figure(out), "training")


def _runs(context: StageContext, stack: ExitStack) -> list[Run]:
    """A run for each member: the stage's own for one, children for more."""
    members = context.config.agent.population
    if members == 1:
        return [context.run]
    return [stack.enter_context(context.run.child(f"agent, member {place}")) for place in range(members)]


def validation_frame(result: TrainingResult) -> pd.DataFrame:
    """``step, objective_usd, confirmation_usd, judge_usd, judge_confirmation_usd``: means over the windows to choose and to confirm on."""
    choosing, confirming = halves(len(result.judge))
    frame = pd.DataFrame(result.validation, columns=["step", "objective_usd"])
    frame["confirmation_usd"] = [value for _, value in result.confirmation]
    return frame.assign(judge_usd=float(result.judge[choosing].mean()), judge_confirmation_usd=float(result.judge[confirming].mean()))
