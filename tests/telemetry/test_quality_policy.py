"""Policies: what is allowed, what is refused and how that is told, and that every reader and the lake go by them."""

from __future__ import annotations

import dataclasses
import json

import pandas as pd
import pytest

from telemetry.errors import InputError
from telemetry.ingest import SourceSpec, ingest_sources, load_inventory, source_digest
from telemetry.lake import Lake
from telemetry.limits import BOARD_LIMIT_W, board_limit_w, device_limit_w, is_gpu, node_limit_w
from telemetry.policy import POLICIES, QualityPolicy
from telemetry.quality import QualityReport
from telemetry.readers import READERS, ReadContext, read_export

START, LATER = pd.Timestamp("2026-01-01T00:00:00Z"), pd.Timestamp("2026-02-01T00:00:00Z")


@pytest.fixture
def bad(tmp_path, make):
    """A DCGM answer of 108 points, of which two watts of n0 and one of n1 are blank."""
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(make["prometheus"]({("n0", 3): "", ("n0", 4): "", ("n1", 5): "-1"})))
    return path


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sentinel": "keep"}, r"quality\.sentinel: policy 'keep'; allowed: drop, refuse"),
        ({"scrape_gap": "fill"}, r"quality\.scrape_gap: policy 'fill'; allowed: keep, repair, refuse"),
        ({"gap_fill": "cubic"}, r"quality\.gap_fill.*hold, linear"),
        ({"refuse_above": 1.5}, r"quality\.refuse_above: 1\.5; allowed: 0 to 1"),
        ({"power_margin": 0.5}, r"quality\.power_margin"),
        ({"future_s": -1}, r"quality\.future_s"),
        ({"energy_share": float("nan")}, r"quality\.energy_share"),
    ],
)
def test_a_wrong_policy_is_named_with_the_choices(options, told):
    with pytest.raises(InputError, match=told):
        QualityPolicy(**options)


@pytest.mark.parametrize("flaw", sorted(POLICIES))
def test_a_refused_flaw_is_handled_by_its_first_policy(flaw):
    assert QualityPolicy(**{flaw: "refuse"}).of(flaw) == POLICIES[flaw][0]
    assert all(QualityPolicy(**{flaw: choice}).of(flaw) == choice for choice in POLICIES[flaw][:-1])


def test_refusal_names_flaw_count_devices_file_and_remedy(bad):
    with pytest.raises(InputError) as caught:
        read_export("prometheus", bad, ReadContext("dcgm", policy=QualityPolicy(sentinel="refuse")))
    told = str(caught.value)
    for part in ("answer.json", "sentinel: 3", "2.78%", "n0/gpu0 (2), n1/gpu0 (1)", "allowed: 0.00%", "remedy", "quality.sentinel=drop"):
        assert part in told


def test_up_to_the_tolerated_share_the_file_is_taken(bad):
    just = QualityPolicy(sentinel="refuse", refuse_above=3 / 108)
    result = read_export("prometheus", bad, ReadContext("dcgm", policy=just))
    assert result.quality.total() == {"sentinel": 3}
    assert len(result.tables["samples"]) == 108 - 3 - 3
    with pytest.raises(InputError, match="sentinel: 3"):
        read_export("prometheus", bad, ReadContext("dcgm", policy=QualityPolicy(sentinel="refuse", refuse_above=2.9 / 108)))


def test_gaps_are_refused_by_missing_samples_and_skew_by_nodes(tmp_path, make):
    answer = make["prometheus"]()
    del answer["data"]["result"][0]["values"][3:7]
    for entry in answer["data"]["result"]:
        if entry["metric"]["Hostname"] == "n2":
            entry["values"] = [[t + 37, v] for t, v in entry["values"]]
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(answer))

    def read(**options: object) -> QualityReport:
        return read_export("prometheus", path, ReadContext("s", policy=QualityPolicy(**options))).quality

    with pytest.raises(InputError, match=r"scrape_gap_samples: 4 \(3\.70%"):  # of 104 that came and 4 that did not
        read(scrape_gap="refuse", refuse_above=0.03)
    assert read(scrape_gap="refuse", refuse_above=0.04).total() == {"scrape_gap": 1, "scrape_gap_samples": 4, "clock_skew": 1}
    with pytest.raises(InputError, match=r"clock_skew: 1 \(33\.33%.*n2 \(1\).*NTP"):
        read(clock_skew="refuse", refuse_above=0.3)
    assert read(clock_skew="refuse", refuse_above=0.34).total()["clock_skew"] == 1


@pytest.mark.parametrize(("reader", "flaw"), [("grid", "sentinel"), ("slurm", "duplicate")])
def test_tables_are_refused_too(tmp_path, make, reader, flaw):
    head = "time,site,price_usd_per_kwh,carbon_g_per_kwh"
    prices = [head, *(f"2026-01-05T0{hour}:00Z,w,{'' if hour == 1 else 2},1" for hour in range(3))]
    jobs = [make["sacct_head"], *(make["sacct"](job) for job in "112")]
    path = tmp_path / "table.txt"
    path.write_bytes(make["text"](prices if reader == "grid" else jobs))

    def read(share: float) -> QualityReport:
        return read_export(reader, path, ReadContext("t", policy=QualityPolicy(**{flaw: "refuse"}, refuse_above=share))).quality

    with pytest.raises(InputError, match=rf"table\.txt: {flaw}: 1 \(33\.33%.*the file \(1\)"):
        read(0.33)
    assert read(0.34).total() == {flaw: 1}


def test_a_refused_file_stores_nothing(tmp_path, bad, clean):
    good = tmp_path / "grid.csv"
    good.write_bytes(clean["grid"][1])
    lake = Lake(tmp_path / "lake")
    specs = [SourceSpec(good, "grid"), SourceSpec(bad, "prometheus")]
    with pytest.raises(InputError, match="sentinel"):
        ingest_sources(lake, specs, policy=QualityPolicy(sentinel="refuse"), now=LATER)
    assert lake.sources() == {}
    ingest_sources(lake, specs, now=LATER)
    before = lake.manifest()
    with pytest.raises(InputError, match="sentinel"):
        ingest_sources(lake, specs, policy=QualityPolicy(sentinel="refuse"), now=LATER)
    assert lake.manifest() == before


def test_another_policy_is_another_digest_and_reads_again(tmp_path, bad):
    spec, lake = SourceSpec(bad, "prometheus"), Lake(tmp_path / "lake")
    one, same, other = (
        source_digest(spec, ReadContext(spec.source, policy=policy, now=now))
        for policy, now in ((QualityPolicy(), None), (QualityPolicy(), LATER), (QualityPolicy(scrape_gap="repair"), None))
    )
    assert one == same
    assert one != other
    statuses = [
        ingest_sources(lake, [spec], policy=policy, now=LATER).status[spec.source]
        for policy in (None, QualityPolicy(), QualityPolicy(power_margin=2.0))
    ]
    assert statuses == ["ingested", "unchanged", "ingested"]
    assert lake.quality().policies[spec.source] == QualityPolicy().chosen()


def test_a_file_with_times_in_the_future_is_read_again_until_they_have_come(tmp_path, bad):
    spec, lake = SourceSpec(bad, "prometheus"), Lake(tmp_path / "lake")
    policy = QualityPolicy(future_timestamp="drop")
    early = ingest_sources(lake, [spec], policy=policy, now=pd.Timestamp("2026-01-05T01:00:00Z"))
    # Twelve steps of ten minutes from 00:10; six have come by 01:00, and the blanks of steps 3 and 4 with them.
    assert early.quality.total() == {"sentinel": 3, "future_timestamp": 6 * 9}
    late = ingest_sources(lake, [spec], policy=policy, now=LATER)
    assert late.status == {spec.source: "ingested"}
    assert late.quality.total() == {"sentinel": 3}
    assert ingest_sources(lake, [spec], policy=policy, now=LATER).status == {spec.source: "unchanged"}


@pytest.mark.parametrize("name", sorted(READERS))
def test_every_reader_of_samples_goes_by_the_policy_and_the_clock(name, clean, tmp_path, told):
    path = tmp_path / clean[name][0]
    path.write_bytes(clean[name][1])
    context = told(name)
    tables = read_export(name, path, context).tables
    if "samples" not in tables:
        pytest.skip("reads no samples")
    inside = dataclasses.replace(
        context, policy=QualityPolicy(future_timestamp="drop"), now=tables["samples"]["time"].min() - pd.Timedelta("1D")
    )
    result = read_export(name, path, inside) if name != "ipmi" else None
    if result is None:  # which refuses a file without any reading
        with pytest.raises(InputError, match="no block has a power reading"):
            read_export(name, path, inside)
    else:
        assert result.tables["samples"].empty
        assert set(result.quality.total()) == {"future_timestamp"}


def test_limits_of_boards_devices_and_nodes():
    assert [board_limit_w(name) for name in ("NVIDIA-A100-SXM4-80GB", "Tesla V100-PCIE-16GB", "a40", "H100", "")] == [
        400,
        350,
        300,
        700,
        None,
    ]
    assert board_limit_w("A1000") is None  # a name that only begins like another
    assert [is_gpu(name) for name in ("gpu0", "gpu0/mig1", "GPU-5fd4f087", "gpus", "cpu0", "psu1", "")] == [True] * 3 + [False] * 4
    assert device_limit_w("A100", 0, 1.5) == 600
    assert device_limit_w("A100", 250, 1.5) == 250
    assert device_limit_w("unheard", 0, 1.5) == 3_000
    assert node_limit_w("H100", 8, 0, 0, 1.0) == 8 * 700 + 4_600 == 10_200
    assert node_limit_w("H100", 0, 0, 0, 1.0) == node_limit_w("", 8, 0, 0, 1.0) == 30_000
    assert node_limit_w("", 8, 0, 500, 1.0) == 8 * 500 + 4_600
    assert all(50 <= watts <= 1_500 for watts in BOARD_LIMIT_W.values())


@pytest.mark.parametrize("value", ["400", -1, float("inf"), True, None])
def test_a_limit_of_the_inventory_that_is_none_is_refused(tmp_path, value):
    path = tmp_path / "nodes.json"
    path.write_text(json.dumps({"nodes": {"n0": {"site": "w", "pool": "p", "max_power_w": value}}}))
    with pytest.raises(InputError, match=r"node 'n0': max_power_w"):
        load_inventory(path)
    path.write_text(json.dumps({"nodes": {"n0": {"site": "w", "pool": "p", "max_power_w": 900, "gpu_max_power_w": 250.5}}}))
    info = load_inventory(path).nodes["n0"]
    assert (info.max_power_w, info.gpu_max_power_w) == (900.0, 250.5)
