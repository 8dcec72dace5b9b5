"""``python -m pipelines.fetch_traces``: what is verified, what stays when something goes wrong, and what the table says."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from original_makers import write_originals

from pipelines import fetch_traces as command
from pipelines.cli import compose_config
from pipelines.download import Limits
from pipelines.fetch_traces import FAILED, FETCHED, PRESENT, FetchConfig, fetch, fetch_config, render
from pipelines.origins import FetchFile, TraceInfo, chosen_traces, trace_infos
from telemetry.errors import InputError
from telemetry.originals import CONVERSIONS, convert, table_digest

ROOT = Path(__file__).parents[2]
TRACES = Path(os.environ.get("JOULEWISE_TRACES", ROOT / ".." / "shared" / "traces")).resolve()
needs_traces = pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not there")
ORIGIN = {"repository": "someone/jobs", "commit": "0123456789ab", "path": "data/*", "licence": "MIT", "attribution": "Someone"}
COPY = FetchFile("a/jobs.csv", "data/jobs.csv", "copy")
TABLE = FetchFile("a/jobs.parquet", "data/{0}.csv", "csv", each=(("x",), ("y",)), label="vc")


def trace(*files, commit=ORIGIN["commit"]):
    return TraceInfo("jobs", "table", {**ORIGIN, "commit": commit}, ("none",), files)


@pytest.fixture
def mirror(tmp_path):
    """A mirror with three originals; ``mirror(name, text)`` writes one."""

    def put(name, text, commit=ORIGIN["commit"]):
        path = tmp_path / "mirror" / "someone" / "jobs" / commit / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    for name in ("jobs.csv", "x.csv", "y.csv"):
        put(name, f"a,b\n1,{name}\n2,\n")
    return put


@pytest.fixture
def bring(tmp_path):
    """Fetch files of one trace into ``tmp_path/out``."""

    def run(*files, commit=ORIGIN["commit"], **options):
        base = (tmp_path / "mirror").as_uri()
        limits = Limits(tries=1, max_bytes=options.pop("max_bytes", 1 << 20))
        config = FetchConfig(("all",), tmp_path / "out", limits, base=base, progress=False, **options)
        return fetch(config, [trace(*files, commit=commit)], say=lambda text: None)

    return run


def named(known, **changes):
    return replace(known, **changes)


def test_files_are_brought_converted_recorded_and_left_alone(mirror, bring, tmp_path):
    out = tmp_path / "out"
    first = bring(COPY, TABLE)
    assert [one.status for one in first] == [FETCHED, FETCHED]
    assert (out / "a" / "jobs.csv").read_text() == "a,b\n1,jobs.csv\n2,\n"
    table = pd.read_parquet(out / "a" / "jobs.parquet")
    assert table.to_dict("list") == {"vc": ["x", "x", "y", "y"], "a": [1, 2, 1, 2], "b": ["x.csv", None, "y.csv", None]}
    held = json.loads((out / "fetched.json").read_text())["files"]
    assert held["a/jobs.csv"]["verified"].startswith("on first use")
    assert held["a/jobs.csv"]["licence"] == "MIT"
    originals = held["a/jobs.parquet"]["originals"]
    assert [o["path"] for o in originals] == ["data/x.csv", "data/y.csv"]
    assert originals[0]["sha256"] == hashlib.sha256(mirror("x.csv", "a,b\n1,x.csv\n2,\n").read_bytes()).hexdigest()
    assert not (out / ".originals").exists()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("[!.]*.*")}
    assert [one.status for one in bring(COPY, TABLE)] == [PRESENT, PRESENT]
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("[!.]*.*")}


def test_a_damaged_file_is_brought_again_and_must_be_the_first_one(mirror, bring, tmp_path):
    bring(COPY)
    target = tmp_path / "out" / "a" / "jobs.csv"
    target.write_text("damaged")
    (again,) = bring(COPY)
    assert (again.status, again.told) == (FETCHED, "as fetched first")
    target.write_text("damaged")
    mirror("jobs.csv", "another file at the same commit")
    (refused,) = bring(COPY)
    assert refused.status == FAILED
    assert "not the original that was fetched first" in refused.told
    assert target.read_text() == "damaged"
    assert bring(COPY, checksums="accept")[0].status == FETCHED
    mirror("jobs.csv", "the next commit", commit="fedcba987654")
    (newer,) = bring(COPY, commit="fedcba987654")
    assert (newer.status, target.read_text()) == (FETCHED, "the next commit")


@pytest.mark.parametrize("file", [named(COPY, sha256="0" * 64), named(TABLE, content_sha256="0" * 64)])
def test_a_wrong_checksum_replaces_nothing(mirror, bring, tmp_path, file):
    target = tmp_path / "out" / file.file
    target.parent.mkdir(parents=True)
    target.write_text("the last good state")
    (one,) = bring(file)
    assert one.status == FAILED
    assert "instead of 0000" in one.told
    assert "nothing replaced" in one.told
    assert target.read_text() == "the last good state"
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert not (tmp_path / "out" / "fetched.json").exists()
    (taken,) = bring(file, checksums="accept")
    assert taken.status == FETCHED
    assert "other than stated" in taken.told


def test_a_stated_checksum_is_verified_and_knows_files_of_other_hands(mirror, bring, tmp_path):
    bring(TABLE)
    path = tmp_path / "out" / TABLE.file
    stated = named(TABLE, content_sha256=table_digest(pd.read_parquet(path)))
    (tmp_path / "out" / "fetched.json").unlink()
    pd.read_parquet(path).to_parquet(path, compression="gzip")
    (one,) = bring(stated)
    assert (one.status, one.told) == (PRESENT, "as stated in conf/trace")
    path.unlink()
    (one,) = bring(stated)
    assert (one.status, one.told) == (FETCHED, "as stated in conf/trace")


def test_missing_large_broken_and_pointer_originals_are_named(mirror, bring, tmp_path):
    mirror("broken.csv", 'a,b\n"1\n2,3,4,5\n')
    mirror("other.csv", "c\n1\n")
    mirror("pointer.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    mirror("page.json", "[1, 2]")
    files = [
        FetchFile("a/gone.csv", "data/gone.csv", "copy"),
        COPY,
        FetchFile("a/broken.parquet", "data/broken.csv", "csv"),
        FetchFile("a/mixed.parquet", "data/{0}.csv", "csv", each=(("x",), ("other",))),
        FetchFile("a/pointer.parquet", "data/pointer.csv", "csv"),
        FetchFile("a/page.parquet", "data/page.json", "gavel_throughputs"),
    ]
    outcomes = bring(*files)
    assert [one.status for one in outcomes] == [FAILED, FETCHED, FAILED, FAILED, FAILED, FAILED]
    told = render(outcomes)
    for words in ("gone.csv: no such file", "cannot be converted", "original 'other'", "a pointer to a large file", "a JSON list"):
        assert words in told
    assert [path.name for path in (tmp_path / "out" / "a").iterdir()] == ["jobs.csv"]
    (large,) = bring(named(COPY, file="a/large.csv"), max_bytes=4)
    assert "allowed are 4" in large.told


@pytest.mark.parametrize("name", ["../x.csv", "/etc/x.csv", "a/../../x.csv", "a\\x.csv", "c:x.csv", "a//x.csv", "./x.csv", "", "a/x\n.csv"])
def test_names_that_leave_the_folder_are_refused(name):
    with pytest.raises(InputError, match="path"):
        FetchFile(name, "data/x.csv", "copy")
    with pytest.raises(InputError, match="path"):
        FetchFile("a/x.csv", name, "copy")
    with pytest.raises(InputError, match="path"):
        FetchFile("a/x.csv", "{0}", "csv", each=((name,),))


def test_pickles_and_links_out_of_the_folder_are_refused(mirror, bring, tmp_path):
    with pytest.raises(InputError, match="can run code"):
        FetchFile("a/x.parquet", "data/util_pkl/gpu_power.pkl", "csv")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    (one,) = bring(COPY)
    assert one.status == FAILED
    assert "leads out of the folder" in one.told
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_write_protected_folder_is_left_alone_also_by_root(mirror, bring, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o555)
    with pytest.raises(InputError, match="write-protected"):
        bring(COPY)
    out.chmod(0o755)
    assert not list(out.iterdir())
    assert bring(COPY)[0].status == FETCHED


def test_two_runs_do_not_write_at_once(bring, tmp_path, mirror):
    with command._alone(tmp_path / "out"), pytest.raises(InputError, match="another run"):
        bring(COPY)
    assert bring(COPY)[0].status == FETCHED


def test_a_killed_run_leaves_the_last_good_state_and_goes_on(tmp_path, mirror):
    """The original is a pipe that never ends: the run hangs in the middle of the file when it is killed."""
    original = mirror("jobs.csv", "")
    original.unlink()
    os.mkfifo(original)
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "a" / "jobs.csv").write_text("the last good state")
    code = f"""
import sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests" / "pipelines")]!r}
from test_fetch_traces import *
fetch(FetchConfig(("all",), Path({str(out)!r}), Limits(tries=1), base={(tmp_path / "mirror").as_uri()!r}, progress=False), [trace(COPY)])
"""
    run = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    with original.open("w") as pipe:
        pipe.write("half of it\n")
        pipe.flush()
        part = out / ".originals" / "someone" / "jobs" / ORIGIN["commit"] / "data" / "jobs.csv.part"
        limit = time.monotonic() + 30
        while not part.exists() and time.monotonic() < limit:
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    assert part.exists()
    assert (out / "a" / "jobs.csv").read_text() == "the last good state"
    original.unlink()
    mirror("jobs.csv", "half of it\nand the rest\n")
    config = FetchConfig(("all",), out, Limits(tries=1), base=(tmp_path / "mirror").as_uri(), progress=False)
    (one,) = fetch(config, [trace(COPY)], say=lambda text: None)
    assert one.status == FETCHED
    assert (out / "a" / "jobs.csv").read_text() == "half of it\nand the rest\n"
    assert not (out / ".originals").exists()


def test_the_command_names_what_failed_and_says_so_by_its_exit_code(tmp_path, monkeypatch, capsys):
    (tmp_path / "mirror").mkdir()
    base = (tmp_path / "mirror").as_uri()

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fetch_traces", f"out={tmp_path}/out", "tries=1", "progress=false", *arguments])
        with pytest.raises(SystemExit) as ended:
            command.main()
        return ended.value.code, capsys.readouterr()

    code, streams = call("traces=[gaia]", f"origin.base={base}")
    assert code == 1
    assert "failed: a_jobs/azure_100k.parquet" in streams.out
    assert "0 of 1 files" in streams.out
    for wrong, words in (
        ("traces=[phily]", r"traces=[philly]?"),
        ("origin.base=ftp://x", "https, http, file"),
        ("checksums=maybe", "strict, accept"),
        ("tries=0", "above 0"),
        ("max_mib=many", "max_mib"),
    ):
        code, streams = call(wrong)
        assert code == 2
        assert words in streams.err


def test_every_trace_states_its_files_and_their_checksums():
    files = [file for info in trace_infos() for file in info.fetch]
    assert len({file.file for file in files}) == len(files) == 19
    for file in files:
        assert bool(file.sha256) == (file.conversion == "copy")
        assert bool(file.content_sha256) == (file.conversion in CONVERSIONS)
    config = fetch_config(compose_config("fetch_traces", ["out=x"]))
    place = {"repository": "a/b", "commit": "0123", "path": "seed=0/two words.csv"}
    assert config.addresses(place)[0] == "https://raw.githubusercontent.com/a/b/0123/seed=0/two%20words.csv"
    assert all(address.startswith("https://") for address in config.addresses(place))
    with pytest.raises(InputError, match="out=FOLDER"):
        fetch_config(compose_config("fetch_traces"))


def test_traces_are_chosen_by_name_last_part_or_folder():
    infos = trace_infos()
    assert chosen_traces(["all"], infos) == infos
    assert [i.name for i in chosen_traces(["helios", "philly"], infos)] == ["demand/helios", "philly"]
    assert {i.name for i in chosen_traces(["grid"], infos)} == {"grid/iso_price", "grid/electricitymaps", "grid/openmeteo"}


def test_a_digest_is_of_the_values_and_nothing_else():
    table = pd.DataFrame({"a": [1, 2], "b": [0.1, None], "c": ["x", None], "d": [[1], []]})
    assert table_digest(table) == table_digest(table.astype({"c": "category"}).astype({"c": object}).copy())
    for other in (
        table[["b", "a", "c", "d"]],
        table.iloc[::-1],
        table.assign(a=[1, 3]),
        table.assign(a=[1.0, 2.0]),
        table.assign(c=["x", "null"]),
        table.assign(d=[[1], [0]]),
        table.rename(columns={"a": "A"}),
    ):
        assert table_digest(other) != table_digest(table)


HEADS = (
    ("a_jobs/_head/0e4a51.trace", "a_jobs/philly_gavel_seed0_vcs.parquet", "0e4a51"),
    ("a_jobs/_head/openb_pod_list_default.csv", "a_jobs/openb_pod_list_default.parquet", ""),
    ("a_jobs/_head/openb_node_list_all_node.csv", "a_jobs/openb_node_list_all_node.parquet", ""),
    ("a_jobs/_head/azure-100k.csv", "a_jobs/azure_100k.parquet", ""),
    ("b_requests/_head/AzureLLMInferenceTrace_code.csv", "b_requests/AzureLLMInferenceTrace_code.parquet", ""),
    ("b_requests/_head/synthetic_trace.jsonl", "b_requests/synthetic_trace.parquet", ""),
    ("b_requests/_head/m-small_chunk-0-trace.csv", "b_requests/servegen_m-small_trace.parquet", "0"),
    ("b_requests/_head/mm-image_chunk-0-trace.csv", "b_requests/servegen_mm-image_trace.parquet", "0"),
)


@needs_traces
@pytest.mark.parametrize(("head", "name", "label"), HEADS)
def test_real_first_lines_become_the_first_rows_of_the_known_table(head, name, label):
    file = next(file for info in trace_infos() for file in info.fetch if file.file == name)
    found = convert(file.conversion, [(label, TRACES / head)], file.label)
    known = pd.read_parquet(TRACES / name).head(len(found))
    assert len(found) > 1
    assert found.columns.tolist() == known.columns.tolist()
    for column in found:
        # Exact: whole numbers of a few lines may be floats in the whole file, where some are missing; lists are arrays there.
        pairs = zip(found[column].fillna("-"), known[column].fillna("-"), strict=True)
        assert all(list(a) == list(b) if isinstance(a, list) else a == b for a, b in pairs), column


@needs_traces
def test_every_trace_comes_out_as_the_known_tables(tmp_path):
    """Originals are rebuilt from the known tables, fetched, converted, and have to have the stated contents."""
    infos = [info for info in trace_infos() if info.name != "requests/servegen_m_small"]
    for info in infos:
        for file in info.fetch:
            if (TRACES / file.file).exists():
                write_originals(tmp_path / "mirror", info, file, TRACES / file.file)
    config = FetchConfig(("all",), tmp_path / "out", Limits(tries=1), base=(tmp_path / "mirror").as_uri(), progress=False)
    outcomes = fetch(config, infos, say=lambda text: None)
    assert {one.told for one in outcomes} == {"as stated in conf/trace"}, render(outcomes)
    assert {one.status for one in outcomes} == {FETCHED}
