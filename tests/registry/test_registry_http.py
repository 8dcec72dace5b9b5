"""The registry behind a real ``mlflow server``, which keeps runs in Postgres and passes artifacts on to S3."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from postgres import free_port, postgres, postgres_database, s3  # noqa: F401

from registry.loading import load_forecaster
from registry.packaging import register
from registry.promotion import submit
from registry.tracking import open_tracking
from telemetry.errors import InputError

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::ResourceWarning")]


def test_the_client_of_a_server_needs_no_database_and_no_bucket(postgres_database, s3, make_package, server_keys, tmp_path, monkeypatch):  # noqa: F811
    port, log = free_port(), tmp_path / "server.log"
    program = shutil.which("mlflow", path=str(Path(sys.executable).parent)) or pytest.skip("no mlflow program beside this Python")
    command = [program, "server", "--backend-store-uri", postgres_database(), "--artifacts-destination", s3.root, "--workers", "1"]
    with log.open("w") as out:
        process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=out, stderr=out, start_new_session=True)
    for name in ("MLFLOW_S3_ENDPOINT_URL", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name)  # the server's own, from here on
    try:
        tracking = _opened(f"http://127.0.0.1:{port}", process, log)
        with tracking.run("package") as run:
            version = register(run, make_package())
        assert submit(tracking.client, "workload-forecaster", version, expected_champion=None, state_folder=tmp_path).action == "promoted"
        _, manifest = load_forecaster("workload-forecaster", tracking_uri=tracking.tracking_uri)
        assert manifest.gates_passed
        assert any(key.endswith("manifest.json") for key in s3.objects())
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=60)


def _opened(uri, process, log):
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            return open_tracking(uri)
        except InputError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())
