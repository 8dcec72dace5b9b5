"""Pruning: what stays and why, what goes with all its files, and that neither a race nor a kill costs a version in use."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from mlflow.entities import ViewType

sys.path.insert(0, str(Path(__file__).parent))

from postgres import postgres, postgres_database, s3  # noqa: F401

from registry.alias_moves import read_audit
from registry.loading import load_forecaster
from registry.packaging import register
from registry.promotion import current_aliases, promote, submit
from registry.pruning import measured, prune
from registry.retention import DAY_MS, Registry, Retention, plan
from registry.tracking import open_tracking
from telemetry.errors import InputError

NAME = "workload-forecaster"
RULES = Retention(young_days=30, newest_versions=1, last_champions=2)
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::ResourceWarning")]


class World:
    """A registry with six versions, of which 1, 2 and 3 were champions in this order and 4 is the challenger."""

    def __init__(self, tracking, folder: Path, state: Path | None) -> None:
        self.tracking, self.client, self.state = tracking, tracking.client, state
        champion = None
        for number in range(1, 7):
            with tracking.run(f"train {number}") as parent, parent.child("package") as run:
                version = register(run, folder)
                assert version == str(number)
            if number <= 3:
                submit(self.client, NAME, version, expected_champion=champion, state_folder=state)
                champion = version
        self.client.set_registered_model_alias(NAME, "challenger", "4")
        with tracking.run("nothing came of it") as run:
            run.log_text("x" * 2048, "note.txt")
        self.later = self.client.get_run(run.run_id).info.start_time + 40 * DAY_MS

    def registry(self, copies=None) -> Registry:
        records = read_audit(self.client, self.state)
        return Registry(self.client, (self.tracking.experiment_id,), (NAME,), records, copies or {})

    def prune(self, registry=None, rules=RULES, step=lambda _: None):
        registry = registry or self.registry()
        return list(prune(registry, plan(registry, rules, self.later), rules, self.later, self.state, step))

    def versions(self) -> set[str]:
        return {str(version.version) for version in self.client.search_model_versions(f"name='{NAME}'")}

    def runs(self) -> set[str]:
        return {run.info.run_name for run in self.client.search_runs([self.tracking.experiment_id], "", ViewType.ALL)}

    def models(self) -> int:
        return len(self.client.search_logged_models([self.tracking.experiment_id]))


@pytest.fixture
def world(tracking, make_package):
    return World(tracking, make_package(), None)


def stays(items) -> dict[str, str]:
    return {item.version: item.why for item in items if item.kind == "version"}


def test_every_reason_to_stay(world):
    tags = world.client.get_model_version(NAME, "5").tags
    registry = world.registry(copies={"of another": "elsewhere"})
    assert stays(plan(registry, RULES, world.later)) == {
        "6": "one of the newest 1",
        "5": "",
        "4": "alias challenger",
        "3": "alias champion; one of the last 2 champions",
        "2": "alias previous; one of the last 2 champions",
        "1": "",
    }
    copied = stays(plan(world.registry({tags["package.manifest_sha256"]: "live/workload"}), RULES, world.later))
    assert copied["1"] == copied["5"] == "last good copy in live/workload"
    wider = stays(plan(registry, Retention(30, 1, last_champions=3), world.later))
    assert wider["1"] == "one of the last 3 champions"
    young = plan(registry, RULES, world.later - 39 * DAY_MS)
    assert all("1.0 days old" in item.why for item in young)


def test_what_goes_goes_whole_and_the_rest_is_untouched(world, tmp_path):
    before = {path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()}
    items = [measured(world.registry(), item) for item in plan(world.registry(), RULES, world.later)]
    assert sum(item.size for item in items if item.label.startswith("nothing came")) == 2048
    done = world.prune()
    assert all(one.deleted for one in done)
    assert world.versions() == {"2", "3", "4", "6"}
    assert world.runs() == {"package", "train 2", "train 3", "train 4", "train 6"}
    assert world.models() == 4
    after = {path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()}
    assert after < before
    assert sum(path.name == "MLmodel" for path in after) == 4
    assert not [path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_dir() and not any(path.iterdir())]
    assert load_forecaster(NAME, tracking_uri=world.tracking.tracking_uri)[1].gates_passed
    assert world.prune() == [], "a second one has nothing to do"


def test_what_came_into_use_between_plan_and_deletion_stays(world):
    promoted = []

    def promoting(_: str) -> None:
        if not promoted:  # version 5 is being deleted, under the lock: 1 comes into use before its turn
            promoted.append(world.client.set_registered_model_alias(NAME, "kept", "1"))

    done = {one.item.version: one for one in world.prune(step=promoting) if one.item.kind == "version"}
    assert done["5"].deleted
    assert not done["1"].deleted
    assert done["1"].reason == "alias kept"
    assert "1" in world.versions()
    assert "train 1" in world.runs(), "what it came from stays as well"


def test_a_promotion_between_plan_and_deletion(world):
    registry = world.registry()
    items = plan(registry, RULES, world.later)
    promote(world.client, NAME, "5", expected_champion="3")
    list(prune(registry, items, RULES, world.later, None))
    assert current_aliases(world.client, NAME)["champion"] == "5"
    assert load_forecaster(NAME, tracking_uri=world.tracking.tracking_uri)[1].gates_passed


class Killed(BaseException):
    pass


def test_killed_before_any_step_the_next_one_ends_the_work(world, tmp_path):
    kills = 0
    for _ in range(60):
        steps = [kills % 6]

        def step(word: str, steps=steps) -> None:
            if not steps[0]:
                raise Killed(word)
            steps[0] -= 1

        try:
            world.prune(step=step)
            break
        except Killed:
            kills += 1
        assert load_forecaster(NAME, tracking_uri=world.tracking.tracking_uri)[1].gates_passed
    assert kills >= 6
    assert world.prune() == []
    assert world.versions() == {"2", "3", "4", "6"}
    assert world.models() == 4
    assert sum(path.name == "MLmodel" for path in (tmp_path / "mlartifacts").rglob("*")) == 4
    assert world.runs() == {"package", "train 2", "train 3", "train 4", "train 6"}


def test_files_that_lie_elsewhere_are_left(world, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.txt").write_text("mine")
    store = world.client._tracking_client.store
    run = next(run for run in world.client.search_runs([world.tracking.experiment_id]) if run.info.run_name.startswith("nothing"))
    from mlflow.store.tracking.dbmodels.models import SqlRun

    with store.ManagedSessionMaker(read_only=False) as session:
        session.query(SqlRun).filter(SqlRun.run_uuid == run.info.run_id).update({"artifact_uri": elsewhere.as_uri()})
    kept = [one for one in world.prune() if not one.deleted]
    assert [one.reason for one in kept] == [f"its files lie outside the experiment: {elsewhere.as_uri()}"]
    assert (elsewhere / "precious.txt").exists()


def test_other_peoples_models_keep_what_they_came_from(world):
    version = world.client.get_model_version(NAME, "1")
    world.client.create_registered_model("someone-elses")
    world.client.create_model_version("someone-elses", version.source, run_id=version.run_id)
    world.prune()
    assert {"1", "5"} & world.versions() == set()
    assert "train 1" in world.runs()
    assert world.models() == 5


@pytest.mark.parametrize("rules", [{"young_days": 0}, {"newest_versions": 0}, {"last_champions": 1}])
def test_rules_that_would_leave_too_little_are_refused(rules):
    with pytest.raises(InputError, match=next(iter(rules))):
        Retention(**rules)


def test_postgres_and_s3(postgres_database, s3, make_package, server_keys, tmp_path):  # noqa: F811
    world = World(open_tracking(postgres_database(), s3.root), make_package(), tmp_path / "state")
    world.prune()
    assert world.versions() == {"2", "3", "4", "6"}
    assert world.runs() == {"package", "train 2", "train 3", "train 4", "train 6"}
    assert sum(key.endswith("MLmodel") for key in s3.objects()) == 4
    assert load_forecaster(NAME, tracking_uri=world.tracking.tracking_uri)[1].gates_passed


def test_the_command_lists_and_deletes_only_when_told(world, tmp_path, monkeypatch, capsys):
    from pipelines import prune as command

    live = tmp_path / "live" / "workload"
    live.mkdir(parents=True)
    later = "2199-01-01"
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        fixed = [
            f"registry.tracking_uri={world.tracking.tracking_uri}",
            "rules.newest_versions=1",
            "rules.last_champions=2",
            f"now={later}",
        ]
        monkeypatch.setattr(sys, "argv", ["prune", *fixed, f"live_states=[{tmp_path}/live]", *arguments])
        with pytest.raises(SystemExit) as ended:
            command.main()
        return ended.value.code, capsys.readouterr()

    status, told = call()
    assert status == 0
    assert "alias challenger" in told.out
    assert "to go: 2 versions, 3 families of runs, 2 logged models" in told.out
    assert len(world.versions()) == 6
    (live / "champion.json").write_text("{")
    assert call("apply=true")[0] == 2, "a copy that cannot be read may serve anything"
    assert len(world.versions()) == 6
    (live / "champion.json").write_text(json.dumps({"version": "9", "manifest_sha256": "ab"}))
    status, told = call("apply=true")
    assert status == 0
    assert "deleted: 2 versions, 3 families of runs, 2 logged models" in told.out
    assert world.versions() == {"2", "3", "4", "6"}
