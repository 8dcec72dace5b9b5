"""Every choice of every config group composes into the typed configuration of the main job; wrong keys and values are named."""

from __future__ import annotations

import pytest

from envs.agent.config import AgentConfig
from envs.reward import RewardSpec
from pipelines.cli import CONF_DIR, build, compose_config, group_choices
from pipelines.config import train_config
from telemetry.errors import InputError

GROUPS = sorted(path.name for path in CONF_DIR.iterdir() if path.is_dir())
CHOICES = [
    (group, choice) for group in GROUPS if group not in ("stress", "preset", "collector", "sweep_space") for choice in group_choices(group)
]
NEEDS_PATH = {("trace", "table"): ["trace.path=jobs.csv"], ("grid", "table"): ["grid.path=grid.csv"]}


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=[f"{g}={c}" for g, c in CHOICES])
def test_every_choice_composes(group, choice):
    config = train_config(compose_config("train", [f"{group}={choice}", *NEEDS_PATH.get((group, choice), [])]))
    assert config.agent.total_steps > 0
    assert set(config.target.names) <= {"workload", "power"}


def test_groups_mirror_the_design():
    named = "source lake target forecaster backtest cluster trace grid reward agent registry engine experiment"
    assert set(GROUPS) >= set(named.split())


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("cluster=nowhere", "sample"),
        ("agent.totl_steps=5", "agent.total_steps"),
        ("forecaster=oracle", "prophet"),
        ("sed=1", "seed"),
    ],
)
def test_wrong_key_or_choice_is_named_with_the_choices(override, named):
    with pytest.raises(InputError) as caught:
        compose_config("train", [override])
    assert override.split("=")[0] in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "agent.total_steps=many",
        "agent.gamma=1.5",
        "agent.batch_size=9999999",
        "stages=[bake]",
        "seed=now",
        "evaluation.bound=ip",
        "evaluation.bound_windows=0",
    ],
)
def test_wrong_values_are_refused(override):
    with pytest.raises(InputError) as caught:
        train_config(compose_config("train", [override]))
    assert override.split("=")[0].split(".")[-1] in str(caught.value)


def test_build_names_unknown_keys():
    with pytest.raises(InputError, match=r"w_cots.*allowed.*w_cost"):
        build(RewardSpec, {"w_cots": 1.0}, "reward")


def test_defaults_in_config_and_code_agree():
    config = train_config(compose_config("train"))
    assert config.reward == RewardSpec()
    assert config.agent == AgentConfig()


@pytest.mark.parametrize("command", ["evaluate", "replay"])
@pytest.mark.parametrize("group", ["reward", "registry"])
def test_every_choice_of_the_evaluating_commands_composes(command, group):
    for choice in group_choices(group):
        config = compose_config(command, [f"{group}={choice}", "cluster.source=sample", "trace.length=10", "queue.order=f1"])
        assert build(RewardSpec, config.reward, "reward").w_sla > 0
        assert config.registry.tracking_uri


def test_the_preset_of_held_out_windows_and_what_is_said_on_the_command_line():
    plain, held_out = compose_config("evaluate"), compose_config("evaluate", ["preset=held_out"])
    assert (plain.windows, plain.seeds, plain.part, plain.bound, plain.against) == (None, 1, None, "none", None)
    assert (held_out.windows, held_out.seeds, held_out.part, held_out.bound, held_out.against) == (50, 3, "test", "lp", "best_judge")
    assert (plain.bound_windows, held_out.bound_windows) == (None, 10)
    assert compose_config("evaluate", ["preset=held_out", "windows=60", "bound=none"]).windows == 60
    assert list(held_out.split) == list(compose_config("train").trace.split), "the span that training leaves out"
