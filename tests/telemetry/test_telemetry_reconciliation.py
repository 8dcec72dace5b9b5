"""Reconciliation: sources that agree raise nothing; each planted fault is found, and laid at the right door or said to be undecided."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from telemetry.energy import EnergyRules, Grid, interval_energy, per_device
from telemetry.reconciliation import Comparison, Reconciliation, reconcile
from telemetry.schema import SAMPLE_TEXT, UTC

START = pd.Timestamp("2026-01-05", tz="UTC")
T, STEP_S = 432, 600


def load(seed: int, gpus: int = 4) -> np.ndarray:
    """Watts of boards that start and stop, ``[gpus, T]``."""
    rng = np.random.default_rng(seed)
    busy = np.repeat(rng.random((gpus, T // 6)) < 0.6, 6, axis=1)
    return np.rint(50 + busy * (200 + 10 * rng.standard_normal((gpus, T))))


def world(seed: int = 0) -> dict[str, np.ndarray]:
    """A sound node: boards, and its own reading with fans, CPU and 0.4 % of noise."""
    boards = load(seed)
    noise = np.random.default_rng(seed + 100).standard_normal(T)
    node = boards.sum(axis=0) + 200 + 0.12 * (boards - 50).sum(axis=0)
    return {**{f"gpu{g}": boards[g] for g in range(len(boards))}, "": np.rint(node * (1 + 0.004 * noise))}


def reconciled(nodes: dict[str, dict[str, np.ndarray]]) -> Reconciliation:
    frames = []
    stamp = START + pd.to_timedelta(STEP_S * np.arange(1, T + 1), unit="s")
    for node, devices in nodes.items():
        for name, watts in devices.items():
            frame = pd.DataFrame({"time": pd.Series(stamp).astype(UTC), "value": watts.astype(float)})
            device, _, source = name.partition("@")
            text = dict.fromkeys(SAMPLE_TEXT, "") | {"metric": "hw.power", "unit": "W", "site": "west", "node": node, "device": device}
            frames.append(frame.assign(**text | {"source": source or "bmc"}))
    grid = Grid.of(START, START + pd.Timedelta(seconds=STEP_S * T), "10min")
    return reconcile(interval_energy(pd.concat(frames), grid, EnergyRules(gauge="mean")))


def only(found: Reconciliation, layer: str) -> Comparison:
    (one,) = found.of(layer)
    return one


@pytest.mark.parametrize("seed", range(8))
def test_a_sound_node_raises_nothing(seed):
    one = only(reconciled({"n": world(seed)}), "node")
    assert one.suspect == "", one.findings
    assert one.residual_w == pytest.approx((world(seed)[""] - load(seed).sum(axis=0)).mean())
    assert one.hours == pytest.approx(T * STEP_S / 3600)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("fault", "suspect", "rule"),
    [
        (lambda d: d | {"": np.full(T, 700.0)}, "parent", "stuck"),
        (lambda d: d | {"gpu2": np.zeros(T)}, "gpu2", "silent"),
        (lambda d: d | {"": d[""] / 1000}, "parent", "scale"),
        (lambda d: d | {"": np.rint(d[""] / 2)}, "parent", "scale"),
        (lambda d: d | {f"gpu{g}": d[f"gpu{g}"] * 1000 for g in range(4)}, "children", "scale"),
        (lambda d: d | {"gpu1": d["gpu1"] * 0.5}, "gpu1", "device"),
        (lambda d: d | {"gpu3": d["gpu3"] * 1.6}, "gpu3", "device"),
        (lambda d: d | {"": np.roll(d[""], 2)}, "clock", "clock"),
        (lambda d: d | {"": np.roll(d[""], -3)}, "clock", "clock"),
        (lambda d: d | {"": d[""] - 330}, "parent", "exceeds"),
        (lambda d: d | {"": d[""] + np.linspace(0, 120, T)}, "undecided", "drift"),
    ],
)
def test_a_planted_fault_is_found_at_its_place(seed, fault, suspect, rule):
    one = only(reconciled({"n": fault(world(seed))}), "node")
    assert one.suspect == suspect, one.findings
    assert rule in {finding.rule for finding in one.findings if finding.suspect == suspect}
    assert 0 <= one.confidence <= 1


def test_the_trend_is_the_drift_that_was_planted():
    drifting = world() | {"": world()[""] + np.linspace(0, 90, T)}
    one = only(reconciled({"n": drifting}), "node")
    assert one.slope.w_per_day == pytest.approx(30.0, abs=6.0)
    assert one.slope.low < one.slope.w_per_day < one.slope.high


def test_supplies_repeat_the_node_and_are_not_added_to_it():
    sound = world()
    both = sound | {"psu1": sound[""] * 0.52, "psu2": sound[""] * 0.48}
    found = reconciled({"n": both})
    assert only(found, "supplies").suspect == ""
    assert only(found, "supplies").residual_percent == pytest.approx(0.0, abs=0.1)
    half = only(reconciled({"n": sound | {"psu1": sound[""] * 0.5}}), "supplies")
    assert {f.rule for f in half.findings} >= {"scale"}
    assert half.suspect == "undecided"  # nothing says which of two plausible readings is right


def test_zones_lie_within_the_package_and_psys_repeats_the_node():
    sound = world()
    package = np.rint(60 + 0.2 * sound["gpu0"])
    rapl = {"cpu0": package, "cpu0/core": package * 0.7, "cpu0/dram": np.full(T, 12.0), "psys": sound[""] * 1.01}
    found = reconciled({"n": sound | rapl | {"": sound[""] + package + 12}})
    assert only(found, "zones").residual_percent == pytest.approx(30.0)
    assert only(found, "node").children == ("cpu0", "cpu0/dram", "gpu0", "gpu1", "gpu2", "gpu3") or set(only(found, "node").children) == {
        "gpu0",
        "gpu1",
        "gpu2",
        "gpu3",
        "cpu0",
        "cpu0/dram",
    }
    assert only(found, "psys").children == ("psys",)


def test_slices_are_within_their_board():
    sound = world()
    found = reconciled({"n": sound | {"gpu0/mig1": sound["gpu0"] * 0.4, "gpu0/mig2": sound["gpu0"] * 0.5}})
    assert only(found, "slices").residual_percent == pytest.approx(10.0, abs=0.01)
    assert "gpu0/mig1" not in only(found, "node").children


def test_two_sources_of_a_board_are_a_cross_check_not_a_sum():
    sound = world()
    found = reconciled({"n": sound | {"gpu0@otlp": sound["gpu0"] * 1.2}})
    one = only(found, "sources")
    assert one.residual_percent == pytest.approx(-20.0, abs=0.01)
    assert one.suspect == "parent"  # the one used reads less than the other in all of the time
    assert len(only(found, "node").children) == 4


def test_outlets_pdus_and_the_site():
    nodes = {f"n{i}": world(i) for i in range(3)}
    for i, devices in enumerate(nodes.values()):
        devices[f"pdu/a/{i}"] = devices[""] * 1.02
    total = sum(d[""] * 1.02 for d in nodes.values())
    found = reconciled(nodes | {"": {"pdu/a": total + 20, "": (total + 20) * 1.1}})
    assert {one.place for one in found.of("outlets")} == {"n0", "n1", "n2"}
    assert all(one.suspect == "" for one in found.of("outlets"))
    assert only(found, "pdu").residual_w == pytest.approx(20.0)
    assert only(found, "site").children == ("pdu/a",)
    assert only(found, "site").residual_percent == pytest.approx(100 * 0.1 / 1.1, abs=0.01)


def test_too_little_overlap_is_undecided_and_json_is_plain():
    devices = world()
    stamp = START + pd.to_timedelta(STEP_S * np.arange(1, 6), unit="s")
    few = pd.concat(
        [
            pd.DataFrame({"time": pd.Series(stamp).astype(UTC), "value": devices[name][:5]}).assign(
                **dict.fromkeys(SAMPLE_TEXT, "") | {"metric": "hw.power", "node": "n", "device": name}
            )
            for name in ("", "gpu0")
        ]
    )
    grid = Grid.of(START, START + pd.Timedelta(hours=2), "10min")
    energy = interval_energy(few, grid, EnergyRules(gauge="mean"))
    found = reconcile(energy)
    assert only(found, "node").verdict == "undecided"
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["comparisons"][0]["slope_w_per_day"] == [None, None, None]
    assert len(per_device(energy).devices) == 2


def test_the_page_escapes_names_and_shows_the_doubtful_first():
    found = reconciled({"a<b>": world(), "z": world(1) | {"gpu2": np.zeros(T)}})
    assert found.comparisons[0].place == "z"
    page = found.to_html()
    assert "a&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.index("gpu2 reads 0 W throughout") < page.index("a&lt;b&gt;")
