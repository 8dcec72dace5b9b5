"""Power over time adds up to the totals; charts hold what ran; the page needs nothing but itself."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from envs.events import events_frame
from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.replay import gantt
from envs.replay.episode import tell
from envs.replay.facts import facts_of
from envs.replay.history import history_of
from envs.replay.lanes import GAP, bars_of, raster_of
from envs.replay.page import page_of
from envs.replay.power import bin_edges, power_of
from envs.replay.recompute import IDLE, UNITS, recompute
from envs.replay.style import lasting, paler
from envs.reward import RewardSpec
from envs.state import PolicySettings
from telemetry.classes import WORKLOAD_CLASSES

COLUMNS = ["time_s", "event", "job", "pool", "level", "node", "extra"]
NEAR = {"rel": 1e-9, "abs": 1e-9}


def _told(world, name="lookahead"):
    judge = JUDGES[name]
    totals = run_policy(world, judge, RewardSpec(), event_log=True)
    return tell(events_frame(world, 0, totals.events[0]), facts_of(world, 0, name, judge.settings, RewardSpec())), totals


def _log(*rows):
    return pd.DataFrame([(*row, *(-1,) * (7 - len(row))) for row in rows], columns=COLUMNS)


def _adds_up(power, found, facts):
    """Bins sum to the recomputed totals by site, state and class."""
    for unit in UNITS:
        by_site = power.groupby("site")[unit].sum().reindex(list(facts.sites))
        assert by_site.to_numpy() == pytest.approx(found.sites[unit].to_numpy(), **NEAR)
        by_category = power.groupby("category")[unit].sum()
        for state in IDLE.values():
            assert by_category[state] == pytest.approx(found.sites[f"{state}_{unit}"].sum(), **NEAR)
        of_jobs = by_category[[*WORKLOAD_CLASSES, "data_transfer"]].sum()
        assert of_jobs == pytest.approx(found.jobs[unit].sum(), **NEAR)


@pytest.mark.parametrize("name", ["k8s_default", "easy", "lookahead"])
def test_power_adds_up_to_the_simulators_totals(worlds, name):
    for seed in (1, 2):
        told, totals = _told(worlds.random_world(seed, count=50), name)
        _adds_up(told.power, told.found, told.facts)
        for unit, whole in zip(UNITS, (totals.energy_kwh, totals.cost_usd, totals.carbon_kg), strict=True):
            sums = told.power.groupby("site")[unit].sum().reindex(list(told.facts.sites))
            assert sums.to_numpy() == pytest.approx(whole[0], **NEAR)
        kind = [WORKLOAD_CLASSES[k] for k in range(len(WORKLOAD_CLASSES))]
        by_class = told.power.groupby("category")["energy_kwh"].sum()
        for index, label in enumerate(kind):
            of = told.facts.jobs["workload_class"].to_numpy() == kind[index]
            assert by_class[label] == pytest.approx(totals.job_energy_kwh[0, : len(of)][of].sum(), **NEAR)


def test_power_with_rare_events_adds_up(worlds):
    """Levels, pauses, migration, outages, services, shares of slices and data, cut into bins of any length."""
    rows = [worlds.job("a", gpus=0.5, workload_class="realtime_inference"), worlds.job("b", gpus=2, workload_class="training")]
    facts = facts_of(worlds.world_of(worlds.cluster(nodes=1), rows), 0, "hand", PolicySettings(), RewardSpec())
    pools = facts.pools.assign(gpu_context_w=25.0, mig_slices=7.0, cpu_w_per_cpu=3.0)
    jobs = facts.jobs.assign(until_s=[7200, -1], service=[0, -1], cpu_milli=[2000, 0], data_site=[-1, 0], transfer_kwh=[0.0, 0.25])
    facts = dataclasses.replace(facts, pools=pools, jobs=jobs, loads=pd.DataFrame({"service": 0, "step": [0, 1], "load": [0.4, 0.8]}))
    events = _log(
        (0, "arrive", 0),
        (0, "arrive", 1),
        (0, "run", 0, 0, 0, -1, 0),
        (0, "start", 0, 0, 0),
        (0, "run", 1, 0, 0, -1, 0),
        (0, "start", 1, 0, 0),
        (500, "level", 1, 0, 2),
        (1800, "node_down", -1, 1, -1, 1, 2400),
        (2400, "node_up", -1, 1, -1, 1),
        (2500, "sleep", -1, 1, -1, 1),
        (3000, "migrate", 1, 1, 0, -1, 3180),
        (3000, "wake", -1, 1, -1, 1, 3180),
        (3180, "wake_done", -1, 1, -1, 1),
        (3180, "start", 1, 1, 0),
        (7200, "end", 0, 0, 0),
        (9000, "end", 1, 1, 0),
    )
    history, found = history_of(events, facts), recompute(events, facts)
    for edges in (bin_edges(9000), np.array([0, 1, 777, 3000, 9000]), np.array([0, 9000])):
        power = power_of(events, facts, history, edges)
        _adds_up(power, found, facts)
        assert (power["it_kwh"] * 1.15).sum() - 0.15 * 0.25 == pytest.approx(power["energy_kwh"].sum()), "PUE is 1.15; data is without it"
    assert power.set_index(["site", "category"]).loc[("west", "data_transfer"), "energy_kwh"] == 0.25


def test_bins_are_round_and_few():
    assert bin_edges(3600).tolist() == list(range(0, 3601, 60))
    for end in (1, 59, 61, 86_399, 31_536_000, 315_360_000):
        edges = bin_edges(end)
        assert len(edges) <= 1001
        assert (edges[0], edges[-1]) == (0, end)
        assert (np.diff(edges) > 0).all()


def test_bars_and_raster_hold_what_ran(worlds):
    told, totals = _told(worlds.random_world(4, count=50), "most_allocated")
    bars = bars_of(told)
    runs = bars[bars["level"] >= 0]
    height = (runs["high"] - runs["low"]) * 4 / (1 - 2 * GAP)  # nodes of 4 GPUs
    assert (height * (runs["end_s"] - runs["begin_s"])).sum() == pytest.approx(totals.busy_gpu_s[0], rel=1e-9)
    assert ((runs["low"] >= runs["node"]) & (runs["high"] <= runs["node"] + 1)).all()
    for seats in (told.seats, None):
        raster = raster_of(dataclasses.replace(told, seats=seats), bin_edges(told.history.end_s, 50), gantt.STATES)
        gpus = 16 / len(raster.names)
        assert (raster.busy * np.diff(raster.edges)).sum() * gpus == pytest.approx(totals.busy_gpu_s[0], rel=1e-9)
        assert ((raster.kind >= 0) == (raster.busy > 0)).all()


def _bars_overlap(bars):
    bars = bars.sort_values(["node", "begin_s"])
    for _, part in bars.groupby("node"):
        rows = part[["begin_s", "end_s", "low", "high"]].to_numpy()
        for i, (_begin, end, low, high) in enumerate(rows):
            later = rows[i + 1 :]
            if ((later[:, 0] < end) & (later[:, 2] < high - 1e-9) & (later[:, 3] > low + 1e-9)).any():
                return True
    return False


def test_whole_gpus_never_overlap(worlds):
    world = worlds.random_world(9, count=50)
    told, _ = _told(world, "most_allocated")
    whole = told.facts.jobs["gpu_milli"].to_numpy() >= 1000
    bars = bars_of(told)
    assert not _bars_overlap(bars[whole[bars["job"]]])


def test_page_is_whole_and_needs_nothing_else(worlds):
    told, _ = _told(worlds.random_world(3, count=50), "easy")
    page = page_of(told)
    assert not re.search(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)\s*=""", page), "nothing is loaded from elsewhere"
    assert page.count("plotly.js v") >= 1
    assert page.count("Plotly.newPlot(") >= 1
    window = told.totals["window"]
    assert f"{window['cost_usd']:,.2f}" in page
    assert "discipline" in page
    for cause in set(told.misses["cause"]):
        assert cause.replace("_", " ") in page


def test_page_of_large_clusters_says_what_it_aggregated(worlds, monkeypatch):
    told, _ = _told(worlds.random_world(3, count=50), "easy")
    monkeypatch.setattr("envs.replay.lanes.MOST_BARS", 5)
    assert "too many to draw one by one" in page_of(told)
    assert "cannot be applied again from the log" in page_of(dataclasses.replace(told, seats=None))


def test_page_without_jobs(worlds):
    told, _ = _told(worlds.world_of(worlds.cluster(), []), "easy")
    page = page_of(told)
    assert "No job missed its objective" in page
    assert "Nothing ran" in page


def test_names_are_escaped(worlds):
    told, _ = _told(worlds.world_of(worlds.cluster(), [worlds.job("<b>x</b>", gpu_model="H100")]), "easy")
    assert "<td class=l>&lt;b&gt;x&lt;/b&gt;</td>" in page_of(told)


def test_words():
    assert [lasting(s) for s in (5, 100, 5400, 200_000)] == ["5 s", "1.7 min", "1.5 h", "2.3 d"]
    assert paler("#000000", 0.5) == "#808080"
