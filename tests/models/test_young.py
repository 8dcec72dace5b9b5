"""New series move as known ones did at their age: calibrated from the first row, in any unit, and bounded in cost."""

from __future__ import annotations

import json

import numpy as np
import pytest
from series_makers import series_frame

from models.base import QUANTILES
from models.series import Panel, freq_step_ns, validate_series
from models.young import LENGTHS, YoungSeries, kinds_of

HORIZON, SEASON = 6, 144


def panel_of(values: dict[str, np.ndarray]) -> Panel:
    return Panel.from_frame(validate_series(series_frame(values), "10min")[0], freq_step_ns("10min"))


def walks(count: int, seed: int, unit: float = 1.0, rows: int = 600, prefix: str = "tenant") -> dict[str, np.ndarray]:
    """Random walks around levels that differ a hundredfold, each moving by about 3 % of its level a step."""
    rng = np.random.default_rng(seed)
    out = {}
    for i in range(count):
        level = 10 ** rng.uniform(0, 2)
        path = np.exp(np.cumsum(rng.normal(scale=0.03, size=rows)))
        out[f"{prefix}/{i:03d}"] = unit * level * path / path.mean()
    return out


def coverage(young: YoungSeries, fresh: dict[str, np.ndarray], length: int, issues: tuple[int, ...]) -> float:
    hits = []
    for uid, y in fresh.items():
        for t in issues:
            forecast = y[t] + young.change_quantiles(kinds_of(uid, ""), y[t + 1 - length : t + 1], HORIZON)
            after = y[t + 1 : t + 1 + HORIZON]
            hits += ((forecast[:, 0] <= after) & (after <= forecast[:, -1])).tolist()
    return float(np.mean(hits))


@pytest.mark.parametrize("length", [1, 2, 4, 18, 150])
def test_four_of_five_values_of_new_series_are_covered_at_every_age(length: int) -> None:
    young = YoungSeries.fit(panel_of(walks(40, 0)), HORIZON, SEASON)
    assert coverage(young, walks(60, 1), length, (200, 300, 400, 500)) == pytest.approx(0.8, abs=0.05)


def test_the_unit_of_all_series_does_not_matter() -> None:
    one, other = (YoungSeries.fit(panel_of(walks(12, 0, unit)), HORIZON, SEASON) for unit in (1.0, 1024.0))
    first = one.change_quantiles(("tenant", ""), np.array([3.0, 4.0]), HORIZON)
    np.testing.assert_allclose(other.change_quantiles(("tenant", ""), 1024.0 * np.array([3.0, 4.0]), HORIZON), 1024.0 * first, rtol=1e-9)


def test_a_lively_kind_and_a_calm_one_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    calm = {f"calm/{i}": 50.0 + 0.01 * rng.normal(size=400) for i in range(5)}
    young = YoungSeries.fit(panel_of({**calm, **walks(6, 2, prefix="lively")}), HORIZON, SEASON)
    width = {kind: np.ptp(young.change_quantiles((kind, ""), np.array([50.0]), HORIZON), axis=1).mean() for kind in ("calm", "lively", "x")}
    assert width["calm"] < 0.05 * width["lively"]
    assert width["calm"] < width["x"] < 2.0 * width["lively"]  # an unknown kind may be either


def test_own_changes_take_over_from_the_level() -> None:
    young = YoungSeries.fit(panel_of(walks(12, 0)), HORIZON, SEASON)
    rng = np.random.default_rng(3)
    wild = 50.0 + np.cumsum(rng.normal(scale=20.0, size=150))
    widths = [np.ptp(young.change_quantiles(("tenant", ""), wild[:n], HORIZON), axis=1).mean() for n in (1, 6, 150)]
    assert widths[0] < 0.5 * widths[1] < widths[2]


def test_a_series_at_zero_may_begin_and_one_that_never_moved_stays() -> None:
    rng = np.random.default_rng(1)
    bursts = {f"t/{i}": np.where(rng.random(600) < 0.4, 10.0, 0.0) for i in range(8)}
    young = YoungSeries.fit(panel_of(bursts), HORIZON, SEASON)
    begins = young.change_quantiles(("t", ""), np.zeros(2), HORIZON)
    assert (begins[:, 0] == 0.0).all()
    assert (begins[:, -1] == 10.0).all()
    assert (young.change_quantiles(("t", ""), np.zeros(LENGTHS[-1]), HORIZON) == 0.0).all()
    assert (young.change_quantiles(("t", ""), np.full(300, 7.0), HORIZON) == 0.0).all()


def test_without_comparable_series_nothing_is_said() -> None:
    for values in ({"a": np.array([1.0])}, {"a": np.full(300, 5.0)}, {"a": np.zeros(300)}):
        assert YoungSeries.fit(panel_of(values), HORIZON, SEASON).change_quantiles(("",), np.array([1.0]), HORIZON) is None


def test_a_cluster_of_a_few_rows_learns_what_it_can() -> None:
    """Six rows show changes over five steps; without a whole season a common rise is no reason to go on rising."""
    rising = {uid: y[:6] * np.linspace(1.0, 1.5, 6) for uid, y in walks(12, 0).items()}
    young = YoungSeries.fit(panel_of(rising), 20, SEASON)
    found = young.change_quantiles(("tenant", ""), np.array([10.0, 11.0]), 20)
    np.testing.assert_allclose(found[:, 4], 0.0, atol=1e-9)
    np.testing.assert_allclose(found[19], 2.0 * found[4], rtol=1e-9)
    assert (np.ptp(found, axis=1) > 0).all()


def test_spikes_of_the_known_series_do_not_widen_the_new_one() -> None:
    plain, spiky = walks(12, 0), walks(12, 0)
    for y in spiky.values():
        y[[100, 101, 300]] *= 1e4
    widths = [
        np.ptp(
            YoungSeries.fit(panel_of(v), HORIZON, SEASON).change_quantiles(("tenant", ""), np.array([20.0, 20.5, 20.0]), HORIZON), axis=1
        ).mean()
        for v in (plain, spiky)
    ]
    assert widths[1] < 1.5 * widths[0]


def test_stored_and_read_it_says_the_same() -> None:
    young = YoungSeries.fit(panel_of({**walks(6, 0), **walks(5, 1, prefix="other")}), HORIZON, SEASON)
    again = YoungSeries.from_json(json.loads(json.dumps(young.to_json(), allow_nan=False)))
    assert set(again.kinds) == {"", "tenant", "other"}
    for n in (1, 5, 400):
        y = np.linspace(1.0, 9.0, n)
        found = again.change_quantiles(("other", ""), y, 3)
        assert found.shape == (3, len(QUANTILES))
        assert (np.diff(found, axis=1) >= 0).all()
        np.testing.assert_array_equal(found, young.change_quantiles(("other", ""), y, 3))


def test_kinds_are_read_from_ids_and_families() -> None:
    assert kinds_of("power/node/a100-0003", "power/node") == ("power/node/a100", "power/node", "")
    assert kinds_of("gpu_demand/vc", "gpu_demand") == ("gpu_demand", "")
    assert kinds_of("plain", "") == ("",)
    assert kinds_of("plain", "tenant") == ("tenant", "")
