"""``python -m pipelines.promote``: what is changed is told, what is refused has exit code 1, what is wrong has 2."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest

from benchmarks.live_registry import promote_forecaster
from models.catalog import FORECASTERS
from pipelines import promote as command
from registry.promotion import current_aliases
from registry.tracking import open_tracking

NAME = "workload-forecaster"


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    tracking = open_tracking(f"sqlite:///{folder}/mlflow.db")
    ds = pd.date_range("2026-01-05", periods=120, freq="10min")
    series = pd.DataFrame({"unique_id": "gpu_demand/a", "ds": ds, "y": 10 + np.sin(np.arange(120) / 12)})
    forecaster = FORECASTERS["persistence"](freq="10min", horizon=6, season_length=24).fit(series)
    for number in range(2):
        promote_forecaster(tracking, forecaster, NAME, folder / f"package-{number}")
    return tracking


@pytest.fixture
def call(tracking, monkeypatch, capsys):
    def run(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["promote", *arguments, f"registry.tracking_uri={tracking.tracking_uri}"])
        with pytest.raises(SystemExit) as ended:
            command.main()
        return ended.value.code, capsys.readouterr()

    return run


def test_the_life_of_a_promotion(tracking, call):
    assert current_aliases(tracking.client, NAME) == {"champion": "2", "previous": "1"}
    code, told = call("rollback", f"model={NAME}", "reason=late jobs: 5% worse, it's bad")
    assert (code, current_aliases(tracking.client, NAME)) == (0, {"champion": "1"}), told.err
    assert "2 -> 1" in told.out
    assert tracking.client.get_model_version(NAME, "2").tags["rolled_back"] == "late jobs: 5% worse, it's bad"

    needed = f"registry.require_approval=[{NAME}]"
    code, told = call(f"model={NAME}", "version=2", needed)
    assert (code, "waits for approval" in told.err) == (1, True)
    code, told = call("approve", f"model={NAME}", "version=2", "by=ann", "reason=read, and replayed")
    assert (code, "approved by ann" in told.out) == (0, True), told.err
    code, told = call("promote", f"model={NAME}", "version=2", needed, "reason=again")
    assert code == 0, told.err

    code, told = call("history", "json=true")
    assert [entry["action"] for entry in json.loads(told.out)][-3:] == ["rollback", "approve", "promote"]
    code, told = call("history", f"model={NAME}")
    assert "1 -> 2" in told.out
    assert "read, and replayed" in told.out
    code, told = call("status")
    assert (code, "as recorded" in told.out) == (0, True)
    tracking.client.set_registered_model_alias(NAME, "champion", "1")
    code, told = call("status")
    assert (code, "moved past the record" in told.out) == (1, True)


def test_what_is_wrong_is_named(call):
    for arguments, word in (
        (("bake",), "history"),
        (("model=nobody",), NAME),
        (("rollback", f"model={NAME}"), "reason"),
        ((f"model={NAME}",), "no challenger"),
        ((f"model={NAME}", "version=99"), "no version 99"),
    ):
        code, told = call(*arguments)
        assert (code, word in told.err) == (2, True), (arguments, told.err)
