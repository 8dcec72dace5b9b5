"""The typed configuration of the main job: Hydra's answer turned into frozen dataclasses, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from envs.agent.config import AgentConfig
from envs.cluster import ClusterSpec
from envs.cluster_io import cluster_from_mapping
from envs.reward import RewardSpec
from models.backtest_plan import BacktestConfig
from models.catalog import forecaster_class
from models.selection import Decision
from pipelines.cli import build
from pipelines.engine import EngineConfig
from pipelines.workspace import STAGES
from registry.access import Access
from registry.gates.settings import GateSettings
from registry.manifest import REGISTERED_NAMES
from telemetry.errors import InputError
from telemetry.policy import QualityPolicy

TARGETS = ("workload", "power")
BOUNDS = ("none", "lp", "milp")
PUBLIC_JOBS = ("philly", "openb", "gaia", "eagle")


def _one_of(value: str, allowed: tuple[str, ...], where: str) -> None:
    if value not in allowed:
        raise InputError(f"{value!r}", where=where, allowed=", ".join(allowed))


@dataclass(frozen=True)
class TargetConfig:
    """Which series families are forecast, and how far; cut from the lake, or from public traces under ``path``."""

    kind: str
    path: str | None
    names: tuple[str, ...]
    freq: str
    horizon: int
    season_length: int

    def __post_init__(self) -> None:
        _one_of(self.kind, ("lake", "public"), "target.kind")
        if not self.names:
            raise InputError("no target", where="target.names", allowed=", ".join(TARGETS))
        for name in self.names:
            _one_of(name, TARGETS, "target.names")


@dataclass(frozen=True)
class TraceConfig:
    """Jobs for the agent: where from, and how the time line is split into training, validation and test windows.

    ``options`` are those of a public trace's reader; ``origin`` and ``flaws`` say where it comes from and what is wrong with it,
    ``fetch`` how to bring it (``pipelines.origins``), ``users`` which columns together name a user.
    """

    kind: str
    path: str | None
    window_hours: float
    split: tuple[float, ...]
    train_windows: int
    validation_windows: int
    test_windows: int
    seeds: int
    options: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] | None = None
    flaws: tuple[str, ...] = ()
    fetch: tuple[dict[str, Any], ...] = ()
    users: tuple[str, ...] = ("team",)

    def __post_init__(self) -> None:
        _one_of(self.kind, ("lake", "table", *PUBLIC_JOBS), "trace.kind")
        if len(self.split) != 3 or min(self.split) <= 0 or abs(sum(self.split) - 1) > 1e-9:
            raise InputError(f"{self.split}", where="trace.split", allowed="three shares above 0 that sum to 1")
        for key in ("train_windows", "validation_windows", "test_windows", "seeds", "window_hours"):
            if getattr(self, key) <= 0:
                raise InputError(f"{getattr(self, key)}", where=f"trace.{key}", allowed="above 0")


@dataclass(frozen=True)
class GridConfig:
    """Price and carbon: the lake's table, a table of one's own, or public zones standing for the sites."""

    kind: str
    path: str | None
    zones: dict[str, str]

    def __post_init__(self) -> None:
        _one_of(self.kind, ("lake", "table", "public"), "grid.kind")


@dataclass(frozen=True)
class PowerConfig:
    """What is done with power forecasts beyond the forecasters themselves.

    Args:
        conditional: blend in forecasts conditional on the load forecast and the cluster's power curves.
        parts: forecast GPUs and hosts of nodes too, by empirical persistence, as the lowest level.
        caps_w: caps in W by power series, whose passing is forecast.
        cap_quantile: for pools and sites without a cap of their own: this quantile of the history before the first calibration origin.
    """

    conditional: bool
    parts: bool
    caps_w: dict[str, float]
    cap_quantile: float

    def __post_init__(self) -> None:
        if not 0 < self.cap_quantile < 1:
            raise InputError(f"{self.cap_quantile}", where="power.cap_quantile", allowed="between 0 and 1")
        for name, cap_w in self.caps_w.items():
            if isinstance(cap_w, bool) or not isinstance(cap_w, int | float) or not cap_w > 0:
                raise InputError(f"{cap_w!r}", where=f"power.caps_w, {name}", allowed="watts above 0")


@dataclass(frozen=True)
class RegistryConfig:
    """Where runs and models are kept, the gates, and the registered models that need a person's approval before they serve."""

    tracking_uri: str
    artifact_root: str | None
    experiment: str
    bootstrap_samples: int
    access: Access = field(default_factory=Access)
    gates: GateSettings = field(default_factory=GateSettings)
    require_approval: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.require_approval:
            _one_of(name, tuple(REGISTERED_NAMES), "registry.require_approval")


@dataclass(frozen=True)
class ReserveConfig:
    """What is decided by demand forecasts: costs of a reserve of warm GPUs, and how it is simulated (``conf/reserve``)."""

    shortage_usd_per_gpu_hour: float = 0.045
    idle_usd_per_gpu_hour: float = 0.009
    sleep_after_s: int = 0
    wake_latency_s: int | None = None
    tie: float = 0.01
    tolerance: float = 0.05
    required: bool = True

    def __post_init__(self) -> None:
        self.decision({})
        if self.sleep_after_s < 0:
            raise InputError(f"{self.sleep_after_s}", where="reserve.sleep_after_s", allowed="seconds from 0")
        if self.wake_latency_s is not None and self.wake_latency_s < 1:
            raise InputError(f"{self.wake_latency_s}", where="reserve.wake_latency_s", allowed="seconds from 1, or null")

    def decision(self, capacity: Mapping[str, float]) -> Decision:
        """The decision on series that reserves are set for, with the GPUs of each; on all series when there are none."""
        return Decision(self.shortage_usd_per_gpu_hour, self.idle_usd_per_gpu_hour, capacity, self.tolerance, self.tie)

    @property
    def fractile(self) -> float:
        """Quantile of demand that is kept warm."""
        return self.decision({}).fractile


@dataclass(frozen=True)
class EvaluationConfig:
    """What the evaluation of policies adds: a clairvoyant bound of so many windows of the first seed (null: of all windows of all)."""

    bound: str = "none"
    bound_windows: int | None = 10

    def __post_init__(self) -> None:
        _one_of(self.bound, BOUNDS, "evaluation.bound")
        if self.bound_windows is not None and (isinstance(self.bound_windows, bool) or self.bound_windows < 1):
            raise InputError(f"{self.bound_windows!r}", where="evaluation.bound_windows", allowed="a whole number from 1, or null")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that the main job is told; ``raw`` is the composed configuration as plain types."""

    source: dict[str, Any]
    lake: dict[str, Any]
    quality: QualityPolicy
    target: TargetConfig
    forecasters: dict[str, dict[str, Any]]
    power: PowerConfig
    backtest: BacktestConfig
    cluster: ClusterSpec
    trace: TraceConfig
    grid: GridConfig
    reward: RewardSpec
    reserve: ReserveConfig
    agent: AgentConfig
    evaluation: EvaluationConfig
    registry: RegistryConfig
    engine: EngineConfig
    seed: int
    output_dir: Path
    stages: tuple[str, ...]
    resume: bool
    raw: dict[str, Any]


def _members(node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Forecasters with their options: one (``name`` and options) or several (``{name: {name, options}}``)."""
    entries = [node] if "name" in node else list(node.values())
    members = {entry["name"]: {key: value for key, value in entry.items() if key != "name"} for entry in entries}
    for name in members:
        forecaster_class(name)
    return members


def train_config(cfg: DictConfig) -> TrainConfig:
    """Check and convert the composed configuration.

    Raises:
        InputError: an unknown key, a value outside its range, or one left open.
    """
    try:
        raw = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise InputError(str(error).splitlines()[0], where="config", remedy="give it on the command line: key=value") from error
    for name in raw["stages"]:
        _one_of(name, STAGES, "stages")
    for key, kind in (("seed", int), ("resume", bool), ("output_dir", str)):
        if not isinstance(raw[key], kind) or (kind is int and isinstance(raw[key], bool)):
            raise InputError(f"{raw[key]!r}", where=key, allowed=f"a value of type {kind.__name__}")
    cluster = cluster_from_mapping(raw["cluster"], "cluster")
    if cluster.curves:  # their content, not their path, says whether a stage is done
        raw["cluster"] = {**raw["cluster"], "curves": [asdict(point) for point in cluster.curves]}
    members = _members(raw["forecaster"])
    target = build(TargetConfig, raw["target"], "target")
    backtest = build(
        BacktestConfig,
        {**raw["backtest"], "horizon": target.horizon, "season_length": target.season_length, "seed": raw["seed"]},
        "backtest",
    )
    return TrainConfig(
        source=raw["source"],
        lake=raw["lake"],
        quality=build(QualityPolicy, raw["quality"], "quality"),
        target=target,
        forecasters=members,
        power=build(PowerConfig, raw["power"], "power"),
        backtest=backtest,
        cluster=cluster,
        trace=build(TraceConfig, raw["trace"], "trace"),
        grid=build(GridConfig, raw["grid"], "grid"),
        reward=build(RewardSpec, raw["reward"], "reward"),
        reserve=build(ReserveConfig, raw["reserve"], "reserve"),
        agent=build(AgentConfig, raw["agent"], "agent"),
        evaluation=build(EvaluationConfig, raw["evaluation"], "evaluation"),
        registry=build(RegistryConfig, raw["registry"], "registry"),
        engine=build(EngineConfig, raw["engine"], "engine"),
        seed=raw["seed"],
        output_dir=Path(raw["output_dir"]),
        stages=tuple(raw["stages"]),
        resume=raw["resume"],
        raw=raw,
    )
