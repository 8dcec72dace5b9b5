"""Each flaw planted alone and all together: counted at its device exactly, and handled by each of its policies."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from telemetry.cleaning import clean_samples
from telemetry.counters import counter_rates
from telemetry.implausible import Typical, unit_factors
from telemetry.inventory import Inventory, NodeInfo
from telemetry.policy import POLICIES, QualityPolicy
from telemetry.quality import FLAWS, QualityReport
from telemetry.raw import Labels, RawSamples

TRACES = Path(os.environ.get("JOULEWISE_TRACES", Path(__file__).parents[2] / ".." / "shared" / "traces"))
SMC = TRACES / "c_power" / "mlperf_train40_smc_1_8node_watts.parquet"
T0, STEP, STEPS = 1_767_571_200, 600, 40
NODES = ("n0", "n1", "n2", "n3")
WATTS = "hw.power"
INVENTORY = Inventory({node: NodeInfo("west", "west-a100", "A100", 1) for node in NODES})


def time_at(k: int) -> float:
    return T0 + STEP * (k + 1)


def labels(metric: str, node: str, device: str = "gpu0", **more: object) -> Labels:
    unit = {"hw.power": "W", "hw.energy": "J", "hw.gpu.utilization": "1", "hw.temperature": "Cel"}.get(metric, "{request}")
    return Labels(metric, node=node, device=device, pod="p", unit=unit, native_unit=unit, **more)


class World:
    """Points of four nodes: watts, utilisation and an energy counter that agrees with the watts."""

    def __init__(self) -> None:
        self.points: dict[tuple[str, str], list[list]] = {}
        for index, node in enumerate(NODES):
            watts = [120.0 + 10 * index + k for k in range(STEPS)]
            joules = np.concatenate([[0.0], np.cumsum((np.array(watts[1:]) + watts[:-1]) / 2 * STEP)])
            self.points[WATTS, node] = [[time_at(k), w] for k, w in enumerate(watts)]
            self.points["hw.energy", node] = [[time_at(k), j] for k, j in enumerate(joules)]
            self.points["hw.gpu.utilization", node] = [[time_at(k), 0.2 + 0.6 * (k % 2)] for k in range(STEPS)]

    def raw(self) -> RawSamples:
        raw = RawSamples("s")
        for (metric, node), points in self.points.items():
            raw.add_block(labels(metric, node), [p[0] for p in points], [p[1] for p in points])
        return raw


def cleaned(world: World | RawSamples, policy: QualityPolicy | None = None, now: str | None = None) -> tuple[pd.DataFrame, QualityReport]:
    quality = QualityReport()
    raw = world.raw() if isinstance(world, World) else world
    clock = None if now is None else pd.Timestamp(now)
    return clean_samples(raw, INVENTORY, quality, where="file", policy=policy or QualityPolicy(), now=clock), quality


def own(frame: pd.DataFrame, metric: str, node: str) -> pd.DataFrame:
    return frame[(frame["metric"] == metric) & (frame["node"] == node)].reset_index(drop=True)


def planted(flaw: str) -> tuple[World, dict[str, dict[str, int]]]:
    """A world with one flaw, and the counts per device that it must have."""
    world = World()
    plant(world, flaw)
    return world, EXPECTED[flaw]


EXPECTED: dict[str, dict[str, dict[str, int]]] = {
    "counter_reset": {"n0/gpu0": {"counter_reset": 1}},
    "counter_wrap": {"n1/gpu0": {"counter_wrap": 1}},
    "scrape_gap": {"n0/gpu0": {"scrape_gap": 2, "scrape_gap_samples": 5}},
    "duplicate": {"n1/gpu0": {"duplicate": 2}},
    "sentinel": {"n2/gpu0": {"sentinel": 4}},
    "unsupported_zero": {"n3/gpu0": {"unsupported_zero": STEPS}},
    "clock_skew": {"n2": {"clock_skew": 1}},
    "out_of_order": {"n3/gpu0": {"out_of_order": 1}},
    "negative_power": {"n0/gpu0": {"negative_power": 1}},
    "unit_suspected": {"n1/gpu0": {"unit_suspected": STEPS}},
    "unparseable": {"n2/gpu0": {"unparseable": 2}},
    "implausible_power": {"n3/gpu0": {"implausible_power": 2}},
    "utilization_above_one": {"n0/gpu0": {"utilization_above_one": 1}},
    "stuck_value": {"n1/gpu0": {"stuck_value": 7}},
    "future_timestamp": {node + "/gpu0": {"future_timestamp": 6} for node in NODES},
    "energy_mismatch": {"n2/gpu0": {"energy_mismatch": 1}},
    "missing_pod_label": {"n9/gpu0": {"missing_pod_label": 1}},
    "unit_converted": {"n9/gpu0": {"unit_converted": 3}},
}


def plant(world: World, flaw: str) -> None:
    points = world.points
    if flaw == "counter_reset":
        joules = points["hw.energy", "n0"]
        for k in range(30, STEPS):
            joules[k][1] -= joules[29][1] + 50_000.0
        assert joules[30][1] > 0
    elif flaw == "counter_wrap":
        points["hw.energy", "n1"] = [[t, (2.0**32 - 1_000_000 + j) % 2**32] for t, j in points["hw.energy", "n1"]]
    elif flaw == "scrape_gap":
        del points[WATTS, "n0"][10:14], points[WATTS, "n0"][20]
    elif flaw == "duplicate":
        rows = points[WATTS, "n1"]
        rows[5:6] = [[rows[5][0], 100.0], [rows[5][0], 140.0]]
        rows[8:9] = [rows[8], rows[8]]
    elif flaw == "sentinel":
        for k, value in ((3, "-1"), (9, "NaN"), (15, ""), (21, None)):
            points[WATTS, "n2"][k][1] = value
    elif flaw == "unsupported_zero":
        points["hw.temperature", "n3"] = [[time_at(k), 0] for k in range(STEPS)]
    elif flaw == "clock_skew":
        for (_, node), rows in points.items():
            for row in rows if node == "n2" else ():
                row[0] += 41
    elif flaw == "out_of_order":
        rows = points[WATTS, "n3"]
        rows[7], rows[8] = rows[8], rows[7]
    elif flaw == "negative_power":
        points[WATTS, "n0"][17][1] = -20
    elif flaw == "unit_suspected":
        for row in points[WATTS, "n1"]:
            row[1] /= 1000
        del points["hw.energy", "n1"]
    elif flaw == "unparseable":
        points[WATTS, "n2"][6][1], points[WATTS, "n2"][26][1] = "twelve", float("inf")
    elif flaw == "implausible_power":
        points[WATTS, "n3"][30][1], points[WATTS, "n3"][31][1] = 601.0, 65_535
        del points["hw.energy", "n3"]  # which would tell the watts wrong where they are kept
    elif flaw == "utilization_above_one":
        points["hw.gpu.utilization", "n0"][4][1] = 55.0
    elif flaw == "stuck_value":
        for k in range(22, 29):
            points[WATTS, "n1"][k][1] = points[WATTS, "n1"][21][1]
    elif flaw == "energy_mismatch":
        for row in points["hw.energy", "n2"]:
            row[1] *= 2


CASES = sorted(set(EXPECTED) - {"missing_pod_label", "unit_converted"})
# The last two of the forty steps (06:30 and 06:40) of three metrics lie more than 300 s ahead.
NOW = "2026-01-05T06:15:00Z"


@pytest.mark.parametrize("flaw", CASES)
def test_a_flaw_alone_is_counted_at_its_device_and_nothing_else_is(flaw):
    world, expected = planted(flaw)
    _, quality = cleaned(world, now=NOW if flaw == "future_timestamp" else None)
    assert quality.counts == {"s": expected}


def test_a_clean_world_has_no_flaw():
    frame, quality = cleaned(World(), now="2026-01-06")
    assert quality.counts == {}
    assert len(frame) == len(NODES) * (3 * STEPS - 1)
    assert set(frame["filled"]) == {""}


def test_pod_and_unit_flaws_are_counted():
    raw = RawSamples("s")
    for k in range(3):
        raw.add(Labels(WATTS, node="n9", device="gpu0", unit="kW"), time_at(k), 0.1 * (k + 1))
        raw.add(Labels("hw.gpu.utilization", node="n9", device="gpu0"), time_at(k), 0.5 if k == 1 else 0.0)
    frame, quality = cleaned(raw)
    expected = EXPECTED["missing_pod_label"]["n9/gpu0"] | EXPECTED["unit_converted"]["n9/gpu0"]
    assert quality.counts == {"s": {"n9/gpu0": expected}}
    assert own(frame, WATTS, "n9")["value"].tolist() == pytest.approx([100, 200, 300])


def test_all_flaws_together_keep_their_counts():
    """Flaws on rows of their own do not hide or make each other."""
    together = [flaw for flaw in CASES if flaw not in ("clock_skew", "future_timestamp", "unit_suspected")]
    world = World()
    for flaw in together:
        plant(world, flaw)
    _, quality = cleaned(world)
    expected: dict[str, dict[str, int]] = {}
    for flaw in together:
        for device, counts in EXPECTED[flaw].items():
            own_counts = expected.setdefault(device, {})
            for name, count in counts.items():
                own_counts[name] = own_counts.get(name, 0) + count
    assert quality.counts == {"s": expected}


def test_every_flaw_has_policies_a_field_and_a_test():
    sizes = {"scrape_gap_samples"}
    assert set(POLICIES) == set(FLAWS) - sizes
    assert set(EXPECTED) == set(POLICIES)
    policy = QualityPolicy()
    fields = {f.name for f in dataclasses.fields(QualityPolicy)}
    assert set(POLICIES) <= fields
    assert all(getattr(policy, flaw) == allowed[0] for flaw, allowed in POLICIES.items())


def values(flaw: str, choice: str, metric: str, node: str, **more: object) -> np.ndarray:
    world, expected = planted(flaw)
    frame, quality = cleaned(world, QualityPolicy(**{flaw: choice}, **more))
    assert quality.counts == {"s": expected}, "a flaw is counted whatever the policy"
    return own(frame, metric, node)["value"].to_numpy()


def test_counter_reset_policies():
    clean = own(cleaned(World())[0], "hw.energy.rate", "n0")["value"].to_numpy()
    repaired, dropped = (values("counter_reset", choice, "hw.energy.rate", "n0") for choice in ("repair", "drop"))
    assert len(repaired) == STEPS - 1
    assert repaired[29] < clean[29]
    assert np.delete(repaired, 29) == pytest.approx(np.delete(clean, 29))
    assert dropped == pytest.approx(np.delete(clean, 29))


def test_counter_wrap_policies_repair_makes_the_rate_whole():
    clean = own(cleaned(World())[0], "hw.energy.rate", "n1")["value"].to_numpy()
    assert values("counter_wrap", "repair", "hw.energy.rate", "n1") == pytest.approx(clean)
    assert len(values("counter_wrap", "drop", "hw.energy.rate", "n1")) == STEPS - 2


def test_a_restart_below_the_top_of_the_range_is_no_wrap():
    world = World()
    rows = world.points["hw.energy", "n1"]
    world.points["hw.energy", "n1"] = [[t, j + 2.0**31 if k < 20 else j - rows[19][1]] for k, (t, j) in enumerate(rows)]
    assert cleaned(world)[1].counts == {"s": {"n1/gpu0": {"counter_reset": 1}}}


def test_duplicate_policies_last_or_mean():
    assert values("duplicate", "drop", WATTS, "n1")[5] == 140.0
    assert values("duplicate", "repair", WATTS, "n1")[5] == 120.0


def test_duplicates_mean_leaves_out_sentinels_and_counters_take_the_last():
    world = World()
    rows = world.points[WATTS, "n1"]
    rows[5:6] = [[rows[5][0], 100.0], [rows[5][0], "NaN"]]
    joules = world.points["hw.energy", "n2"]
    joules[5:6] = [[joules[5][0], 1.0], joules[5]]
    frame, quality = cleaned(world, QualityPolicy(duplicate="repair"))
    assert quality.total() == {"duplicate": 2}
    assert own(frame, WATTS, "n1")["value"][5] == 100.0
    assert own(frame, "hw.energy.rate", "n2")["value"].to_numpy() == pytest.approx(
        own(cleaned(World())[0], "hw.energy.rate", "n2")["value"].to_numpy()
    )


def test_clock_skew_policies():
    world, _ = planted("clock_skew")
    kept, quality = cleaned(world, QualityPolicy(clock_skew="keep"))
    assert quality.total() == {"clock_skew": 1}
    shifted, _ = cleaned(planted("clock_skew")[0])
    assert (own(kept, WATTS, "n2")["time"] - own(shifted, WATTS, "n2")["time"]).unique() == [pd.Timedelta(seconds=41)]


@pytest.mark.parametrize(
    ("flaw", "metric", "node", "left"),
    [("unsupported_zero", "hw.temperature", "n3", 0), ("stuck_value", WATTS, "n1", STEPS - 7), ("unit_suspected", WATTS, "n1", 0)],
)
def test_keep_and_drop(flaw, metric, node, left):
    assert len(values(flaw, "keep", metric, node)) == STEPS
    assert len(values(flaw, "drop", metric, node)) == left


def test_suspected_unit_is_repaired():
    assert values("unit_suspected", "repair", WATTS, "n1") == pytest.approx([130.0 + k for k in range(STEPS)])


def test_a_share_above_one_is_dropped_or_cut():
    assert len(values("utilization_above_one", "drop", "hw.gpu.utilization", "n0")) == STEPS - 1
    assert values("utilization_above_one", "repair", "hw.gpu.utilization", "n0")[4] == 1.0


def test_implausible_watts_go_by_the_device_s_own_limit():
    assert len(values("implausible_power", "drop", WATTS, "n3")) == STEPS - 2
    assert values("implausible_power", "keep", WATTS, "n3")[30] == 601.0
    world, _ = planted("implausible_power")  # 400 W x 1.7 = 680 W
    assert cleaned(world, QualityPolicy(power_margin=1.7))[1].total() == {"implausible_power": 1}
    told = Inventory({"n3": NodeInfo("west", "p", "A100", 1, gpu_max_power_w=150.0)})
    quality = QualityReport()
    clean_samples(planted("implausible_power")[0].raw(), told, quality, where="file")
    # Watts of n3 go from 150 to 189 W, and two of them are planted.
    assert quality.counts["s"]["n3/gpu0"] == {"implausible_power": STEPS - 1}


def test_node_limits_from_inventory_boards_and_neither():
    def judged(info: NodeInfo) -> int:
        raw, quality = RawSamples("s"), QualityReport()
        for k, watts in enumerate((5_000.0, 11_000.0, 29_000.0)):
            raw.add(Labels(WATTS, node="n0", unit="W", native_unit="W"), time_at(k), watts)
        clean_samples(raw, Inventory({"n0": info}), quality, where="file")
        return quality.total().get("implausible_power", 0)

    assert judged(NodeInfo("w", "p")) == 0
    assert judged(NodeInfo("w", "p", "H100", 8)) == 1
    assert judged(NodeInfo("w", "p", "A100", 4)) == 2
    assert judged(NodeInfo("w", "p", "A100", 4, max_power_w=12_000.0)) == 1


def test_future_points_are_kept_dropped_or_not_judged():
    world = World()
    kept, _ = cleaned(world, now=NOW)
    dropped, quality = cleaned(World(), QualityPolicy(future_timestamp="drop"), now=NOW)
    assert quality.counts["s"] == EXPECTED["future_timestamp"]
    assert len(kept) - len(dropped) == 6 * len(NODES)
    assert dropped["time"].max() == pd.Timestamp("2026-01-05T06:20:00Z")
    assert cleaned(World())[1].counts == {}


@pytest.mark.parametrize(("fill", "expected"), [("hold", [129.0] * 4), ("linear", [130.0, 131.0, 132.0, 133.0])])
def test_gaps_are_filled_marked_and_told(fill, expected):
    world, counts = planted("scrape_gap")
    frame, quality = cleaned(world, QualityPolicy(scrape_gap="repair", gap_fill=fill))
    assert quality.counts == {"s": counts}
    watts = own(frame, WATTS, "n0")
    assert watts["time"].tolist() == own(cleaned(World())[0], WATTS, "n0")["time"].tolist()
    marked = watts[watts["filled"] != ""]
    assert marked["filled"].tolist() == [fill] * 5
    assert marked["value"].tolist()[:4] == expected
    assert quality.notes == {"s": {f"samples filled in gaps ({fill})": 5}}
    assert [(gap["samples"], gap["filled"], gap["metric"]) for gap in quality.gaps["s"]] == [(4, True, WATTS), (1, True, WATTS)]


def test_long_gaps_and_gaps_of_counters_stay_open_and_energy_is_conserved():
    world, _ = planted("scrape_gap")
    frame, quality = cleaned(world, QualityPolicy(scrape_gap="repair", max_gap_fill_s=2 * STEP))
    assert [gap["filled"] for gap in quality.gaps["s"]] == [False, True]
    assert (own(frame, WATTS, "n0")["filled"] != "").sum() == 1
    whole = World()
    del whole.points["hw.energy", "n0"][10:14]
    frame, quality = cleaned(whole, QualityPolicy(scrape_gap="repair"))
    rate = own(frame, "hw.energy.rate", "n0")
    assert set(rate["filled"]) == {""}
    seconds = rate["time"].diff().dt.total_seconds().fillna(STEP)
    assert (rate["value"] * seconds).sum() == pytest.approx(whole.points["hw.energy", "n0"][-1][1])
    assert [gap["filled"] for gap in quality.gaps["s"]] == [False]


@pytest.mark.parametrize("row", [9, 10])
def test_a_gap_beside_a_dropped_value_is_not_filled(row):
    """Rows 9 and 10 are the samples before and after the longer gap."""
    world, _ = planted("scrape_gap")
    world.points[WATTS, "n0"][row][1] = "-1"
    frame, quality = cleaned(world, QualityPolicy(scrape_gap="repair"))
    assert (own(frame, WATTS, "n0")["filled"] != "").sum() == 1
    assert quality.notes == {"s": {"samples filled in gaps (hold)": 1}}


def test_when_says_the_hour_of_each_flaw():
    world, _ = planted("sentinel")
    _, quality = cleaned(world)
    # Steps 3, 9, 15 and 21 of ten minutes, the first at 00:10.
    assert quality.when == {
        "s": {"n2/gpu0": {"sentinel": {"2026-01-05T00": 1, "2026-01-05T01": 1, "2026-01-05T02": 1, "2026-01-05T03": 1}}}
    }
    _, gaps = cleaned(planted("scrape_gap")[0])
    assert gaps.when["s"]["n0/gpu0"]["scrape_gap_samples"] == {"2026-01-05T01": 1, "2026-01-05T02": 3, "2026-01-05T04": 1}


def test_stuck_watts_need_moving_utilisation_and_time():
    still = World()
    for row in still.points["hw.gpu.utilization", "n1"]:
        row[1] = 0.5
    plant(still, "stuck_value")
    assert cleaned(still)[1].counts == {}
    moving, _ = planted("stuck_value")
    assert cleaned(moving, QualityPolicy(stuck_min_s=7 * STEP + 1))[1].counts == {}
    alone, _ = planted("stuck_value")
    del alone.points["hw.gpu.utilization", "n1"]
    assert cleaned(alone)[1].counts == {}


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_energy_counters_in_a_foreign_unit_are_suspected(factor):
    world = World()
    for row in world.points["hw.energy", "n2"]:
        row[1] *= factor
    del world.points[WATTS, "n2"]
    frame, quality = cleaned(world, QualityPolicy(unit_suspected="repair"))
    assert quality.counts == {"s": {"n2/gpu0": {"unit_suspected": STEPS}}}
    clean = own(cleaned(World())[0], "hw.energy.rate", "n2")["value"].to_numpy()
    assert own(frame, "hw.energy.rate", "n2")["value"].to_numpy() == pytest.approx(clean, rel=1e-6)


def test_units_are_not_suspected_without_a_majority_of_peers():
    world = World()
    for node in ("n2", "n3"):
        for row in world.points[WATTS, node]:
            row[1] /= 1000
        del world.points["hw.energy", node]
    assert cleaned(world)[1].counts == {}


def test_units_are_not_suspected_where_peers_disagree():
    """The one in the middle is no majority, though it is a thousand times one and a thousandth of the other."""

    def suspected(*typical: tuple[float, str]) -> dict[int, float]:
        factors = unit_factors([Typical((str(place),), (peers,), value) for place, (value, peers) in enumerate(typical)])
        return {int(identity[0]): factor for identity, factor in factors.items()}

    assert suspected((1.0, "p"), (1e3, "p"), (1e6, "p")) == {}
    assert suspected((1e3, "p"), (1e3, "p"), (1e6, "p")) == {2: 1e-3}
    assert suspected((1e3, "p"), (1e3, "p"), (np.nan, "p"), (1e6, "other")) == {}


def test_a_fast_counter_that_falls_is_a_restart_since_it_is_always_near_its_top():
    step = 2.0**32 / 5
    rates = counter_rates(np.zeros(4, dtype=int), np.arange(4) * 10**9, np.array([2.0, 3.0, 4.0, 0.5]) * step, modulus=np.full(4, 2.0**32))
    assert (rates.resets.tolist(), rates.wraps.tolist()) == ([3], [])


@pytest.mark.skipif(not SMC.is_file(), reason=f"no {SMC}")
def test_meters_of_real_h100_nodes_have_the_flaws_that_a_plain_count_finds():
    """MLPerf Training v4.0, Sustainable Metal Cloud: watts of 8 x H100 nodes about every 2 s, some negative, some late."""
    table = pd.read_parquet(SMC).query("key == 'power_reading'").dropna(subset="value")
    names = table["run"].str.cat(table["node"], sep=".")
    raw, quality = RawSamples("smc"), QualityReport()
    nodes = {}
    for name, rows in table.groupby(names, sort=False):
        nodes[name] = NodeInfo("w", "p", "H100", 8)
        raw.add_block(Labels(WATTS, node=name, unit="W", native_unit="W"), rows["time_ms"] / 1000, rows["value"])
    frame = clean_samples(raw, Inventory(nodes), quality, where="smc", now=pd.Timestamp("2026-01-01", tz="UTC"))
    kept = table.assign(name=names).drop_duplicates(["name", "time_ms"], keep="last")
    expected = {
        "out_of_order": (table.groupby(names, sort=False)["time_ms"].diff() < 0).sum(),
        "duplicate": len(table) - len(kept),
        "negative_power": ((kept["value"] < 0) & (kept["value"] != -1)).sum(),
        "sentinel": (kept["value"] == -1).sum(),
    }
    found = quality.total()
    assert {flaw: found.get(flaw, 0) for flaw in expected} == expected
    assert expected["negative_power"] > 0
    assert set(found) <= {*expected, "scrape_gap", "scrape_gap_samples"}
    assert len(frame) == len(kept) - expected["negative_power"] - expected["sentinel"]
    assert frame["value"].between(0, 8 * 700 + 4_600).all()
