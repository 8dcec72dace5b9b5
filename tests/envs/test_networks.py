"""Speeds per network: what the measurements give, what is left out, and that jobs work at them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.fit_network_speeds import THROUGHPUTS, fit, fit_networks
from envs.cluster_io import cluster_from_mapping, load_cluster
from envs.heuristics import Judge
from envs.job_table import prepare_jobs
from envs.kernel import run_policy
from envs.kernel_choosers import TIGHTEST
from envs.power.curves import CurvePoint, levels_for, read_curves
from envs.power.networks import load_networks, network_named, network_names, network_speed
from envs.replay.facts import facts_of
from envs.reward import RewardSpec
from envs.snapshot import NodeNow, Placement, Snapshot, charged_kw, restore
from envs.state import PolicySettings
from telemetry.classes import CLASS_INDEX, WORKLOAD_CLASSES
from telemetry.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TRACES = Path(os.environ.get("JOULEWISE_TRACES", ROOT.parent / "shared" / "traces"))
K = len(WORKLOAD_CLASSES)
TRAINING = CLASS_INDEX["training"]
RESNET, TRANSFORMER = "ResNet-50 (batch size 64)", "Transformer (batch size 128)"
AWAKE = PolicySettings(sleep_after_s=-1)


def p100_cluster(**more):
    pools = [{"name": name, "site": "east", "gpu_model": name.upper(), "nodes": 1, "gpus_per_node": 4} for name in ("p100", "a40")]
    return cluster_from_mapping({"sites": [{"name": "east"}], "pools": pools, "level_fractions": [1.0, 0.6], **more}, "test")


def train(worlds, job_id, workload, model="P100", **more):
    return worlds.job(job_id, duration_s=10_000, workload_class="training", gpu_model=model, workload=workload, **more)


# ---------------------------------------------------------------- the table


def test_the_committed_ratios_are_what_the_throughputs_give():
    if not (TRACES / THROUGHPUTS).is_file():
        pytest.skip(f"no throughputs at {TRACES}")
    pd.testing.assert_frame_equal(fit(TRACES), load_networks())
    raw = pd.read_parquet(TRACES / THROUGHPUTS)
    raw = raw[raw["scale_factor"] == 1].set_index(["worker_type", "job_type"])["throughput"]
    for name in (RESNET, TRANSFORMER, "A3C", "CycleGAN", "LM (batch size 5)"):
        assert network_speed(name, "P100") == pytest.approx(raw["p100", name] / raw["v100", name], abs=5e-5)
    assert set(network_names()) == set(raw.loc["v100"].index)


def test_the_reference_is_one_and_implausible_pairs_are_left_out():
    assert len(network_names()) == 26
    for name in network_names():
        assert network_speed(name, "V100") == 1.0
        assert network_speed(name, "A100") is None
    missing = {name for name in network_names() if network_speed(name, "P100") is None}
    assert missing == {f"Recommendation (batch size {2**n})" for n in range(9, 14)} | {"Transformer (batch size 256)"}
    missing = {name for name in network_names() if network_speed(name, "K80") is None} - missing
    assert missing == {"ResNet-18 (batch size 128)", "ResNet-18 (batch size 256)"}


def test_rules_of_what_is_implausible():
    rows = [("v100", "N (batch size 8)", 10.0), ("v100", "N (batch size 16)", 6.0), ("v100", "N (batch size 32)", 4.0)]
    rows += [("p100", "N (batch size 8)", 5.0), ("p100", "N (batch size 16)", 1.8), ("p100", "N (batch size 32)", 6.0)]
    rows += [("v100", "M", 2.0), ("p100", "M", 0.0), ("v100", "O", 0.0), ("p100", "O", 1.0), ("p100_unconsolidated", "M", 1.0)]
    table = pd.DataFrame(rows, columns=["worker_type", "job_type", "throughput"]).assign(scale_factor=1)
    table.loc[len(table)] = ["p100", "M", 9.0, 2]
    found = fit_networks(table).set_index(["network", "gpu_model"])["speed"].to_dict()
    assert {pair: v for pair, v in found.items() if pair[1] == "P100"} == {("N (batch size 8)", "P100"): 0.5}
    assert {name for name, _ in found} == {"N (batch size 8)", "N (batch size 16)", "N (batch size 32)", "M", "O"}


def test_names_take_any_case_and_unknown_ones_list_the_nearest():
    assert network_named(" resnet-50 (BATCH size 64)", "x") == RESNET
    with pytest.raises(
        InputError, match=r"unknown workload 'ResNet-50'.*ResNet-50 \(batch size 16\), ResNet-50 \(batch size 32\)"
    ) as error:
        network_named("ResNet-50", "x")
    assert "Transformer" not in str(error.value)
    with pytest.raises(InputError, match=r"allowed: ResNet-18 \(batch size 16\).*256\); remedy"):
        network_named("resnet18", "x")
    with pytest.raises(InputError, match=r"Transformer \(batch size 16\)"):
        network_named("Tranformer (batch size 16)", "x")
    jobs = pd.DataFrame([{"job_id": "a", "submit_time": "2024-01-08", "duration_s": 1, "gpus": 1, "workers": 1, "workload": "GPT-5"}])
    with pytest.raises(InputError, match=r"job 'a'.*GPT-5.*A3C"):
        prepare_jobs(jobs, p100_cluster())


# ---------------------------------------------------------------- the world


def test_jobs_run_as_long_as_their_network_takes_in_their_pool(worlds):
    rows = [
        train(worlds, "a", None),
        train(worlds, "b", RESNET.lower()),
        train(worlds, "c", TRANSFORMER),
        train(worlds, "d", "Recommendation (batch size 512)"),
    ]
    rows += [train(worlds, "e", RESNET, "A40"), train(worlds, "f", "", "A40")]
    spec = p100_cluster()
    world = worlds.world_of(spec, rows)
    assert world.networks == (("training", "Recommendation (batch size 512)"), ("training", RESNET), ("training", TRANSFORMER))
    assert world.jobs.curve[0].tolist() == [TRAINING, K + 1, K + 2, K, K + 1, TRAINING]
    assert world.jobs.kind[0].tolist() == [TRAINING] * 6
    totals = run_policy(world, Judge("t", AWAKE, TIGHTEST, ""), RewardSpec())
    ran = (totals.job_end_s - totals.job_start_s)[0].tolist()
    speed = levels_for("P100", (1.0,))[0][0, TRAINING]  # also of Recommendation, which was left out
    a40 = levels_for("A40", (1.0,))[0][0, TRAINING]
    expected = [10_000 / v for v in (speed, 0.5960, 0.5644, speed, a40, a40)]
    assert ran == [int(np.ceil(v)) for v in expected]
    assert totals.job_level[0].tolist() == [0] * 6


def test_levels_slow_a_network_down_as_its_class_and_watts_are_the_class_s(worlds):
    world = worlds.world_of(p100_cluster(), [train(worlds, "a", RESNET), train(worlds, "b", RESNET) | {"workload_class": "interactive"}])
    plain = worlds.world_of(p100_cluster(), [train(worlds, "a", None)])
    speed, power = world.static.speed, world.static.gpu_power_w
    assert speed.shape == power.shape == (2, 2, K + 2)
    np.testing.assert_array_equal(speed[..., :K], plain.static.speed)
    np.testing.assert_array_equal(power[..., :K], plain.static.gpu_power_w)
    for place, (kind, _) in enumerate(world.networks):
        k = CLASS_INDEX[kind]
        np.testing.assert_allclose(speed[0, :, K + place], 0.5960 * speed[0, :, k] / speed[0, 0, k], rtol=1e-12)
        np.testing.assert_array_equal(speed[1, :, K + place], speed[1, :, k])  # A40: not measured
        np.testing.assert_array_equal(power[..., K + place], power[..., k])


def test_windows_share_curves_and_each_job_keeps_its_own(worlds):
    spec = p100_cluster()
    world = worlds.windows_of(
        spec, [[train(worlds, "a", RESNET)], [train(worlds, "b", TRANSFORMER), train(worlds, "c", None)]], worlds.grid()
    )
    assert world.jobs.curve[0, 0] == K
    assert world.jobs.curve[1].tolist() == [K + 1, TRAINING]
    facts = facts_of(world, 1, "t", AWAKE, RewardSpec())
    assert facts.jobs["curve"].tolist() == [K + 1, TRAINING]
    assert facts.curves.query(f"pool == 0 and level == 0 and curve == {K + 1}")["speed"].tolist() == [0.5644]


def test_max_watts_of_a_network_are_its_class_s(worlds):
    watts = levels_for("P100", (1.0, 0.6))[1][:, TRAINING]
    world = worlds.world_of(p100_cluster(), [train(worlds, "a", RESNET, max_watts=float(watts.mean()))])
    assert world.jobs.allowed_levels[0, 0].tolist() == [0b10, 0]


def test_a_live_cluster_ends_and_charges_a_network_by_its_own_speed(worlds):
    spec, now = p100_cluster(), worlds.START + pd.Timedelta(hours=30)
    started = now - pd.Timedelta(hours=1)
    row = train(worlds, "a", RESNET, requested_duration_s=20_000) | {"submit_time": started}
    nodes = tuple(NodeNow(name, "awake", since=now) for name in spec.node_names)
    place = Placement("p100", 0, started, (spec.node_names[0],))
    snapshot = Snapshot(spec, now, nodes, pd.DataFrame([row]).drop(columns="duration_s"), {"a": place}, {}, worlds.grid(sites=("east",)))
    simulator = restore(snapshot, AWAKE, RewardSpec())
    assert simulator.state.due_s[0, 0] - simulator.state.start_s[0, 0] == int(np.ceil(20_000 / 0.5960))
    pool = spec.pools[0]
    dynamic = levels_for("P100", (1.0,))[1][0, TRAINING] - pool.gpu_idle_w + pool.cpu_w_per_gpu
    share = (pool.node_idle_w + 4 * pool.gpu_idle_w) / 4
    assert charged_kw(simulator, 0, 0, 0) == pytest.approx((dynamic + share) / 1000, rel=1e-12)


# ---------------------------------------------------------------- curves of one's own

OWN = "gpu_model,kind,level_fraction,speed,power_w\nP100,training,1.0,1.7,200\nP100,training,0.5,1.1,120\n"


def test_own_curves_replace_those_of_the_class_and_travel_with_the_cluster(tmp_path, worlds):
    (tmp_path / "mine.csv").write_text(OWN)
    (tmp_path / "c.yaml").write_text(
        "level_fractions: [1.0, 0.75]\ncurves: mine.csv\nsites: [{name: east}]\n"
        "pools: [{name: p, site: east, gpu_model: P100, nodes: 1, gpus_per_node: 4}]\n"
    )
    spec = load_cluster(tmp_path / "c.yaml")
    world = worlds.world_of(spec, [train(worlds, "a", None), train(worlds, "b", RESNET)])
    assert world.static.speed[0, :, TRAINING].tolist() == pytest.approx([1.7, 1.4])
    assert world.static.gpu_power_w[0, :, TRAINING].tolist() == pytest.approx([200, 160])
    assert world.static.speed[0, :, K].tolist() == pytest.approx([0.5960, 0.5960 * 1.4 / 1.7])
    committed = levels_for("P100", (1.0, 0.75))[0]
    np.testing.assert_array_equal(np.delete(world.static.speed[0, :, :K], TRAINING, axis=1), np.delete(committed, TRAINING, axis=1))
    rows = [
        {"gpu_model": p.gpu_model, "kind": p.kind, "level_fraction": p.level_fraction, "speed": p.speed, "power_w": p.power_w}
        for p in spec.curves
    ]
    assert p100_cluster(curves=rows).curves == tuple(CurvePoint(**row) for row in rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OWN.replace("0.5,1.1,120", "0.5,1.9,120"), r"P100, training: speed rises from 1.7 to 1.9 as the level falls.*smooth"),
        (OWN.replace("0.5,1.1,120", "0.5,0,120"), "speed 0.*above 0"),
        (OWN.replace("0.5,1.1,120", "0.5,fast,120"), "speed fast.*above 0"),
        (OWN.replace("0.5,1.1,120", "1.0,1.1,120"), r"P100, training: level 1.0 twice"),
        (OWN.replace("training", "dreaming"), r"unknown class dreaming.*interactive"),
        (OWN.replace("power_w", "watts"), r"missing column power_w"),
        (OWN.splitlines()[0] + "\n", "no rows"),
        ("", "no CSV"),
    ],
)
def test_wrong_curves_are_named(tmp_path, text, message):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_curves(tmp_path / "mine.csv")
    assert "mine.csv" in str(error.value)


def test_a_model_of_one_s_own_needs_every_class(worlds):
    rows = [{"gpu_model": "B200", "kind": "training", "level_fraction": f, "speed": 6 * f, "power_w": 900 * f} for f in (1.0, 0.5)]
    pools = [{"name": "b", "site": "east", "gpu_model": "B200", "nodes": 1, "gpus_per_node": 4}]
    with pytest.raises(InputError, match=r"B200, class .*none measured"):
        worlds.world_of(p100_cluster(curves=rows, pools=pools), [train(worlds, "a", None, "B200")])
    rows = [row | {"kind": kind} for row in rows for kind in WORKLOAD_CLASSES]
    world = worlds.world_of(p100_cluster(curves=rows, pools=pools), [train(worlds, "a", RESNET, "B200")])
    assert run_policy(world, Judge("t", AWAKE, TIGHTEST, ""), RewardSpec()).job_end_s[0, 0] == int(np.ceil(10_000 / 6))
    with pytest.raises(InputError, match=r"no such file.*level_fraction"):
        p100_cluster(curves="nowhere.csv")
    with pytest.raises(InputError, match=r"no power curves for GPU model 'B300'.*curves: FILE"):
        worlds.world_of(p100_cluster(pools=[{**pools[0], "gpu_model": "B300"}]), [train(worlds, "a", None, None)])
