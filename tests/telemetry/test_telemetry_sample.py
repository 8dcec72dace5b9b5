"""The embedded sample: the quality report finds exactly the flaws that its generator planted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cli import compose_config
from pipelines.ingest import ingest
from telemetry.series import cut_series

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample"


@pytest.fixture(scope="module")
def manifest():
    return json.loads((SAMPLE / "manifest.json").read_text())


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    source = compose_config("ingest").source
    for file in source.files:
        file.path = str(SAMPLE.parents[1] / file.path)
    source.inventory = str(SAMPLE / "manifest.json")
    return ingest(source, {"root": str(tmp_path_factory.mktemp("sample") / "lake")})


def test_every_planted_flaw_is_counted_and_no_other(manifest, ingested):
    _, result = ingested
    planted = {file: {flaw: n for flaw, n in flaws.items() if n} for file, flaws in manifest["planted"].items()}
    assert {file: result.quality.total(file) for file in manifest["files"]} == {file: planted.get(file, {}) for file in manifest["files"]}
    assert sum(sum(flaws.values()) for flaws in planted.values()) > 500


def test_inventory_knows_every_node_and_power_is_plausible(manifest, ingested):
    lake, _ = ingested
    nodes = lake.query(
        "SELECT node, any_value(pool) AS pool, count(DISTINCT device) AS devices FROM samples WHERE node <> '' GROUP BY node"
    )
    assert dict(zip(nodes["node"], nodes["pool"], strict=True)) == {name: info["pool"] for name, info in manifest["nodes"].items()}
    watts = lake.query("SELECT min(value) AS low, max(value) AS high FROM samples WHERE metric = 'hw.power' AND device <> ''")
    assert watts["low"][0] > 0
    assert watts["high"][0] < 400


def test_energy_counters_agree_with_power(ingested):
    """Two independent exports of the same GPU: the rate of its energy counter is its power, but for lost scrapes and restarts."""
    lake, _ = ingested
    joined = lake.query(
        "SELECT avg(abs(e.value - p.value)) / avg(p.value) AS error, count(*) AS n "
        "FROM samples e JOIN samples p USING (time, node, device) WHERE e.metric = 'hw.energy.rate' AND p.metric = 'hw.power'"
    )
    assert joined["n"][0] > 10_000
    assert joined["error"][0] < 0.02


def test_series_of_all_targets_are_whole(manifest, ingested):
    lake, _ = ingested
    samples, jobs = lake.table("samples"), lake.table("jobs")
    result = cut_series(["workload", "power"], samples, jobs)
    names = set(result.frame["unique_id"])
    pools = {info["pool"] for info in manifest["nodes"].values()}
    assert {f"gpu_demand/{pool}" for pool in pools} <= names
    assert {f"power/node/{node}" for node in manifest["nodes"]} <= names
    assert {"power/site/west", "power/site/east", "request_rate/chat"} <= names
    assert result.counts["rows"].min() > 5_900
    wide = result.frame.pivot_table(index="ds", columns="unique_id", values="y").loc["2026-01-06":]
    for pool in pools:
        own = [f"power/node/{node}" for node, info in manifest["nodes"].items() if info["pool"] == pool]
        assert (wide[own].sum(axis=1) - wide[f"power/pool/{pool}"]).abs().max() < 1e-6
