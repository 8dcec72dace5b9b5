"""Which advisories affect which versions, after the rules of the OSV schema."""

from __future__ import annotations

import json

import pytest

from registry.advisories import find, pinned, read_advisories
from telemetry.errors import InputError


def advisory(events, *, name="Some.Package", versions=(), severity="HIGH", kind="ECOSYSTEM", **rest):
    affected = {
        "package": {"name": name, "ecosystem": "PyPI"},
        "ranges": [{"type": kind, "events": events}],
        "versions": list(versions),
    }
    return {"id": "GHSA-1", "aliases": ["CVE-1"], "affected": [affected], "database_specific": {"severity": severity}, **rest}


@pytest.mark.parametrize(
    ("events", "affected", "free"),
    [
        ([{"introduced": "0"}, {"fixed": "1.2"}], ["0.1", "1.1.9", "1.2rc1"], ["1.2", "2.0"]),
        ([{"introduced": "1.0"}, {"last_affected": "1.5"}], ["1.0", "1.5"], ["0.9", "1.5.1"]),
        ([{"fixed": "2.1"}, {"introduced": "2.0"}, {"introduced": "0"}, {"fixed": "1.1"}], ["1.0", "2.0.5"], ["1.1", "1.9", "2.1"]),
        ([{"introduced": "3"}], ["3", "99"], ["2.9"]),
    ],
)
def test_ranges(events, affected, free):
    for version in affected:
        assert find({"some-package": version}, [advisory(events)]), version
    for version in free:
        assert not find({"some-package": version}, [advisory(events)]), version


def test_findings_carry_remedy_and_severity():
    (found,) = find({"some-package": "1.0"}, [advisory([{"introduced": "0"}, {"fixed": "1.2"}], severity="MODERATE")])
    assert (found.severity, found.fixed_in) == ("medium", ("1.2",))
    assert "pip install 'some-package>=1.2'" in found.remedy
    assert found.at_least("medium")
    assert not found.at_least("high")
    (unknown,) = find({"some-package": "1.0"}, [advisory([{"introduced": "0"}], severity="")])
    assert unknown.severity == "unknown"
    assert unknown.at_least("critical")
    assert "no fixed version" in unknown.remedy


def test_withdrawn_ignored_and_other_ecosystems_do_not_count():
    events = [{"introduced": "0"}]
    package = {"some-package": "1.0"}
    assert not find(package, [advisory(events, withdrawn="2026-01-01T00:00:00Z")])
    assert not find(package, [advisory(events)], ignore=["CVE-1"])
    assert not find(package, [advisory(events, kind="GIT")])
    assert find(package, [advisory(events, kind="GIT", versions=["1.0"])])
    other = advisory(events)
    other["affected"][0]["package"]["ecosystem"] = "npm"
    assert not find(package, [other])


@pytest.mark.parametrize("content", ["", "{", "[{}]", '[{"id": "x"}]', '{"vulns": [1]}', "3"])
def test_half_a_list_does_not_pass_for_a_clean_bill(tmp_path, content):
    path = tmp_path / "osv.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"osv\.json"):
        read_advisories(path)
    with pytest.raises(InputError):
        read_advisories(tmp_path / "nowhere.json")


def test_files_lists_and_folders_are_read(tmp_path):
    one = advisory([{"introduced": "0"}])
    for index, content in enumerate((one, [one, one], {"vulns": [one]})):
        (tmp_path / f"{index}.json").write_text(json.dumps(content))
    assert len(read_advisories(tmp_path)) == 4


def test_constraints_are_read_and_loose_ones_refused(tmp_path):
    path = tmp_path / "constraints.txt"
    path.write_text("Some_Package==1.0  # why\n\nother==2; python_version < '3'\n")
    assert pinned(path) == {"some-package": "1.0"}
    path.write_text("good==1\nloose>=2\n")
    with pytest.raises(InputError, match="line 2"):
        pinned(path)
