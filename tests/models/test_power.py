"""Power from load: the gain where power follows load, no harm where it does not, and nothing from after an issue."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from models.base import QUANTILE_COLUMNS, QUANTILES
from models.metrics import coverage80, wql
from models.naive import EmpiricalPersistence
from models.power import PowerCurve, PowerModel, Response, level_of
from telemetry.errors import InputError

Q = list(QUANTILE_COLUMNS)
HORIZON, FREQ = 6, "10min"
IDLE_W, UNIT_W, CAPACITY = 900.0, 250.0, 8.0
CURVE = PowerCurve("gpu_demand/p", IDLE_W, UNIT_W, CAPACITY)
BOUNDS = {"power/pool/p": (IDLE_W - 100.0, IDLE_W + UNIT_W * CAPACITY + 100.0)}
T, TRAIN, CALIBRATION = 900, 420, 620


def plant(seed: int, follows: bool = True) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Power and load of one pool: jobs come and go, and power is a curve of the load plus a slow wander (or has nothing to do with it)."""
    rng = np.random.default_rng(seed)
    load = np.repeat(rng.integers(0, 12, size=T // 5), 5).astype(float)
    of = load if follows else np.repeat(rng.integers(0, 12, size=T // 5), 5)
    wander = 20.0 * np.convolve(rng.normal(size=T + 20), np.ones(20) / np.sqrt(20), mode="valid")[:T]
    watts = np.clip(CURVE.watts(of) + wander, *BOUNDS["power/pool/p"])
    ds = pd.date_range("2025-03-03", periods=T, freq=FREQ)
    frame = {"ds": ds}
    return pd.DataFrame({"unique_id": "power/pool/p", **frame, "y": watts}), pd.DataFrame({"unique_id": CURVE.load_id, **frame, "y": load})


def direct_forecasts(power: pd.DataFrame) -> pd.DataFrame:
    """Empirical persistence at every seventh time, with what came."""
    model = EmpiricalPersistence(freq=FREQ, horizon=HORIZON, condition="none", bounds=BOUNDS).fit(power[:TRAIN])
    parts = []
    for origin, end in enumerate(range(TRAIN, T - HORIZON, 7)):
        if origin:
            model.update(power[end - 7 : end])
        parts.append(model.predict().assign(origin=origin, step=range(1, HORIZON + 1)))
    return pd.concat(parts, ignore_index=True).merge(power, on=["unique_id", "ds"])


def knowing_loads(load: pd.DataFrame, issues: pd.Series, sigma: float = 0.4) -> pd.DataFrame:
    """A good load forecast: what comes, with an honest error."""
    rng, parts, values = np.random.default_rng(9), [], load.set_index("ds")["y"]
    for issued in issues.unique():
        ds = issued + pd.to_timedelta(10 * np.arange(1, HORIZON + 1), unit="min")
        centre = values.reindex(ds).to_numpy() + rng.normal(scale=sigma, size=HORIZON)
        table = np.maximum(centre[:, None] + sigma * norm.ppf(QUANTILES), 0.0)
        parts.append(pd.DataFrame(table, columns=Q).assign(unique_id=CURVE.load_id, issued_at=issued, ds=ds))
    return pd.concat(parts, ignore_index=True)


def parts_of(direct: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    cut = pd.Timestamp("2025-03-03") + CALIBRATION * pd.Timedelta(FREQ)
    return direct[direct["issued_at"] < cut].reset_index(drop=True), direct[direct["issued_at"] >= cut].reset_index(drop=True)


def fitted(power, load, loads, past, **options):
    settings = {"curves": {"power/pool/p": CURVE}, "bounds": BOUNDS, "horizon": HORIZON, **options}
    return PowerModel.fit(past, loads, power, load, **settings)


def loss(frame: pd.DataFrame) -> float:
    return wql(frame["y"].to_numpy(), frame[Q].to_numpy())


def test_conditioning_gains_much_where_power_is_a_function_of_load():
    power, load = plant(0)
    direct = direct_forecasts(power)
    loads = knowing_loads(load, direct["issued_at"])
    past, test = parts_of(direct)
    model = fitted(power, load, loads, past)
    final = model.apply(test, loads, power, load)
    assert model.shares["pool"].min() >= 0.75
    np.testing.assert_allclose(model.responses["power/pool/p"].gain, 1.0, atol=0.1)
    assert loss(final) < 0.5 * loss(test)
    assert 0.7 < coverage80(final["y"].to_numpy(), final[Q].to_numpy()) < 0.95
    values = final[Q].to_numpy()
    assert (np.diff(values, axis=1) >= 0).all()
    assert values.min() >= BOUNDS["power/pool/p"][0]
    assert values.max() <= BOUNDS["power/pool/p"][1]
    assert (final["model"] == "power").all()


def test_a_load_that_says_nothing_does_no_harm():
    power, load = plant(1, follows=False)
    direct = direct_forecasts(power)
    past, test = parts_of(direct)
    loads = knowing_loads(load, direct["issued_at"])
    model = fitted(power, load, loads, past)
    assert loss(model.apply(test, loads, power, load)) < 1.03 * loss(test)


def test_an_uncertain_load_makes_uncertain_watts():
    power, load = plant(2)
    past, test = parts_of(direct_forecasts(power))
    sure = knowing_loads(load, pd.concat([past, test])["issued_at"], 0.1)
    model = fitted(power, load, sure, past)
    vague = sure.assign(**{q: np.maximum(sure["q50"] + (sure[q] - sure["q50"]) * 15, 0) for q in Q})
    widths = [np.diff(model.conditional(test, loads, power, load)[:, [0, -1]]).mean() for loads in (sure, vague)]
    assert widths[1] > 2 * widths[0]


def test_demand_beyond_the_capacity_draws_nothing():
    assert CURVE.watts(np.array([-1.0, 0.0, 8.0, 50.0])).tolist() == [IDLE_W, IDLE_W, IDLE_W + 2000.0, IDLE_W + 2000.0]


def test_nothing_after_an_issue_matters():
    power, load = plant(3)
    direct = direct_forecasts(power)
    loads = knowing_loads(load, direct["issued_at"])
    past, test = parts_of(direct)
    first = past["issued_at"].min()
    model = fitted(power, load, loads, past)

    def after(frame: pd.DataFrame, time: pd.Timestamp, keep: set) -> pd.DataFrame:
        later = (frame["ds"] > time) & ~frame["ds"].isin(keep)
        return frame.assign(y=np.where(later, 1e5, frame["y"]))

    issues = set(past["issued_at"])
    again = fitted(after(power, first, issues), after(load, first, issues), loads, past)
    assert json.dumps(model.to_json()) == json.dumps(again.to_json()), "only values at issues are read from after the first one"
    at = sorted(test["issued_at"].unique())[5]
    one = test[test["issued_at"] == at]
    future = loads.assign(**{q: np.where(loads["issued_at"] > at, 1e5, loads[q]) for q in Q})
    known = model.apply(one, loads, power, load)
    shuffled = model.apply(one.assign(y=-1.0), future, after(power, at, set()), after(load, at, set()))
    np.testing.assert_array_equal(known[Q].to_numpy(), shuffled[Q].to_numpy())


def test_the_latest_load_forecast_of_before_the_issue_is_taken():
    power, load = plant(4)
    past, test = parts_of(direct_forecasts(power))
    loads = knowing_loads(load, pd.concat([past, test])["issued_at"])
    model = fitted(power, load, loads, past)
    earlier = loads.assign(issued_at=loads["issued_at"] - pd.Timedelta(FREQ))  # a load that was known a step before
    assert np.isfinite(model.conditional(test, earlier, power, load)).all()
    later = loads.assign(issued_at=loads["issued_at"] + pd.Timedelta("1s"))
    assert np.isnan(model.conditional(test, later, power, load)).all(), "no forecast from after the issue"


def test_without_loads_or_curves_the_direct_forecast_stands():
    power, load = plant(5)
    past, test = parts_of(direct_forecasts(power))
    for loads, options in ((None, {}), (knowing_loads(load, past["issued_at"]), {"curves": {}})):
        model = fitted(power, load, loads, past, **options)
        assert model.shares == {}
        np.testing.assert_allclose(model.apply(test, loads, power, load)[Q].to_numpy(), test[Q].to_numpy())


def test_a_stored_model_gives_the_same():
    power, load = plant(6)
    past, test = parts_of(direct_forecasts(power))
    loads = knowing_loads(load, pd.concat([past, test])["issued_at"])
    model = fitted(power, load, loads, past)
    again = PowerModel.from_json(json.loads(json.dumps(model.to_json())))
    pd.testing.assert_frame_equal(model.apply(test, loads, power, load), again.apply(test, loads, power, load))


def test_a_response_survives_gaps_and_a_load_that_never_changes():
    rng = np.random.default_rng(7)
    drawn = np.full(300, 1200.0)
    watts = 1200.0 + rng.normal(scale=10.0, size=300)
    watts[50:60] = np.nan
    response = Response.fit(watts, drawn, HORIZON)
    table = response.quantiles(np.array([1, 6]), np.array([1200.0, 1200.0]), np.array([1200.0, 1200.0]), np.full((2, 9), 1200.0))
    assert np.isfinite(table).all()
    assert (np.diff(table, axis=1) >= 0).all()
    np.testing.assert_allclose(table[:, 4], 1200.0, atol=6.0)


def test_a_wrong_curve_is_refused_and_levels_come_from_names():
    with pytest.raises(InputError, match="power curve on 'x'"):
        PowerCurve("x", -1.0, 10.0, 4.0)
    assert [level_of(uid) for uid in ("power/gpu/n/0", "power/site/s", "anything")] == ["gpu", "site", "all"]
