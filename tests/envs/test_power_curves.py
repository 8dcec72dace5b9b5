"""The committed power curves: monotone, sourced, and what the fit gives again from the measurements."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.fit_power_curves import fit, fit_sweep
from envs.cluster_io import cluster_from_mapping, load_cluster
from envs.power.curves import levels_for, load_curves
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TRACES = Path(os.environ.get("JOULEWISE_TRACES", ROOT.parent / "shared" / "traces"))


def test_every_model_has_every_class_and_falls_with_the_level():
    table = load_curves()
    assert {"V100", "A40", "P100", "H100", "A100"} <= set(table["gpu_model"])
    for model, rows in table.groupby("gpu_model"):
        assert set(rows["kind"]) == set(WORKLOAD_CLASSES), model
        for _, curve in rows.groupby("kind"):
            curve = curve.sort_values("level_fraction")
            assert curve["level_fraction"].iloc[-1] == 1.0
            assert (np.diff(curve["speed"]) >= 0).all()
            assert (np.diff(curve["power_w"]) >= 0).all()
    reference = table[(table["gpu_model"] == "V100") & (table["level_fraction"] == 1.0)]
    assert (reference["speed"] == 1.0).all()


def test_only_models_without_a_sweep_are_derived():
    table = load_curves()
    derived = table["source"].str.startswith("derived:")
    assert set(table.loc[~derived, "gpu_model"]) == {"V100", "A40", "P100"}
    assert set(table.loc[derived, "gpu_model"]).isdisjoint({"V100", "A40", "P100"})


def test_capping_saves_energy_per_unit_of_work_somewhere():
    speed, power_w = levels_for("V100", (1.0, 0.75, 0.55))
    assert speed.shape == power_w.shape == (3, len(WORKLOAD_CLASSES))
    energy = power_w / speed
    assert energy[1, 0] < energy[0, 0]  # training


def test_levels_between_measured_limits_are_interpolated():
    table = load_curves()
    curve = table[(table["gpu_model"] == "V100") & (table["kind"] == "training")].set_index("level_fraction")["power_w"]
    _, power_w = levels_for("V100", (1.0, 0.55))
    assert power_w[1, 0] == pytest.approx((curve[0.5] + curve[0.6]) / 2)


def test_unknown_model_and_unmeasured_level_are_named():
    with pytest.raises(InputError, match=r"V1000.*A100.*V100"):
        levels_for("V1000", (1.0,))
    with pytest.raises(InputError, match=r"P100.*0\.5"):
        levels_for("P100", (1.0, 0.3))


def test_a_curve_that_rises_as_the_level_falls_is_refused(tmp_path: Path):
    table = load_curves()
    rows = (table["gpu_model"] == "A40") & (table["kind"] == "training") & (table["level_fraction"] < 0.5)
    table.loc[rows, "power_w"] = 999.0
    table.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(InputError, match="power_w rises"):
        load_curves(tmp_path / "bad.csv")


def test_the_fit_is_monotone_on_noisy_sweeps():
    noisy = pd.DataFrame(
        {
            "dataset": "movielens-1m",
            "network": "ncf",
            "batch_size": 1024,
            "optimizer": "adam",
            "power_limit": [100, 125, 150, 175],
            "time_per_epoch": [8.0, 8.3, 7.9, 8.1],
            "average_power": [36.0, 35.0, 38.0, 37.0],
        }
    )
    result = fit_sweep(noisy, 250.0, "interactive")
    assert (np.diff(result["seconds"]) <= 0).all()
    assert (np.diff(result["power_w"]) >= 0).all()
    assert result["power_w"].mean() == pytest.approx(36.5)  # isotonic regression keeps the mean


def test_the_committed_curves_are_what_the_measurements_give():
    if not (TRACES / "c_power").is_dir():
        pytest.skip(f"no measurements at {TRACES}")
    pd.testing.assert_frame_equal(fit(TRACES), load_curves(), check_exact=False, atol=0.051, rtol=0)


def test_named_clusters_load_and_have_curves():
    names = sorted(path.stem for path in (ROOT / "conf" / "cluster").glob("*.yaml"))
    assert {"sample", "small", "mixed"} <= set(names)
    for name in names:
        cluster = load_cluster(name, ROOT / "conf")
        assert cluster.name == name
        for pool in cluster.pools:
            _, power_w = levels_for(pool.gpu_model, cluster.level_fractions)
            assert (power_w > pool.gpu_idle_w).all(), pool.name
    sample = load_cluster("sample", ROOT / "conf")
    assert sample.total_gpus == 48
    assert sample.node_names[0] == "west-v100-0000"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, r"unknown key colour.*level_fractions"),
        (
            {"pools": [{"name": "p", "site": "a", "gpu_model": "V100", "nodes": 1, "gpus": 4}]},
            r"pools\[0\].*unknown key gpus.*gpus_per_node",
        ),
        ({"pools": [{"name": "p", "site": "a"}]}, r"missing key gpu_model"),
        ({"pools": [{"name": "p", "site": "a", "gpu_model": "V100", "nodes": "two", "gpus_per_node": 4}]}, r"nodes.*type int"),
        ({"sites": {"name": "a"}}, r"sites.*no list"),
        ({"objectives": {"training": {"max_wait": 5}}}, r"unknown key max_wait.*max_wait_s"),
    ],
)
def test_a_wrong_cluster_file_is_named(change: dict, message: str):
    good = {"sites": [{"name": "a"}], "pools": [{"name": "p", "site": "a", "gpu_model": "V100", "nodes": 1, "gpus_per_node": 4}]}
    assert cluster_from_mapping(good, "x.yaml").total_gpus == 4
    with pytest.raises(InputError, match=message):
        cluster_from_mapping({**good, **change}, "x.yaml")


def test_objectives_change_only_what_is_given_and_unknown_names_list_the_choices():
    values = {
        "sites": [{"name": "a"}],
        "pools": [{"name": "p", "site": "a", "gpu_model": "V100", "nodes": 1, "gpus_per_node": 4}],
        "objectives": {"training": {"max_wait_s": 60}},
    }
    cluster = cluster_from_mapping(values, "x.yaml")
    assert cluster.objectives["training"].max_wait_s == 60
    assert cluster.objectives["training"].deferrable
    with pytest.raises(InputError, match="sample"):
        load_cluster("nowhere", ROOT / "conf")
