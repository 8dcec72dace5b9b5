"""The registry in a real Postgres with artifacts in S3: the same life of a version as in sqlite, and errors that say what to do."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from postgres import PASSWORD, USER, free_port, postgres, postgres_database, s3  # noqa: F401

from registry.access import Access, variables
from registry.loading import VerificationError, load_forecaster
from registry.mlflow_client import open_client, resolve_uri
from registry.packaging import register
from registry.promotion import current_aliases, rollback, submit
from registry.tracking import open_tracking
from telemetry.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
# boto3 and moto warn of their own use of datetime and of sockets that the interpreter closes.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture
def server(postgres_database, s3, server_keys):  # noqa: F811
    return open_tracking(postgres_database(), s3.root)


def register_package(tracking, folder) -> str:
    with tracking.run("package") as run:
        run.log_metrics({"wql": 0.1})
        run.log_text("hello", "note.txt")
        return register(run, folder)


def test_a_version_lives_in_postgres_and_s3_as_in_sqlite(server, s3, make_package, tmp_path):  # noqa: F811
    client, name, state = server.client, "workload-forecaster", tmp_path / "state"
    first = register_package(server, make_package())
    assert submit(client, name, first, expected_champion=None, state_folder=state).action == "promoted"
    second = register_package(server, make_package())
    assert submit(client, name, second, expected_champion=first, state_folder=state).previous == first
    model, manifest = load_forecaster(name, tracking_uri=server.tracking_uri)
    assert manifest.gates_passed
    assert len(model.predict()) == 12
    assert rollback(client, name, reason="worse", state_folder=state).champion == first
    assert current_aliases(client, name)["champion"] == first
    assert {key.rsplit("/", 1)[-1] for key in s3.objects()} >= {"note.txt", "manifest.json", "card.md", "MLmodel"}
    assert not (tmp_path / "mlruns").exists()


def test_what_was_changed_in_the_bucket_is_refused(server, s3, make_package, tmp_path):  # noqa: F811
    import boto3

    version = register_package(server, make_package())
    submit(server.client, "workload-forecaster", version, expected_champion=None, state_folder=tmp_path)
    weights = next(key for key in s3.objects() if "/models/" in key and "/weights/" in key)
    boto3.client("s3", endpoint_url=s3.endpoint).put_object(Bucket="models", Key=weights, Body=b"other weights")
    with pytest.raises(VerificationError):
        load_forecaster("workload-forecaster", tracking_uri=server.tracking_uri)


def test_a_bucket_that_went_away_is_a_refusal_to_load(server, s3, make_package, tmp_path, monkeypatch):  # noqa: F811
    version = register_package(server, make_package())
    submit(server.client, "workload-forecaster", version, expected_champion=None, state_folder=tmp_path)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(VerificationError, match="cannot be read"):
        load_forecaster("workload-forecaster", tracking_uri=server.tracking_uri)


def test_six_first_starts_at_once_on_an_empty_database(postgres_database, s3):  # noqa: F811
    uri = postgres_database(empty=True)
    code = f"from registry.tracking import open_tracking; print(open_tracking({uri!r}, {s3.root!r}).experiment_id)"
    command = [sys.executable, "-W", "ignore", "-c", code]
    starts = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ, text=True) for _ in range(6)
    ]
    answers = [process.communicate(timeout=300) for process in starts]
    assert [process.returncode for process in starts] == [0] * 6, answers
    assert len({out for out, _ in answers}) == 1
    assert {err for _, err in answers} == {""}


def test_a_server_that_refuses_is_named_with_what_to_do():
    port = free_port()
    with pytest.raises(InputError, match=rf"127.0.0.1:{port}/runs.*start the server"):
        open_tracking(f"postgresql+psycopg2://keeper@127.0.0.1:{port}/runs", "s3://models/x")
    with pytest.raises(InputError, match=rf"127.0.0.1:{port}.*start it"):
        open_client(f"http://127.0.0.1:{port}")


def test_a_database_that_is_not_there(postgres):  # noqa: F811
    with pytest.raises(InputError, match=r'"absent" does not exist.*create the database'):
        open_client(postgres.uri("absent"))


def test_an_artifact_store_that_does_not_answer(postgres_database, s3, monkeypatch):  # noqa: F811
    with pytest.raises(InputError, match=r"s3://absent/x.*bucket does not exist.*s3_endpoint"):
        open_tracking(postgres_database(), "s3://absent/x")
    with pytest.raises(InputError, match="another URI that all machines reach"):
        open_tracking(postgres_database(), "mlartifacts")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match="does not answer"):
        open_tracking(postgres_database(), s3.root)


def test_a_wrong_password_is_said_without_it(postgres, tmp_path, caplog, monkeypatch):  # noqa: F811
    wrong = "n0t-the-w0rd"
    (tmp_path / "password").write_text(wrong + "\n")
    uri = f"postgresql+psycopg2://{USER}@127.0.0.1:{postgres.port}/postgres"
    found = variables(Access(password_file=str(tmp_path / "password")), uri)
    monkeypatch.setenv("PGPASSFILE", found["PGPASSFILE"])
    with caplog.at_level(logging.DEBUG), pytest.raises(InputError, match=r"authentication failed.*password_file") as caught:
        open_tracking(uri, "s3://models/x")
    told = f"{caught.value} {caught.value!r} {caplog.text} {caught.value.__cause__}"
    assert wrong not in told


def test_a_password_file_opens_the_database(postgres, postgres_database, monkeypatch):  # noqa: F811
    uri = postgres_database().partition("?")[0]
    monkeypatch.delenv("PGPASSFILE", raising=False)
    with pytest.raises(InputError, match="no password supplied"):
        open_client(uri)
    passfile = variables(Access(password_file=str(postgres.password_file)), uri)["PGPASSFILE"]
    assert stat.S_IMODE(Path(passfile).stat().st_mode) == 0o600
    monkeypatch.setenv("PGPASSFILE", passfile)
    assert open_client(uri).search_experiments()[0].name == "Default"


@pytest.mark.parametrize(
    "uri",
    [
        f"postgresql://keeper:{PASSWORD}@host/db",
        f"postgresql+psycopg2://host/db?user=keeper&password={PASSWORD}",
        f"https://keeper:{PASSWORD}@host",
    ],
)
def test_a_password_in_a_uri_is_refused_and_not_repeated(uri):
    with pytest.raises(InputError, match="password_file") as caught:
        resolve_uri(uri)
    assert PASSWORD not in str(caught.value)


def test_uris_are_made_definite():
    assert resolve_uri("postgresql://keeper@host/db") == "postgresql+psycopg2://keeper@host/db"
    assert resolve_uri("postgres://keeper@host/db") == "postgresql+psycopg2://keeper@host/db"
    assert resolve_uri("http://host:5000/") == "http://host:5000"
    with pytest.raises(InputError, match="postgresql"):
        resolve_uri("mysql://host/db")


def test_variables_of_the_edge(tmp_path):
    secret = tmp_path / "token"
    secret.write_text("t0ken\n")
    login = Access(username="ana", password_file=str(secret), s3_endpoint="http://store:9000", s3_credentials_file=str(secret))
    assert variables(login, "https://host") == {
        "MLFLOW_S3_ENDPOINT_URL": "http://store:9000",
        "AWS_SHARED_CREDENTIALS_FILE": str(secret),
        "MLFLOW_TRACKING_USERNAME": "ana",
        "MLFLOW_TRACKING_PASSWORD": "t0ken",
    }
    assert variables(Access(password_file=str(secret)), "https://host") == {"MLFLOW_TRACKING_TOKEN": "t0ken"}
    secret.write_text("a:b\\c\n")
    passfile = Path(variables(Access(password_file=str(secret)), "postgresql://ana@host/db")["PGPASSFILE"])
    assert passfile.read_text() == "*:*:*:*:a\\:b\\\\c\n"
    with pytest.raises(InputError, match=r"password_file .*absent"):
        variables(Access(password_file=str(tmp_path / "absent")), "https://host")
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="is empty"):
        variables(Access(password_file=str(tmp_path / "empty")), "https://host")


def test_the_passfile_ends_with_its_process(tmp_path):
    secret = tmp_path / "password"
    secret.write_text(PASSWORD)
    code = (
        "import os, sys; from registry.access import Access, variables; "
        f"print(variables(Access(password_file={str(secret)!r}), 'postgresql://a@b/c')['PGPASSFILE'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert not Path(done.stdout.strip()).exists()
