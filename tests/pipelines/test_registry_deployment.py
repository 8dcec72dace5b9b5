"""The shipped forms of a shared registry: valid, pinned, without a secret, and with arguments that the commands take."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pipelines.cli import build, compose_config
from registry.access import Access
from registry.mlflow_client import resolve_uri
from registry.retention import Retention

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"


def test_the_cron_job_of_pruning_is_valid_and_its_arguments_compose():
    validate = pytest.importorskip("kubernetes_validate")
    document = yaml.safe_load((EXAMPLES / "prune-cronjob.yaml").read_text())
    validate.validate(document, "1.31", strict=True)
    container = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    python, module, name, *overrides = container["command"]
    assert (python, module, name) == ("python", "-m", "pipelines.prune")
    config = compose_config("prune", overrides)
    access = build(Access, config.registry.access, "registry.access")
    mounts = tuple(mount["mountPath"] for mount in container["volumeMounts"])
    assert all(path.startswith(mounts) for path in (access.password_file, access.s3_credentials_file, access.state_folder))
    assert resolve_uri(config.registry.tracking_uri).startswith("postgresql+psycopg2://joulewise@")
    assert build(Retention, config.rules, "rules") == Retention()
    assert config.apply is True


def test_the_compose_file_pins_its_images_and_takes_secrets_from_files():
    text = (EXAMPLES / "mlflow-compose.yaml").read_text()
    document = yaml.safe_load(text)
    for name, service in document["services"].items():
        assert re.search(r":[\w.-]*\d", service["image"]), f"{name} has no pinned image"
        assert set(service.get("secrets", ())) <= set(document["secrets"])
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|PASSFILE", key):
                assert str(value).startswith("/"), f"{name}: {key} is no file"
        for dependency in service.get("depends_on", ()):
            assert dependency in document["services"]
    assert all(set(secret) == {"file"} for secret in document["secrets"].values())
    resolve_uri(re.search(r"--backend-store-uri (\S+)", text).group(1))
