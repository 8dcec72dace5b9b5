"""Coherent forecasts: what adds up, what stays within bounds, and what is not promised."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hierarchicalforecast.methods import MinTrace
from hypothesis import given, settings
from hypothesis import strategies as st

from models.base import QUANTILE_COLUMNS, QUANTILES
from models.hierarchy import Hierarchy, Reconciler, parents_of_places
from models.metrics import coverage80, wql
from telemetry.errors import InputError

Q = list(QUANTILE_COLUMNS)
PARENTS = {
    "power/gpu/a0/0": "power/node/a0",
    "power/gpu/a0/1": "power/node/a0",
    "power/host/a0": "power/node/a0",
    "power/node/a0": "power/pool/a",
    "power/node/a1": "power/pool/a",
    "power/node/b0": "power/pool/b",
    "power/pool/a": "power/site/s",
    "power/pool/b": "power/site/s",
}
LEAVES = ("power/gpu/a0/0", "power/gpu/a0/1", "power/host/a0", "power/node/a1", "power/node/b0")


def table(ids, seed: int, times: int = 6, origins: int = 1, scale: float = 100.0) -> pd.DataFrame:
    """Sorted random quantiles for every series, not coherent at all."""
    rng = np.random.default_rng(seed)
    rows = pd.MultiIndex.from_product([range(origins), ids, range(times)], names=["origin", "unique_id", "step"]).to_frame(index=False)
    rows["issued_at"] = pd.Timestamp("2025-03-03") + pd.to_timedelta(rows["origin"], unit="D")
    rows["ds"] = rows["issued_at"] + pd.to_timedelta(10 * (rows["step"] + 1), unit="min")
    rows["step"] += 1
    rows[Q] = np.sort(rng.gamma(2.0, scale, size=(len(rows), 9)), axis=1)
    return rows


def wide(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    return frame.pivot_table(index=["origin", "ds"], columns="unique_id", values=column)


def worst_gap(frame: pd.DataFrame, column: str, parents=PARENTS) -> float:
    values, gaps = wide(frame, column), []
    for parent in set(parents.values()):
        gaps.append((values[parent] - values[[c for c, p in parents.items() if p == parent]].sum(axis=1)).abs().max())
    return max(gaps)


def all_ids() -> list[str]:
    return list(Hierarchy.of(PARENTS).ids)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), tight=st.booleans(), learned=st.booleans())
def test_medians_and_means_add_up_bounds_hold_and_nothing_crosses(seed, tight, learned):
    frame = table(all_ids(), seed)
    bounds = dict.fromkeys(LEAVES, (20.0, 300.0))
    bounds |= {"power/pool/a": (None, 700.0), "power/site/s": (150.0, 640.0)} if tight else {}
    past = table(all_ids(), seed + 1, origins=8)
    reconciler = Reconciler.fit(past.assign(y=past["q50"]), PARENTS if learned else {}, bounds)
    reconciler = Reconciler(PARENTS, bounds, reconciler.scores if learned else {})
    out = reconciler.apply(frame)
    assert worst_gap(out, "q50") < 1e-6
    assert worst_gap(out, "mean") < 1e-6
    values = out[Q].to_numpy()
    assert (np.diff(values, axis=1) >= 0).all()
    floors, caps = Hierarchy.of(PARENTS).limits(bounds)
    for uid, low, high in zip(Hierarchy.of(PARENTS).ids, floors, caps, strict=True):
        own = out.loc[out["unique_id"] == uid, [*Q, "mean"]].to_numpy()
        assert own.min() >= low - 1e-6
        assert own.max() <= high + 1e-6
    assert (out[["unique_id", "ds"]] == frame[["unique_id", "ds"]]).all().all(), "rows stay in their order"


def test_a_forecast_that_is_coherent_already_is_left_alone():
    frame = table(list(LEAVES), 3)
    point = frame.assign(**dict.fromkeys(Q, frame["q50"]))
    hierarchy = Hierarchy.of(PARENTS)
    values = point.pivot_table(index="ds", columns="unique_id", values="q50")[list(hierarchy.ids[hierarchy.n_parents :])].to_numpy()
    whole = pd.DataFrame(values @ hierarchy.summing.T, columns=list(hierarchy.ids), index=sorted(frame["ds"].unique()))
    long = whole.rename_axis("ds").reset_index().melt(id_vars="ds", var_name="unique_id", value_name="q50")
    long = long.assign(**dict.fromkeys(Q, long["q50"]))
    out = Reconciler(PARENTS, {}, {}).apply(long)
    np.testing.assert_allclose(out[Q].to_numpy(), long[Q].to_numpy(), atol=1e-6)


def test_the_projection_is_that_of_mintrace_for_the_same_variances():
    hierarchy = Hierarchy.of(PARENTS)
    rng = np.random.default_rng(5)
    sigma = rng.uniform(1.0, 20.0, size=len(hierarchy.ids))
    errors = rng.normal(size=(len(sigma), 4000)) * sigma[:, None]
    library = MinTrace("wls_var")
    library.fit(S=hierarchy.summing, y_hat=np.zeros((len(sigma), 1)), y_insample=errors, y_hat_insample=np.zeros_like(errors))
    np.testing.assert_allclose(hierarchy.projection((errors**2).mean(axis=1)), library.P, atol=1e-4)


def test_a_sure_series_moves_less_than_a_doubtful_one():
    parents = {"power/node/x": "power/pool/p", "power/node/y": "power/pool/p"}
    spread = {"power/node/x": 1.0, "power/node/y": 100.0, "power/pool/p": 100.0}
    level = {"power/node/x": 500.0, "power/node/y": 500.0, "power/pool/p": 1100.0}
    scores = np.linspace(-1.3, 1.3, 9)
    rows = [{"unique_id": u, "ds": pd.Timestamp("2025-03-03"), **dict(zip(Q, level[u] + spread[u] * scores, strict=True))} for u in level]
    out = Reconciler(parents, {}, {}).apply(pd.DataFrame(rows)).set_index("unique_id")["q50"]
    assert abs(out["power/node/x"] - 500.0) < 0.1
    assert out["power/node/y"] > 540.0
    assert out["power/pool/p"] < 1060.0


def correlated_plant(rho: float, seed: int, origins: int = 60, times: int = 6):
    """Eight nodes whose errors correlate by ``rho``; nodes know their own distribution, the pool forecasts as if rho were 0."""
    rng = np.random.default_rng(seed)
    nodes = [f"power/node/n{k}" for k in range(8)]
    frame = table([*nodes, "power/pool/p"], 0, times=times, origins=origins)
    common = rng.normal(size=(origins, times))
    scores = np.array([[-1.2816, -0.8416, -0.5244, -0.2533, 0.0, 0.2533, 0.5244, 0.8416, 1.2816]])
    own = {n: 300.0 + 40.0 * (np.sqrt(rho) * common + np.sqrt(1 - rho) * rng.normal(size=(origins, times))) for n in nodes}
    own["power/pool/p"] = sum(own.values())
    frame["y"] = [own[u][o, s - 1] for u, o, s in zip(frame["unique_id"], frame["origin"], frame["step"], strict=True)]
    is_pool = (frame["unique_id"] == "power/pool/p").to_numpy()[:, None]
    frame[Q] = np.where(is_pool, 2400.0 + 40.0 * np.sqrt(8) * scores, 300.0 + 40.0 * scores)
    return frame, dict.fromkeys(nodes, "power/pool/p")


def test_the_copula_widens_a_parent_whose_parts_move_together():
    frame, parents = correlated_plant(0.6, 1)
    past, test = frame[frame["origin"] < 30], frame[frame["origin"] >= 30]
    out = Reconciler.fit(past, parents).apply(test)
    pools = [f[f["unique_id"] == "power/pool/p"] for f in (test, out)]
    before, after = (coverage80(p["y"].to_numpy(), p[Q].to_numpy()) for p in pools)
    assert before < 0.55
    assert after > before + 0.1
    assert wql(pools[1]["y"].to_numpy(), pools[1][Q].to_numpy()) < wql(pools[0]["y"].to_numpy(), pools[0][Q].to_numpy())
    assert out.groupby("unique_id")["q90"].mean()["power/pool/p"] < 8 * out.groupby("unique_id")["q90"].mean()["power/node/n0"]


def test_a_parent_with_a_silent_child_stands_alone_and_the_others_still_agree():
    frame = table(all_ids(), 7)
    late = frame["ds"] > frame["ds"].min() + pd.Timedelta("30min")
    frame = frame[~((frame["unique_id"] == "power/node/a1") & late)].reset_index(drop=True)
    out = Reconciler(PARENTS, {}, {}).apply(frame)
    late = (out["ds"] > out["ds"].min() + pd.Timedelta("30min")).to_numpy()
    assert worst_gap(out[~late], "q50") < 1e-6
    rest = {child: parent for child, parent in PARENTS.items() if parent != "power/pool/a"}
    assert worst_gap(out[late], "q50", rest) < 1e-6


def test_a_saved_reconciler_gives_the_same():
    frame, parents = correlated_plant(0.3, 2, origins=20)
    reconciler = Reconciler.fit(frame, parents, {"power/pool/p": (0.0, 2600.0)})
    again = Reconciler.from_json(reconciler.to_json())
    pd.testing.assert_frame_equal(reconciler.apply(frame), again.apply(frame))


def test_what_cannot_be_reconciled_is_said():
    with pytest.raises(InputError, match="is a part of itself"):
        Hierarchy.of({"a": "b", "b": "a"})
    with pytest.raises(InputError, match=r"bounds of 'power/site/s'.*can hold together"):
        Hierarchy.of(PARENTS).limits({**dict.fromkeys(LEAVES, (100.0, 200.0)), "power/site/s": (None, 400.0)})
    twice = pd.concat([table(["power/node/a1"], 0)] * 2, ignore_index=True)
    with pytest.raises(InputError, match="two forecasts of one series"):
        Reconciler(PARENTS, {}, {}).apply(twice)


def test_parents_follow_the_inventory_and_the_names():
    places = pd.DataFrame(
        [("n0", "p", "s"), ("n1", "p", "s"), ("n2", "", "s"), ("n3", "q", "s"), ("n4", "q", "t"), ("n5", "", "")],
        columns=["node", "pool", "site"],
    )
    ids = [f"power/node/n{k}" for k in range(6)] + ["power/pool/p", "power/pool/q", "power/site/s", "power/site/t"]
    ids += ["power/gpu/n0/0", "power/host/n0", "power/gpu/elsewhere/0"]
    parents = parents_of_places(places, ids)
    assert parents["power/node/n0"] == "power/pool/p"
    assert parents["power/node/n2"] == "power/site/s", "a node without a pool"
    assert parents["power/pool/p"] == "power/site/s"
    assert "power/pool/q" not in parents, "its nodes are at two sites"
    assert "power/node/n5" not in parents
    assert parents["power/gpu/n0/0"] == parents["power/host/n0"] == "power/node/n0"
    assert "power/gpu/elsewhere/0" not in parents
    assert len(QUANTILES) == len(Q)


def test_parts_that_are_forecast_worse_than_their_whole_do_not_spoil_it():
    frame, parents = correlated_plant(0.0, 3)
    rng = np.random.default_rng(4)
    is_pool = (frame["unique_id"] == "power/pool/p").to_numpy()[:, None]
    lost = 120.0 * rng.normal(size=(len(frame), 1)) * ~is_pool  # nodes are forecast at random levels
    frame[Q] = frame[Q].to_numpy() + lost
    past, test = frame[frame["origin"] < 30], frame[frame["origin"] >= 30]
    reconciler = Reconciler.fit(past, parents)
    assert reconciler.shares == {"power/pool/p": 0.0}
    out = reconciler.apply(test)
    assert worst_gap(out, "q50", parents) < 1e-6

    def loss(table: pd.DataFrame, level: str) -> float:
        own = table[table["unique_id"].str.contains(level)]
        return wql(own["y"].to_numpy(), own[Q].to_numpy())

    assert loss(out, "pool") < 1.02 * loss(test, "pool")
    assert loss(out, "node") < loss(test, "node"), "the parts learn from the whole"
