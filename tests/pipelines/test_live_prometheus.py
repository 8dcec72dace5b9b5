"""A real Prometheus, scraping a small DCGM exporter once a second: collected, spooled, ingested, and the watts are right."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
import requests

from pipelines.collect import CollectConfig, collect_once, sole_writer
from telemetry.collectors.http import HttpConfig
from telemetry.collectors.prometheus import PrometheusCollector
from telemetry.errors import InputError
from telemetry.ingest import SourceSpec, ingest_sources
from telemetry.lake import Lake

SERVER, NODE_EXPORTER = "prometheus", "prometheus-node-exporter"
BOUND_S = 60.0
SCRAPES = 6


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what: str, ready) -> None:
    end = time.monotonic() + BOUND_S
    while time.monotonic() < end:
        try:
            if ready():
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.2)
    pytest.fail(f"{what} did not come within {BOUND_S} s")


@contextmanager
def dcgm():
    """An exporter of two boards: 100 W more energy at each scrape, a second apart; gives its port."""
    scrapes = [0]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            scrapes[0] += 1
            lines = []
            for gpu in "01":
                labels = f'{{gpu="{gpu}",UUID="GPU-{gpu}",Hostname="n0",pod="p",namespace="ns"}}'
                lines += [
                    f"DCGM_FI_DEV_POWER_USAGE{labels} {100 + int(gpu)}",
                    f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{labels} {100_000 * scrapes[0]}",
                    f"DCGM_FI_DEV_XID_ERRORS{labels} 0",
                ]
            body = ("\n".join(lines) + "\n").encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def process(*command: str):
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as started:
        try:
            yield
        finally:
            started.terminate()
            started.wait(20)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Address of a Prometheus that has scraped some seconds."""
    if shutil.which(SERVER) is None:
        pytest.skip(f"no {SERVER} on this machine")
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    address = f"http://127.0.0.1:{port}"
    with dcgm() as exporter:
        jobs = [{"job_name": "dcgm", "static_configs": [{"targets": [f"127.0.0.1:{exporter}"]}]}]
        (folder / "prometheus.yml").write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
        command = (
            SERVER, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"
        )  # fmt: skip
        with process(*command):
            count = f"min(count_over_time(DCGM_FI_DEV_POWER_USAGE[{BOUND_S:.0f}s])) >= {SCRAPES}"

            def scraped() -> bool:
                answer = requests.post(f"{address}/api/v1/query", data={"query": count}, timeout=5)
                return answer.ok and bool(answer.json()["data"]["result"])

            wait_for("the first scrapes", scraped)
            yield address


def test_live_watts_reach_the_lake(url, tmp_path):
    collector = PrometheusCollector(url, match='job="dcgm"', step_s=1)
    config = CollectConfig("-1min", "now", str(tmp_path / "dcgm"), lookback_s=2.0, settle_s=1.0)
    with sole_writer(config.out):
        assert collect_once(collector, config, pd.Timestamp.now("UTC"))
        time.sleep(3.0)
        assert collect_once(collector, config, pd.Timestamp.now("UTC"))
    lake = Lake(tmp_path / "lake")
    result = ingest_sources(lake, [SourceSpec(tmp_path / "dcgm", "prometheus")])
    frame = lake.table("samples")
    assert set(result.quality.total()) <= {"scrape_gap", "scrape_gap_samples"}
    assert not frame.duplicated(["time", "metric", "node", "device"]).any()
    assert set(frame["node"]) == {"n0"}
    assert set(frame["pod_uid"]) == {"p"}
    for gpu in "01":
        own = frame[frame["device"] == f"gpu{gpu}"]
        watts = own[own["metric"] == "hw.power"]["value"]
        rate = own[own["metric"] == "hw.energy.rate"]["value"]
        assert set(watts) == {100.0 + int(gpu)}
        assert len(watts) >= SCRAPES
        assert rate.median() == pytest.approx(100.0, rel=0.02)
        assert len(rate) >= SCRAPES - 1


def test_what_the_server_refuses_is_said_in_its_words(url):
    with pytest.raises(InputError, match=r"status 400.*invalid regexp|status 400.*parse error|status 400.*error parsing regexp"):
        PrometheusCollector(url, match='job=~"(a"', http=HttpConfig(attempts=1)).fetch(
            pd.Timestamp("2026-01-05", tz="UTC"), pd.Timestamp("2026-01-06", tz="UTC")
        )


def test_the_servers_limit_of_points_is_kept(url):
    """A week by the second is 604,800 points a series; the server refuses more than 11,000 at once."""
    now = pd.Timestamp.now("UTC").floor("s")
    data = PrometheusCollector(url, step_s=1).fetch(now - pd.Timedelta("7d"), now)
    times = [float(t) for t, _ in json.loads(data)["data"]["result"][0]["values"]]
    assert len(times) >= SCRAPES
    assert sorted(set(times)) == times


def test_an_exporter_of_this_machine_is_named_as_documented(url, tmp_path):
    """node_exporter's own names of what it would export, where it is installed; what the sensors say depends on the machine."""
    if shutil.which(NODE_EXPORTER) is None:
        pytest.skip(f"no {NODE_EXPORTER} on this machine")
    port = free_port()
    with process(NODE_EXPORTER, f"--web.listen-address=127.0.0.1:{port}", "--collector.disable-defaults", "--collector.rapl",
                 "--collector.hwmon", "--collector.cpu"):  # fmt: skip
        wait_for("node_exporter", lambda: requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).ok)
        text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text
    assert set(re.findall(r'^node_scrape_collector_success{collector="(\w+)"}', text, re.MULTILINE)) == {"rapl", "hwmon", "cpu"}
    assert 'node_cpu_seconds_total{cpu="0",mode="idle"}' in text
