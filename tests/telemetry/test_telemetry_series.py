"""Series: what y means, to the row, and that nothing later than ds is in it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from telemetry.errors import InputError
from telemetry.schema import SERIES
from telemetry.series import SeriesConfig, cut_series, gpu_demand, power, power_parts, request_rate, targets_of

DAY = pd.Timestamp("2026-01-05", tz="UTC")


def minutes(*values: float) -> list[pd.Timestamp]:
    return [DAY + pd.Timedelta(minutes=v) for v in values]


def samples(rows: list[tuple]) -> pd.DataFrame:
    """Rows of (minute, metric, value, node, device, service, pool, site)."""
    frame = pd.DataFrame(rows, columns=["m", "metric", "value", "node", "device", "service", "pool", "site"])
    frame["time"] = (DAY + pd.to_timedelta(frame.pop("m"), unit="min")).astype("datetime64[ns, UTC]")
    return frame.astype(dict.fromkeys(("metric", "node", "device", "service", "pool", "site"), "category"))


def jobs(rows: list[tuple]) -> pd.DataFrame:
    """Rows of (submit minute, end minute or None, gpus, workers, pool)."""
    frame = pd.DataFrame(rows, columns=["s", "e", "gpus", "workers", "pool"])
    frame["submit_time"] = (DAY + pd.to_timedelta(frame.pop("s"), unit="min")).astype("datetime64[ns, UTC]")
    frame["end_time"] = (DAY + pd.to_timedelta(frame.pop("e").astype(float), unit="min")).astype("datetime64[ns, UTC]")
    return frame


def node_power(rows: list[tuple[float, float, str]], pool: str = "p", site: str = "s") -> pd.DataFrame:
    return samples([(m, "hw.power", v, node, "", "", pool, site) for m, v, node in rows])


def by_id(result, unique_id: str) -> pd.Series:
    own = result.frame[result.frame["unique_id"] == unique_id]
    return own.set_index("ds")["y"]


def test_gpu_demand_by_hand():
    table = jobs([(0, 25, 2, 1, "a"), (10, 20, 0.5, 1, "a"), (15, None, 4, 2, "b"), (19, 19.5, 8, 1, "a"), (40, 50, 1, 1, "a")])
    result = gpu_demand(table, SeriesConfig())
    a, b = by_id(result, "gpu_demand/a"), by_id(result, "gpu_demand/b")
    assert [t.minute for t in a.index] == [10, 20, 30, 40]
    # At 10: the job of 0 and the one just submitted. At 20: the second has just ended, the third of 19 came and went.
    assert a.tolist() == [2.5, 2.0, 0.0, 1.0]
    assert b.tolist() == [0.0, 8.0, 8.0, 8.0]


def test_gpu_demand_equals_a_direct_count():
    generator = np.random.default_rng(3)
    submit = generator.uniform(0, 2000, 300)
    end = submit + generator.exponential(200, 300)
    gpus = generator.choice([0.25, 0.5, 1, 2, 8], 300)
    table = jobs(list(zip(submit, end, gpus, generator.integers(1, 4, 300), ["a"] * 300, strict=True)))
    y = by_id(gpu_demand(table, SeriesConfig()), "gpu_demand/a")
    for ds, value in y.sample(40, random_state=0).items():
        at = ds.tz_localize("UTC")
        alive = (table["submit_time"] <= at) & (table["end_time"] > at)
        assert value == pytest.approx((table["gpus"] * table["workers"])[alive].sum())


def test_bins_are_labelled_by_their_end():
    result = power(node_power([(0.1, 100, "n"), (5, 200, "n"), (10, 300, "n"), (10.1, 50, "n")]), SeriesConfig())
    assert by_id(result, "power/node/n").tolist() == [200.0, 50.0]
    assert [t.minute for t in by_id(result, "power/node/n").index] == [10, 20]


def test_short_gaps_take_the_last_value_and_long_ones_stay_out():
    rows = [(10, 100, "n"), (40, 70, "n"), (100, 90, "n")]
    result = power(node_power(rows), SeriesConfig(max_fill_steps=2))
    y = by_id(result, "power/node/n")
    assert y.tolist() == [100, 100, 100, 70, 70, 70, 90]
    assert [t.hour * 60 + t.minute for t in y.index] == [10, 20, 30, 40, 50, 60, 100]
    counts = result.counts.set_index("unique_id").loc["power/node/n"]
    assert (counts["rows"], counts["filled"], counts["missing"]) == (7, 4, 3)


def test_pool_and_site_are_sums_where_every_node_is_known():
    rows = [(10, 100, "a"), (20, 110, "a"), (30, 120, "a"), (20, 10, "b"), (30, 20, "b")]
    result = power(node_power(rows), SeriesConfig())
    assert by_id(result, "power/pool/p").tolist() == [120.0, 140.0]
    assert by_id(result, "power/site/s").tolist() == [120.0, 140.0]
    assert [t.minute for t in by_id(result, "power/pool/p").index] == [20, 30]


def test_nodes_without_a_meter_are_the_sum_of_their_gpus():
    rows = [(10, "hw.power", 100.0, "a", f"gpu{i}", "", "p", "s") for i in range(2)]
    rows += [(10, "hw.power", 500.0, "b", "", "", "p", "s"), (10, "hw.power", 90.0, "b", "gpu0", "", "p", "s")]
    result = power(samples(rows), SeriesConfig())
    assert by_id(result, "power/node/a").tolist() == [200.0]
    assert by_id(result, "power/node/b").tolist() == [500.0]
    assert result.counts.set_index("unique_id")["measure"].to_dict() == {
        "power/node/a": "gpu_sum", "power/node/b": "node_meter", "power/pool/p": "sum_of_nodes", "power/site/s": "sum_of_nodes",
    }  # fmt: skip


def test_a_node_is_the_sum_of_its_gpus_and_its_host():
    rows = [(m, "hw.power", v, "a", d, "", "p", "s") for m, d, v in ((10, "gpu0", 100.0), (10, "gpu1", 50.0), (20, "gpu0", 110.0))]
    rows += [(m, "hw.power", v, "a", "", "", "p", "s") for m, v in ((10, 400.0), (20, 420.0))]
    rows += [(10, "hw.power", 70.0, "b", "gpu0", "", "p", "s")]
    table = samples(rows)
    parts = power_parts(table, power(table, SeriesConfig()).frame, SeriesConfig(max_fill_steps=0))
    assert by_id(parts, "power/gpu/a/gpu0").tolist() == [100.0, 110.0]
    assert by_id(parts, "power/host/a").tolist() == [250.0], "only where every GPU is known"
    assert set(parts.frame["unique_id"]) == {"power/gpu/a/gpu0", "power/gpu/a/gpu1", "power/host/a", "power/gpu/b/gpu0"}
    assert power_parts(samples(rows[3:5]), power(table, SeriesConfig()).frame, SeriesConfig()).frame.empty


def test_request_rate_per_service():
    rows = [
        (m, "http.server.request.rate", v, "", "", service, "", "") for service, v in (("chat", 4.0), ("embed", 1.0)) for m in (5, 10, 20)
    ]
    result = request_rate(samples(rows), SeriesConfig())
    assert by_id(result, "request_rate/chat").tolist() == [4.0, 4.0]
    assert result.counts["unique_id"].tolist() == ["request_rate/chat", "request_rate/embed"]


@pytest.mark.parametrize("cut", [300, 701, 1000])
def test_nothing_later_than_ds_is_in_a_row(cut):
    """Changing everything after a time changes no row up to it."""
    generator = np.random.default_rng(cut)
    when = generator.uniform(0, 2000, 400)
    submit = np.sort(generator.uniform(0, 2000, 200))
    end = submit + generator.exponential(300, 200)
    limit = (DAY + pd.Timedelta(minutes=cut)).tz_localize(None)

    def made(later: float) -> pd.DataFrame:
        rows = [(m, 100.0 + (later if m > cut else m), f"n{i % 3}") for i, m in enumerate(when)]
        table = jobs([(s, e + (later if e > cut else 0), 1 + (s > cut) * later, 1, "p") for s, e in zip(submit, end, strict=True)])
        points = node_power(rows)
        frame = cut_series(["gpu_demand", "power"], points, table).frame
        return frame[frame["ds"] <= limit].reset_index(drop=True)

    first, second = made(7.0), made(7000.0)
    assert len(first) > 100
    pd.testing.assert_frame_equal(first, second)


def test_families_frames_and_refusals():
    assert targets_of(["workload", "power"]) == ("gpu_demand", "request_rate", "power")
    assert targets_of(["power", "power"]) == ("power",)
    result = cut_series(["workload"], None, jobs([(0, 30, 1, 1, None), (60, 90, 1, 1, None)]))
    assert result.frame["unique_id"].unique().tolist() == ["gpu_demand/all"]
    SERIES.validate(result.frame)
    with pytest.raises(InputError, match=r"unknown target 'heat'.*gpu_demand"):
        targets_of(["heat"])
    with pytest.raises(InputError, match="nothing to cut power"):
        cut_series(["power"], None, None)
    for freq in ("7min", "soon", "-1h", "3D"):
        with pytest.raises(InputError, match="freq"):
            SeriesConfig(freq=freq)
