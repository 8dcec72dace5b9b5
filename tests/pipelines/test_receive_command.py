"""``python -m pipelines.receive``: a stop keeps all, a kill keeps what was acknowledged, and what must not listen does not."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from pipelines import receive as command
from pipelines.cli import CONF_DIR, build, compose_config
from telemetry.errors import InputError
from telemetry.spool import Spool

REPOSITORY = Path(__file__).resolve().parents[2]


def a_request(number: int) -> dict:
    point = {"timeUnixNano": str(int(time.time() * 1e9)), "asInt": str(number)}
    return {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "hw.power", "unit": "W", "gauge": {"dataPoints": [point]}}]}]}]}


@contextmanager
def running(*overrides: str):
    """The command as a process, and its address."""
    arguments = [sys.executable, "-m", "pipelines.receive", "port=0", *overrides]
    with subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            told = process.stdout.readline()
            assert told.startswith("receiving on http://127.0.0.1:"), process.stderr.read()
            yield process, told.split()[2]
        finally:
            if process.poll() is None:
                process.kill()


def values(root: Path) -> set[str]:
    """What the files hold, open or finished."""
    lines = [line for path in root.glob(".open-*") for line in path.read_bytes().splitlines()]
    lines += [line for _, path in Spool(root).files() for line in gzip.decompress(path.read_bytes()).splitlines()]
    return {json.loads(line)["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["gauge"]["dataPoints"][0]["asInt"] for line in lines}


def test_a_stop_and_a_kill_lose_nothing_that_was_acknowledged(tmp_path):
    out = tmp_path / "otlp"
    with running(f"out={out}") as (process, url):
        assert [requests.post(url, json=a_request(k), timeout=10).status_code for k in range(3)] == [200] * 3
        process.send_signal(signal.SIGTERM)
        printed, errors = process.communicate(timeout=20)
        assert process.returncode == 0, errors
        assert "3 points of 3 requests stored, 0 rejected; 0 refused" in printed
    with running(f"out={out}") as (process, url):
        assert [requests.post(url, json=a_request(k), timeout=10).status_code for k in (3, 4)] == [200] * 2
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    assert values(out) == {"0", "1", "2", "3", "4"}
    command_line = [sys.executable, "-m", "pipelines.receive", f"out={out}", "finish=true"]
    ended = subprocess.run(command_line, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert Spool(out).files()
    assert values(out) == {"0", "1", "2", "3", "4"}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["host=0.0.0.0"], "without a token"),
        (["host=metrics.example"], "without a token"),
        (["port=70000"], "port"),
        (["store.window_s=0"], "window_s"),
        (["limits.max_concurrent=0"], "max_concurrent"),
    ],
)
def test_wrong_values_are_named(overrides, told):
    with pytest.raises(InputError, match=told):
        build(command.ReceiveConfig, compose_config("receive", overrides), "receive")


def test_a_port_that_is_taken_is_named(tmp_path):
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = command.ReceiveConfig(str(tmp_path), port=taken.getsockname()[1])
        with pytest.raises(InputError, match=r"cannot listen on 127\.0\.0\.1"):
            command.receive(config, threading.Event())


def test_defaults_in_config_and_code_agree_and_help_names_every_key():
    config = build(command.ReceiveConfig, compose_config("receive"), "receive")
    assert config == command.ReceiveConfig(out="outputs/spool/otlp")
    help_text = (CONF_DIR / "receive.yaml").read_text().partition("header:")[2]
    for key in ("out", "host, port", "token_file", "finish", *(f"store.{name}" for name in vars(config.store)), "limits"):
        assert f"\n      {key} " in help_text
