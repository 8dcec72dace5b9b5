"""What a policy may do, one lever at a time taken away: the same policy without it, on the same windows.

A lever is a change of the policy's settings or of the cluster, so that a judge stays compiled and an agent needs no retraining.

| lever | what is taken away | how |
|---|---|---|
| ``no_forecasts`` | price, carbon and PUE beyond the step in force | ``PolicySettings.price_forecast = "none"`` |
| ``perfect_forecasts`` | their error: what better forecasts could add | ``PolicySettings.price_forecast = "perfect"`` |
| ``no_caps`` | power levels below full power | ``ClusterSpec.level_fractions = (1.0,)`` |
| ``no_sleep`` | sleep of idle nodes | ``PolicySettings.sleep_after_s = -1`` |
| ``no_deferral`` | to hold a job that could run | no class is deferrable |
| ``no_migration`` | to pause, move or recap a running job | ``PolicySettings.review_s = 0`` |

Without caps a job whose ``max_watts`` only a lower level keeps is rejected. A policy that never used a lever does not miss it.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace

from envs.cluster import ClusterSpec
from envs.state import Policy, PolicySettings

FORECAST_FIELD = "price_forecast"


@dataclass(frozen=True)
class Lever:
    """One change; ``settings`` and ``cluster`` give the changed ones, and the very same ones where nothing is taken away."""

    name: str
    summary: str
    settings: Callable[[PolicySettings], PolicySettings]
    cluster: Callable[[ClusterSpec], ClusterSpec]
    needs: str | None = None

    @property
    def available(self) -> bool:
        """Whether the simulator has the setting that the lever changes."""
        return self.needs is None or self.needs in {field.name for field in fields(PolicySettings)}


def with_settings(policy: Policy, settings: PolicySettings) -> Policy:
    """The policy under other settings; ``policy`` itself stays as it is."""
    if settings == policy.settings:
        return policy
    if is_dataclass(policy) and not isinstance(policy, type):
        return replace(policy, settings=settings)
    twin = copy(policy)
    twin.settings = settings
    return twin


def _same_settings(settings: PolicySettings) -> PolicySettings:
    return settings


def _same_cluster(cluster: ClusterSpec) -> ClusterSpec:
    return cluster


def _setting(name: str, value: object) -> Callable[[PolicySettings], PolicySettings]:
    return lambda settings: replace(settings, **{name: value})


def _full_power(cluster: ClusterSpec) -> ClusterSpec:
    return replace(cluster, level_fractions=(1.0,))


def _at_once(cluster: ClusterSpec) -> ClusterSpec:
    return replace(cluster, objectives={name: replace(objective, deferrable=False) for name, objective in cluster.objectives.items()})


LEVERS: dict[str, Lever] = {
    lever.name: lever
    for lever in (
        Lever(
            "no_forecasts",
            "no price, carbon or PUE beyond the step in force",
            _setting(FORECAST_FIELD, "none"),
            _same_cluster,
            FORECAST_FIELD,
        ),
        Lever("perfect_forecasts", "forecasts without error", _setting(FORECAST_FIELD, "perfect"), _same_cluster, FORECAST_FIELD),
        Lever("no_caps", "full power only", _same_settings, _full_power),
        Lever("no_sleep", "nodes never sleep", _setting("sleep_after_s", -1), _same_cluster),
        Lever("no_deferral", "no job is held that could run", _same_settings, _at_once),
        Lever("no_migration", "running jobs are left alone", _setting("review_s", 0), _same_cluster),
    )
}
