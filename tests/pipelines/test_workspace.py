"""The workspace keeps the last good state whatever happens while a stage is written."""

from __future__ import annotations

import pytest

from pipelines.workspace import Workspace, fingerprint, read_json, write_json


def write_until(workspace: Workspace, stage: str, error: BaseException) -> None:
    with workspace.writing(stage, "second") as out:
        workspace.scratch(stage).mkdir(parents=True)
        (out / "value.txt").write_text("half")
        raise error


def test_a_failing_stage_leaves_the_last_good_output(tmp_path):
    workspace = Workspace(tmp_path)
    with workspace.writing("features", "first") as out:
        (out / "value.txt").write_text("good")
    with pytest.raises(OSError, match="No space left"):
        write_until(workspace, "features", OSError(28, "No space left on device"))
    assert (workspace.folder("features") / "value.txt").read_text() == "good"
    assert workspace.done("features", "first")
    assert not workspace.done("features", "second")


def test_scratch_survives_a_failure_and_goes_when_the_stage_is_done(tmp_path):
    workspace = Workspace(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_until(workspace, "agent", KeyboardInterrupt())
    assert workspace.scratch("agent").exists()
    with workspace.writing("agent", "key"):
        pass
    assert not workspace.scratch("agent").exists()


def test_an_unfinished_run_of_the_same_configuration_is_resumed(tmp_path):
    workspace = Workspace(tmp_path)
    assert not workspace.begin("a", {}, resume=True)
    assert workspace.begin("a", {}, resume=True)
    assert not workspace.begin("a", {}, resume=False)
    assert not workspace.begin("b", {}, resume=True)
    workspace.finish()
    assert not workspace.begin("b", {}, resume=True)


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"value": 1})
    with pytest.raises(TypeError):
        write_json(path, {"value": object()})
    assert read_json(path) == {"value": 1}


def test_fingerprint_ignores_key_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
