"""What is promoted is whole, passed and free of code, or it does not load."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from registry.gates import NoPickle
from registry.keys import signing_trust, trust_folder
from registry.loading import VerificationError, load_forecaster, load_policy, load_version, open_package, package_of
from registry.manifest import read_manifest
from registry.mlflow_client import quiet
from registry.packaging import Draft
from registry.promotion import PromotionError, promote, stage_challenger
from registry.scan import scan_folder
from registry.signing import sign_package
from telemetry.errors import InputError

NAME = "workload-forecaster"


def stored(tracking, version: str) -> Path:
    """The folder in the artifact store that holds a version."""
    uri = tracking.client.get_model_version_download_uri(NAME, version)
    return Path(uri.removeprefix("file://"))


@pytest.fixture
def champion(tracking, make_version) -> str:
    figure = Figure()
    figure.subplots().plot([1, 2])
    version = make_version(figures={"forecast_fan": figure})
    promote(tracking.client, NAME, version, expected_champion=None)
    return version


def test_loaded_champion_predicts_what_was_packaged(tracking, champion, forecaster):
    loaded, manifest = load_forecaster(NAME, tracking_uri=tracking.tracking_uri)
    pd.testing.assert_frame_equal(loaded.predict(), forecaster.predict())
    assert manifest.metrics == {"wql": 0.1}
    assert [gate["gate"] for gate in manifest.gates] == ["skill_over_naive", "no_pickle", "digest"]


def test_a_kept_copy_serves_alone_and_is_mended(tracking, champion, forecaster, tmp_path):
    keep = tmp_path / "state" / "package"
    loaded = load_version(NAME, "forecaster", tracking_uri=tracking.tracking_uri, keep=keep)
    assert loaded.version == champion
    pd.testing.assert_frame_equal(open_package(keep, trust_folder(tracking.tracking_uri)).model.predict(), forecaster.predict())
    weights = keep / "weights" / "forecaster.json"
    untouched = weights.stat().st_ino
    load_version(NAME, "forecaster", tracking_uri=tracking.tracking_uri, keep=keep)
    assert weights.stat().st_ino == untouched
    weights.write_text("{}")
    with pytest.raises(VerificationError, match="changed"):
        open_package(keep, trust_folder(tracking.tracking_uri))
    load_version(NAME, "forecaster", tracking_uri=tracking.tracking_uri, keep=keep)
    assert open_package(keep, trust_folder(tracking.tracking_uri)).manifest.name == "persistence"
    assert [path.name for path in keep.parent.iterdir()] == ["package"]


def test_version_is_readable_in_the_ui(tracking, champion):
    version = tracking.client.get_model_version(NAME, champion)
    assert version.tags["gates"] == "passed"
    assert version.tags["gate.skill_over_naive"] == "passed: skill +0.200 [+0.100, +0.300] over persistence, 40 windows"
    assert "| skill_over_naive | passed |" in version.description
    assert tracking.client.get_registered_model(NAME).description
    card = (package_of(stored(tracking, champion)) / "card.md").read_text()
    assert "![forecast fan](plots/forecast_fan.png)" in card
    assert "Training data" in card


def test_promoted_files_hold_no_code_but_the_served_form(tracking, champion):
    folder = stored(tracking, champion)
    assert scan_folder(folder) == []
    assert [path.name for path in folder.rglob("*.py")] == ["served_model.py"]
    assert not [path for path in folder.rglob("*") if path.suffix in {".pkl", ".pickle", ".joblib"}]


def test_mlflow_itself_can_serve_it(tracking, champion, forecaster, series):
    with quiet():
        import mlflow.pyfunc

    with quiet():
        served = mlflow.pyfunc.load_model(
            stored(tracking, champion).as_uri(), model_config={"trust_folder": str(trust_folder(tracking.tracking_uri))}
        )
        out = served.predict(series.tail(0).astype({"unique_id": "str"}), params={"horizon": 3})
    pd.testing.assert_frame_equal(out, forecaster.predict(3))
    assert served.metadata.signature.inputs.input_names() == ["unique_id", "ds", "y"]
    assert served.input_example is not None


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_file_tampered_in_turn_is_refused(tracking, champion):
    folder = stored(tracking, champion)
    names = files_of(folder)
    assert len(names) >= 10
    for name in names:
        path = folder / name
        original = path.read_bytes()
        for spoiled in (original[:-1] + bytes([original[-1] ^ 1]), original + b"\n", b""):
            path.write_bytes(spoiled)
            with pytest.raises(VerificationError):
                load_forecaster(NAME, tracking_uri=tracking.tracking_uri)
        path.unlink()
        with pytest.raises(VerificationError):
            load_forecaster(NAME, tracking_uri=tracking.tracking_uri)
        path.write_bytes(original)
    load_forecaster(NAME, tracking_uri=tracking.tracking_uri)


def test_added_file_is_refused_and_named(tracking, champion):
    (package_of(stored(tracking, champion)) / "weights" / "extra.json").write_text("{}")
    with pytest.raises(VerificationError, match=r"weights/extra\.json was added"):
        load_forecaster(NAME, tracking_uri=tracking.tracking_uri)


def test_a_package_with_matching_manifest_but_another_registry_record_is_refused(tracking, champion, make_package):
    package = package_of(stored(tracking, champion))
    shutil.rmtree(package)
    shutil.copytree(make_package(evidence={"naive": "persistence", "skill": 0.9, "low": 0.8, "high": 0.95, "windows": 99}), package)
    with pytest.raises(VerificationError, match="is not signed"):
        open_package(package, trust_folder(tracking.tracking_uri))
    sign_package(package, signing_trust(tracking.tracking_uri))
    open_package(package, trust_folder(tracking.tracking_uri))
    with pytest.raises(VerificationError, match=r"manifest\.json was changed"):
        load_forecaster(NAME, tracking_uri=tracking.tracking_uri)


@pytest.mark.parametrize("tag", ["gates", "package.manifest_sha256", "package.tree_sha256", "gate.skill_over_naive"])
def test_changed_or_missing_registry_record_is_refused(tracking, champion, tag):
    tracking.client.set_model_version_tag(NAME, champion, tag, "refused")
    with pytest.raises(VerificationError):
        load_forecaster(NAME, tracking_uri=tracking.tracking_uri)
    tracking.client.delete_model_version_tag(NAME, champion, tag)
    with pytest.raises(VerificationError):
        load_forecaster(NAME, tracking_uri=tracking.tracking_uri)


def test_refused_gates_do_not_load_even_by_alias(tracking, make_version):
    refused = make_version(evidence={"naive": "persistence", "skill": 0.0, "low": -0.1, "high": 0.1, "windows": 40})
    stage_challenger(tracking.client, NAME, refused)
    with pytest.raises(VerificationError, match="skill_over_naive"):
        load_forecaster(NAME, alias="challenger", tracking_uri=tracking.tracking_uri)


def test_wrong_kind_missing_alias_and_missing_registry(tracking, champion, tmp_path):
    with pytest.raises(VerificationError, match="a policy is needed"):
        load_policy(tracking_uri=tracking.tracking_uri, name=NAME)
    with pytest.raises(VerificationError, match="no such version"):
        load_forecaster(NAME, alias="previous", tracking_uri=tracking.tracking_uri)
    with pytest.raises(InputError, match="no model registry"):
        load_forecaster(NAME, tracking_uri=f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()


def test_version_pointing_to_anothers_files_is_refused(tracking, champion, make_version):
    other = tracking.client.get_model_version(NAME, champion)
    tracking.client.create_registered_model("power-forecaster")
    moved = tracking.client.create_model_version("power-forecaster", source=other.source, tags=other.tags)
    with pytest.raises(PromotionError, match="its name is 'power-forecaster', signed was 'workload-forecaster'"):
        promote(tracking.client, "power-forecaster", moved.version, expected_champion=None)


@pytest.mark.parametrize("protocol", range(6))
def test_scan_finds_pickles_of_every_protocol_under_any_name(tmp_path, protocol):
    (tmp_path / "weights.json").write_bytes(pickle.dumps(Draft(Path("x"), None), protocol=protocol))
    assert any("pickle" in line for line in scan_folder(tmp_path))


def test_scan_refuses_archives_links_and_unknown_kinds(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.json", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps({"a": 1}))
    (tmp_path / "run.sh").write_text("true")
    (tmp_path / "link.json").symlink_to(tmp_path / "run.sh")
    np.save(tmp_path / "array.npy", np.zeros(2))
    found = "\n".join(scan_folder(tmp_path))
    assert "model.json: is an archive" in found
    assert "run.sh: file kind '.sh'" in found
    assert "link.json: a symbolic link" in found
    assert "array.npy" in found


def test_planted_pickle_is_refused_by_the_gate(make_package):
    package = make_package(spoil=lambda folder: (folder / "weights" / "w.json").write_bytes(pickle.dumps({"a": 1})))
    verdicts = {gate["gate"]: gate for gate in read_manifest(package).gates}
    assert verdicts["no_pickle"]["passed"] is False
    assert verdicts["digest"]["passed"] is False
    assert "weights/w.json" in verdicts["no_pickle"]["reason"]


def test_clean_text_is_no_pickle(tmp_path):
    for index, text in enumerate(("0.", ".", "I1\n.", "hello", json.dumps({"a": [1, 2]}))):
        (tmp_path / f"{index}.txt").write_text(text)
    draft = Draft(tmp_path, read_empty())
    assert NoPickle().judge({"package": draft}).passed


def read_empty():
    class Files:
        files: dict[str, str] = {}  # noqa: RUF012

    return Files()


@pytest.mark.parametrize("content", ["", "[]", '{"format_version": 2}', '{"format_version": 1, "surprise": 1}', "\x00\xff"])
def test_unreadable_manifest_is_one_clear_error(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest(tmp_path)
