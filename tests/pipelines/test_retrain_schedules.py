"""The scheduled forms of watching and retraining that are shipped: each checked by the tool that will read it."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.cli import compose_config
from pipelines.retrain import retrain_config

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
CRONJOBS = EXAMPLES / "retrain-cronjob.yaml"


def commands():
    """Arguments of ``pipelines.retrain`` in every form, by file."""
    found = {}
    for name in ("retrain.crontab", "retrain.service", "retrain_dag.py"):
        text = (EXAMPLES / name).read_text()
        found[name] = [line.split() for line in re.findall(r"-m pipelines\.retrain((?: [\w.]+=[^\s\"]+)*)", text)]
    for document in yaml.safe_load_all(CRONJOBS.read_text()):
        (container,) = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        if "pipelines.retrain" in container["command"]:
            found[CRONJOBS.name] = [container["command"][3:]]
    return found


def test_every_form_gives_arguments_that_the_command_takes():
    found = commands()
    assert len(found) == 4
    for name, calls in found.items():
        assert calls, name
        for arguments in calls:
            given = [one.replace("${CREDENTIALS_DIRECTORY}", "/run/credentials") for one in arguments]
            assert retrain_config(compose_config("retrain", given)).train.source["files"] == [], "the lake is filled elsewhere"


def test_cron_lines_have_a_time_a_user_and_a_command():
    jobs = [line for line in (EXAMPLES / "retrain.crontab").read_text().splitlines() if line and line[0] in "0123456789*"]
    assert len(jobs) == 3
    for line in jobs:
        *times, user, command = line.split(None, 6)
        assert len(times) == 5
        for field, (low, high) in zip(times, ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7)), strict=True):
            assert field == "*" or low <= int(field) <= high
        assert user == "joulewise"
        assert command.startswith("cd /opt/joulewise && .venv/bin/python -m pipelines.")
        assert "%" not in command, "cron would end the command there"


def test_systemd_accepts_service_and_timer(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    service = (EXAMPLES / "retrain.service").read_text().replace("/opt/joulewise/.venv/bin/python", sys.executable)
    (tmp_path / "joulewise-retrain.service").write_text(service)
    (tmp_path / "joulewise-retrain.timer").write_text((EXAMPLES / "retrain.timer").read_text())

    def verify(name):
        return subprocess.run(["systemd-analyze", "verify", str(tmp_path / name)], capture_output=True, text=True, timeout=60, check=False)

    for name in ("joulewise-retrain.service", "joulewise-retrain.timer"):
        done = verify(name)
        assert done.returncode == 0, done.stderr
        assert name not in done.stderr
    (tmp_path / "joulewise-retrain.timer").write_text("[Timer]\nOnCalendar=never\n")
    assert "never" in verify("joulewise-retrain.timer").stderr, "the check can fail"


def test_the_service_has_no_rights_that_it_does_not_need():
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str
    unit.read(EXAMPLES / "retrain.service")
    service = unit["Service"]
    assert service["User"] not in ("", "root")
    assert (service["NoNewPrivileges"], service["ProtectSystem"]) == ("yes", "strict")
    assert service["ReadWritePaths"].split() == [service["WorkingDirectory"]]


def test_kubernetes_accepts_the_cronjobs_strictly():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    documents = list(yaml.safe_load_all(CRONJOBS.read_text()))
    assert [document["metadata"]["name"] for document in documents] == ["joulewise-watch", "joulewise-retrain"]
    for document in documents:
        for version in ("1.31", kubernetes_validate.latest_version()):
            kubernetes_validate.validate(document, version, strict=True)
        assert document["spec"]["concurrencyPolicy"] == "Forbid"
        pod = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert (pod["securityContext"]["runAsNonRoot"], pod["automountServiceAccountToken"]) == (True, False)
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    documents[0]["spec"]["shedule"] = "* * * * *"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(documents[0], "1.31", strict=True)


def test_the_dag_is_python_in_which_retraining_follows_watching():
    tree = ast.parse((EXAMPLES / "retrain_dag.py").read_text())
    compile(tree, "retrain_dag.py", "exec")
    chains = [(node.left.id, node.right.id) for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift)]
    assert chains == [("watch", "retrain")]


def test_airflow_imports_the_dag(tmp_path, monkeypatch):
    pytest.importorskip("airflow", reason="Airflow is not installed; it needs an environment of its own")
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    from airflow.models.dagbag import DagBag

    bag = DagBag(str(EXAMPLES / "retrain_dag.py"), include_examples=False)
    assert bag.import_errors == {}
    assert bag.dags["joulewise_retrain"].get_task("watch").downstream_task_ids == {"retrain"}
