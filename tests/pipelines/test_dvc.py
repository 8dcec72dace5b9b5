"""The DVC pipeline says what the stages say: same order, same config groups, same earlier stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.stages.context import DEPENDS
from pipelines.workspace import STAGES

ROOT = Path(__file__).parents[2]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_stages_and_order():
    assert tuple(PIPELINE) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_changed_group_reruns_exactly_what_depends_on_it(stage):
    entry = PIPELINE[stage]
    groups, earlier = DEPENDS[stage]
    named = {dep.removeprefix("conf/") for dep in entry["deps"] if dep.startswith("conf/")}
    assert named == set(groups) - {"seed"}
    assert any("seed" in str(parameter) for parameter in entry.get("params", [])) == ("seed" in groups)
    outputs = {dep.removeprefix("outputs/dvc/") for dep in entry["deps"] if dep.startswith("outputs/dvc/")}
    assert outputs - {"lake"} == set(earlier)
    assert f"outputs/dvc/{stage}" in entry["outs"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_dependency_is_in_the_repository_or_made_by_an_earlier_stage(stage):
    made = {out for name in STAGES[: STAGES.index(stage)] for out in PIPELINE[name]["outs"]}
    assert all(dep in made or (ROOT / dep).exists() for dep in PIPELINE[stage]["deps"])
