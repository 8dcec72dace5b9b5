"""Aliases move one promotion at a time, survive a kill at any point, and go back on demand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from registry import audit, promotion
from registry.loading import load_forecaster
from registry.promotion import (
    ChampionChangedError,
    PromotionError,
    audit_path,
    champion_version,
    current_aliases,
    history,
    promote,
    rollback,
    stage_challenger,
    submit,
)
from telemetry.errors import InputError

NAME = "workload-forecaster"
ROOT = Path(__file__).resolve().parents[2]
LOSING = {"naive": "persistence", "skill": 0.0, "low": -0.1, "high": 0.1, "windows": 40}


def test_first_run_promotes_second_becomes_challenger_until_it_wins(tracking, make_version):
    client = tracking.client
    first = make_version()
    assert champion_version(client, NAME) is None
    assert submit(client, NAME, first, expected_champion=None).action == "promoted"
    assert current_aliases(client, NAME) == {"champion": first}

    loser = make_version(evidence=LOSING)
    outcome = submit(client, NAME, loser, expected_champion=first)
    assert (outcome.action, outcome.champion) == ("challenger", first)
    assert "skill_over_naive refused" in outcome.reason
    assert current_aliases(client, NAME) == {"champion": first, "challenger": loser}

    winner = make_version()
    assert submit(client, NAME, winner, expected_champion=first, reason="won").action == "promoted"
    assert current_aliases(client, NAME) == {"champion": winner, "previous": first}
    assert [entry["action"] for entry in history(client, NAME)] == ["challenge", "promote", "challenge", "challenge", "promote"]


def test_a_champion_that_changed_since_the_gates_ran_is_not_replaced(tracking, make_version):
    first, second = make_version(), make_version()
    promote(tracking.client, NAME, first, expected_champion=None)
    with pytest.raises(ChampionChangedError, match="judge it again"):
        promote(tracking.client, NAME, second, expected_champion=None)
    assert current_aliases(tracking.client, NAME) == {"champion": first}


def test_what_cannot_be_promoted(tracking, make_version):
    first, refused = make_version(), make_version(evidence=LOSING)
    promote(tracking.client, NAME, first, expected_champion=None)
    with pytest.raises(PromotionError, match="gates refused it"):
        promote(tracking.client, NAME, refused, expected_champion=first)
    with pytest.raises(PromotionError, match="champion already"):
        promote(tracking.client, NAME, first, expected_champion=first)
    with pytest.raises(PromotionError, match="99"):
        promote(tracking.client, NAME, "99", expected_champion=first)
    assert current_aliases(tracking.client, NAME) == {"champion": first}
    assert [entry["action"] for entry in history(tracking.client)] == ["promote"]


def test_rollback_restores_previous_and_finds_what_came_before(tracking, make_version):
    client = tracking.client
    versions = [make_version() for _ in range(3)]
    for before, version in zip([None, *versions], versions, strict=False):
        promote(client, NAME, version, expected_champion=before)
    rollback(client, NAME, reason="late jobs")
    assert current_aliases(client, NAME) == {"champion": versions[1], "previous": versions[0]}
    assert client.get_model_version(NAME, versions[2]).tags["rolled_back"] == "late jobs"
    rollback(client, NAME, reason="still late")
    assert current_aliases(client, NAME) == {"champion": versions[0]}
    with pytest.raises(PromotionError, match="no previous version"):
        rollback(client, NAME, reason="again")


RACER = """
import sys
from registry.mlflow_client import open_client
from registry.promotion import promote, PromotionError
client = open_client(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    promote(client, "workload-forecaster", sys.argv[2], expected_champion=sys.argv[3])
    print("won")
except PromotionError as error:
    print("lost", type(error).__name__)
"""


def test_racing_promotions_have_one_winner_and_lose_no_alias(tracking, make_version):
    first, *rest = [make_version() for _ in range(3)]
    promote(tracking.client, NAME, first, expected_champion=None)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT, "env": os.environ}
    racers = [subprocess.Popen([sys.executable, "-c", RACER, tracking.tracking_uri, version, first], **pipes) for version in rest]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    answers = [racer.communicate(timeout=120) for racer in racers]
    assert sorted(out.strip() for out, _ in answers) == ["lost ChampionChangedError", "won"], answers
    winner = next(version for version, (out, _) in zip(rest, answers, strict=True) if out.startswith("won"))
    assert current_aliases(tracking.client, NAME) == {"champion": winner, "previous": first}
    assert len(history(tracking.client)) == 2


class KilledError(BaseException):
    """Stands for SIGKILL: nothing in the code catches it."""


class Dying:
    """A client that dies at its n-th change of an alias, before or after it took effect."""

    def __init__(self, client, survive: int, *, after: bool) -> None:
        self._client, self._left, self._after = client, survive, after

    def __getattr__(self, name):
        return getattr(self._client, name)

    def _count(self, call, *arguments):
        if self._left == 0 and not self._after:
            raise KilledError
        call(*arguments)
        if self._left == 0:
            raise KilledError
        self._left -= 1

    def set_registered_model_alias(self, *arguments):
        self._count(self._client.set_registered_model_alias, *arguments)

    def delete_registered_model_alias(self, *arguments):
        self._count(self._client.delete_registered_model_alias, *arguments)


@pytest.mark.parametrize("after", [False, True])
def test_killed_between_alias_moves_leaves_a_usable_champion_and_the_next_finishes(tracking, make_version, after):
    client = tracking.client
    versions = [make_version() for _ in range(4)]
    promote(client, NAME, versions[0], expected_champion=None)
    expected = versions[0]
    for survive, version in enumerate(versions[1:]):
        stage_challenger(client, NAME, version)
        with pytest.raises(KilledError):
            promote(Dying(client, survive, after=after), NAME, version, expected_champion=expected)
        aliases = current_aliases(client, NAME)
        assert aliases["champion"] in (expected, version)
        load_forecaster(NAME, tracking_uri=tracking.tracking_uri)
        with pytest.raises(PromotionError):
            promote(client, NAME, "99", expected_champion=version)
        assert current_aliases(client, NAME) == {"champion": version, "previous": expected}
        expected = version


def test_an_interrupted_change_is_dropped_when_someone_else_moved_the_champion(tracking, make_version):
    client = tracking.client
    first, second, third = (make_version() for _ in range(3))
    promote(client, NAME, first, expected_champion=None)
    with pytest.raises(KilledError):
        promote(Dying(client, 0, after=True), NAME, second, expected_champion=first)
    client.set_registered_model_alias(NAME, "champion", third)
    stage_challenger(client, NAME, second)
    assert current_aliases(client, NAME)["champion"] == third
    assert [entry["phase"] for entry in audit.read(audit_path(client))][-3:] == ["abandoned", "intent", "done"]


def test_killed_really_while_it_holds_the_lock(tracking, make_version):
    first, second = make_version(), make_version()
    promote(tracking.client, NAME, first, expected_champion=None)
    code = (
        "import os, signal, sys\n"
        "from registry.mlflow_client import open_client\n"
        "from registry import alias_moves, promotion\n"
        "alias_moves._apply = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "promotion.promote(open_client(sys.argv[1]), 'workload-forecaster', sys.argv[2], expected_champion=sys.argv[3])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tracking.tracking_uri, second, first], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == -9
    load_forecaster(NAME, tracking_uri=tracking.tracking_uri)
    third = make_version()
    promote(tracking.client, NAME, third, expected_champion=second)
    assert current_aliases(tracking.client, NAME) == {"champion": third, "previous": second}


def test_audit_chain_shows_changed_removed_and_reordered_records(tmp_path):
    path = tmp_path / "audit.jsonl"
    for number in range(4):
        audit.append(path, {"number": number})
    lines = path.read_text().splitlines(keepends=True)
    assert [entry["number"] for entry in audit.read(path)] == [0, 1, 2, 3]
    changed = [lines[0], lines[1].replace('"number": 1', '"number": 9'), *lines[2:]]
    for bad, where in ((changed, 2), (lines[:1] + lines[2:], 2), (lines[1:], 1), ([lines[0], lines[2], lines[1], lines[3]], 2)):
        path.write_text("".join(bad))
        with pytest.raises(InputError, match=f"line {where}"):
            audit.read(path)
        with pytest.raises(InputError):
            audit.append(path, {"number": 4})


def test_audit_goes_on_after_a_writer_was_killed_in_a_line(tmp_path):
    path = tmp_path / "audit.jsonl"
    audit.append(path, {"number": 0})
    with path.open("a") as handle:
        handle.write(json.dumps({"number": 1})[:7])
    assert len(audit.read(path)) == 1
    audit.append(path, {"number": 2})
    assert [entry["number"] for entry in audit.read(path)] == [0, 2]


def test_a_server_needs_a_folder_for_lock_and_record(tmp_path):
    class Server:
        tracking_uri = "http://mlflow:5000"

    with pytest.raises(InputError, match="state_folder"):
        promotion.audit_path(Server())
    assert promotion.audit_path(Server(), tmp_path) == tmp_path / "promotions.audit.jsonl"
