"""Job and grid exports: fields by value, repairs counted, refusals that name the place."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from telemetry.errors import InputError
from telemetry.jobs import gpu_model_name
from telemetry.readers import READERS
from telemetry.readers.slurm import host_names, memory_gib


@pytest.fixture
def read(tmp_path, context):
    def run(reader: str, content, name: str = "export.csv"):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / name).write_bytes(data)
        result = READERS[reader].read(tmp_path / name, context)
        return next(iter(result.tables.values())), result.quality

    return run


def test_slurm_fields(read, make):
    frame, _ = read("slurm", make["text"]([make["sacct_head"], make["sacct"]("7")]))
    job = frame.iloc[0].to_dict()
    expected = {
        "job_id": "7", "gpus": 4.0, "workers": 2.0, "duration_s": 3600.0, "cpus": 32.0, "memory_gib": 128.0, "requested_duration_s": 7200.0,
        "workload_class": "training", "team": "vision", "project": "p", "pool": "west-a100", "gpu_model": "A100", "priority": 2.0,
        "max_watts": 850.0, "preemptible": True, "state": "completed", "nodes": "n0 n1",
    }  # fmt: skip
    assert {key: job[key] for key in expected} == expected
    assert job["deadline"] == pd.Timestamp("2026-01-07T12:00Z")
    assert job["start_time"] == pd.Timestamp("2026-01-05T00:10Z")


def test_slurm_shards_unlimited_running_and_cancelled(read, make):
    rows = [
        make["sacct"]("1", ReqTRES="cpu=4,gres/shard=2", TimelimitRaw="UNLIMITED", Comment="class=interactive", NNodes="1"),
        make["sacct"]("2", State="RUNNING", End="Unknown"),
        make["sacct"]("3", State="CANCELLED by 1004", Start="Unknown", ElapsedRaw="0"),
        make["sacct"]("4", ReqTRES="cpu=4,mem=1G"),
    ]
    frame, quality = read("slurm", make["text"]([make["sacct_head"], *rows]))
    assert frame["job_id"].tolist() == ["1", "2", "3"]
    assert frame["gpus"].tolist()[0] == 0.5
    assert np.isnan(frame["requested_duration_s"][0])
    assert frame["state"].tolist() == ["completed", "running", "cancelled"]
    assert frame["end_time"].isna().tolist() == [False, True, False]
    assert frame["duration_s"].isna().tolist() == [False, True, False]
    assert quality.total() == {}
    assert quality.notes["src"] == {"jobs without a GPU, left out": 1}


def test_slurm_duplicates_short_rows_and_time_running_back(read, make):
    rows = [
        make["sacct"]("1", ElapsedRaw="1"),
        make["sacct"]("1", ElapsedRaw="2"),
        "3|broken|row",
        make["sacct"]("4", End="2026-01-04T00:00:00"),
        make["sacct"]("5", Submit="yesterday"),
    ]
    frame, quality = read("slurm", make["text"]([make["sacct_head"], *rows]))
    assert quality.total() == {"duplicate": 1, "unparseable": 3}
    assert frame["duration_s"].tolist() == [2.0]


def test_slurm_missing_column_names_it(read):
    with pytest.raises(InputError, match="missing column Start, ReqTRES"):
        read("slurm", b"JobID|Submit|End|State\n1|2026-01-05T00:00:00|Unknown|RUNNING\n")


def test_gpu_names_and_memory():
    names = ["NVIDIA-A100-SXM4-80GB", "Tesla V100-PCIE", "a100_80gb", "NVIDIA A40", "v100", ""]
    assert [gpu_model_name(name) for name in names] == ["A100", "V100", "A100", "A40", "V100", None]
    assert [memory_gib(text) for text in ("128G", "4096M", "2Tn", "512", "")] == [128.0, 4.0, 2048.0, 0.5, None]


def test_kubernetes_fields_and_states(read, make):
    failed = {
        "startTime": "2026-01-05T00:10:00Z",
        "conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "lastTransitionTime": "2026-01-05T00:20:00Z"}],
    }
    items = [
        make["k8s"]("a"),
        make["k8s"]("b", **failed),
        make["k8s"]("c", startTime="2026-01-05T00:10:00Z", active=2),
        make["k8s"]("d", active=0),
    ]
    items[3]["metadata"]["annotations"]["gpu-fraction"] = "0.25"
    items += [make["k8s"]("a"), {"metadata": {}}]
    frame, quality = read("kubernetes", {"items": items})
    assert quality.total() == {"duplicate": 1, "unparseable": 1}
    assert frame["state"].tolist() == ["completed", "timeout", "running", "pending"]
    assert frame["duration_s"].fillna(-1).tolist() == [3600.0, 600.0, -1.0, -1.0]
    job = frame.iloc[0]
    assert (job["gpus"], job["workers"], job["cpus"], job["memory_gib"], job["requested_duration_s"]) == (4.0, 2.0, 0.5, 64.0, 7200.0)
    assert (job["team"], job["pool"], job["gpu_model"], job["priority"], job["max_watts"]) == ("nlp", "east-a40", "A40", 3.0, 700.0)
    assert job["deadline"] == pd.Timestamp("2026-01-06T00:00Z")
    assert frame["gpus"][3] == 0.25


def test_kubernetes_empty_list_is_refused(read):
    with pytest.raises(InputError, match="empty export"):
        read("kubernetes", {"kind": "List", "items": []})


def test_swf_header_shape_and_unknowns(read, clean):
    text = clean["swf"][1] + b" 9 90 -1 -1 4 -1 -1 4 900 -1 5 1 1 -1 1 1 -1 -1\n 10 nonsense\n"
    frame, quality = read("swf", text, "log.swf")
    assert (frame.attrs["max_procs"], frame.attrs["unix_start_time"]) == (64, 1_767_571_200)
    assert frame[["gpus", "workers"]].to_numpy().tolist() == [[1, 1], [8, 1], [8, 4]]
    assert frame["requested_duration_s"].tolist() == [900.0, 600.0, 900.0]
    assert frame["submit_time"].tolist()[0] == pd.Timestamp("2026-01-05T00:01Z")
    assert frame["start_time"].tolist()[0] == pd.Timestamp("2026-01-05T00:01:30Z")
    assert quality.total() == {"sentinel": 1, "unparseable": 1}


JOBS_HEAD = b"job_id,submit_time,duration_s,gpus,workers,workload_class,preemptible\n"


def test_jobs_table_values_and_parquet(read, tmp_path, context):
    frame, _ = read("jobs_table", JOBS_HEAD + b"b,2026-01-05T02:00:00+02:00,60,0.5,1,,true\na,2026-01-05T00:00:00,60,2,3,training,\n")
    assert frame["job_id"].tolist() == ["a", "b"]
    assert frame["submit_time"].nunique() == 1
    assert frame["preemptible"].isna().tolist() == [True, False]
    assert frame["preemptible"][1]
    assert frame["workload_class"].tolist() == ["training", None]
    frame.to_parquet(tmp_path / "jobs.parquet")
    again = READERS["jobs_table"].read(tmp_path / "jobs.parquet", context).tables["jobs"]
    pd.testing.assert_frame_equal(frame, again)


WORK_HEAD = b"job_id,submit_time,duration_s,gpus,workers,workload,checkpoint_s,restart_s,data_gib,data_site\n"


def test_jobs_table_keeps_workload_checkpoints_and_data(read, tmp_path, context):
    rows = b"a,2026-01-05,60,1,1,ResNet-50 (batch size 64),600,30,12.5,west\nb,2026-01-05,60,1,1,,0,,,\n"
    frame, quality = read("jobs_table", WORK_HEAD + rows)
    assert frame.loc[0, ["workload", "checkpoint_s", "restart_s", "data_gib", "data_site"]].tolist() == [
        "ResNet-50 (batch size 64)", 600, 30, 12.5, "west",
    ]  # fmt: skip
    assert frame["workload"][1] is None
    assert frame["data_site"][1] is None
    assert frame["checkpoint_s"][1] == 0
    assert frame.loc[1, ["restart_s", "data_gib"]].isna().all()
    assert not quality.notes
    frame.to_parquet(tmp_path / "jobs.parquet")
    pd.testing.assert_frame_equal(READERS["jobs_table"].read(tmp_path / "jobs.parquet", context).tables["jobs"], frame)
    for column, value in (("checkpoint_s", b"-1,0,0"), ("restart_s", b"0,soon,0"), ("data_gib", b"0,0,inf")):
        with pytest.raises(InputError, match=f"column '{column}', row 1"):
            read("jobs_table", WORK_HEAD + b"a,2026-01-05,60,1,1,A3C," + value + b",west\n")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (b"x,2026-01-05,60,-2,1,,", "column 'gpus', row 2: '-2'"),
        (b"x,2026-01-05,60,1.5,1,,", "column 'gpus', row 2: 1.5"),
        (b"x,2026-01-05,60,many,1,,", "column 'gpus', row 2: 'many'"),
        (b"x,2026-01-05,-5,1,1,,", "column 'duration_s', row 2: '-5'"),
        (b"x,2026-01-05,,1,1,,", "column 'duration_s', row 2"),
        (b"x,2026-01-05,60,1,0,,", "column 'workers', row 2: '0'"),
        (b"x,soon,60,1,1,,", "column 'submit_time', row 2: 'soon'"),
        (b"x,2026-01-05,60,1,1,gaming,", "column 'workload_class', row 2: 'gaming'.*training"),
        (b"x,2026-01-05,60,1,1,,perhaps", "column 'preemptible', row 2: 'perhaps'"),
        (b"ok,2026-01-05,60,1,1,,", "column 'job_id', row 2: 'ok'"),
        (b"x,2026-01-05,60,1,1,,,,", "no CSV"),
    ],
)
def test_jobs_table_refusals_name_column_row_and_value(read, row, told):
    with pytest.raises(InputError, match=told):
        read("jobs_table", JOBS_HEAD + b"ok,2026-01-05T00:00:00Z,60,1,1,training,\n" + row + b"\n")


def test_jobs_table_missing_and_unknown_columns(read, tmp_path):
    with pytest.raises(InputError, match="missing column duration_s, gpus"):
        read("jobs_table", b"job_id,submit_time,workers\na,2026-01-05,1\n")
    with pytest.raises(InputError, match=r"unknown column max_wats.*rename it to max_watts"):
        read("jobs_table", b"job_id,submit_time,workers,duration_s,gpus,max_wats\na,2026-01-05,1,2,3,4\n")
    frame, quality = read("jobs_table", b"job_id,submit_time,workers,duration_s,gpus,colour\na,2026-01-05,1,2,3,red\n")
    assert "colour" not in frame
    assert quality.notes == {"src": {"column 'colour', which is not read": 1}}
    with pytest.raises(InputError, match="no rows"):
        read("jobs_table", JOBS_HEAD)
    with pytest.raises(InputError, match="whole Parquet"):
        read("jobs_table", b"PAR1 and nothing more", "cut.parquet")


def test_grid_gap_takes_the_day_before(read, make):
    rows = make["grid"](72)
    del rows[50:53]
    frame, quality = read("grid", make["text"]([make["grid_head"], *rows]))
    assert len(frame) == 72
    prices = frame["price_usd_per_kwh"].to_numpy()
    assert prices[50:53] == pytest.approx(prices[26:29])
    assert frame["carbon_g_per_kwh"].to_numpy()[50:53] == pytest.approx([226.0, 227.0, 228.0])
    assert quality.counts == {"src": {"west": {"scrape_gap": 1, "scrape_gap_samples": 3}}}


def test_grid_gap_in_the_first_day_takes_the_last_value_and_nothing_later(read, make):
    rows = make["grid"](24)
    rows[5] = rows[5].replace(",0.050,", ",NaN,")
    frame, quality = read("grid", make["text"]([make["grid_head"], *rows]))
    assert frame["price_usd_per_kwh"].tolist()[4:7] == pytest.approx([0.04, 0.04, 0.06])
    assert quality.total() == {"sentinel": 1}


def test_grid_long_gap_and_blank_start_are_refused(read, make):
    rows = make["grid"](96)
    with pytest.raises(InputError, match=r"site 'west'.*a gap of 30 h.*at most 24 h"):
        read("grid", make["text"]([make["grid_head"], *rows[:40], *rows[70:]]))
    with pytest.raises(InputError, match="no value at the start"):
        read("grid", make["text"]([make["grid_head"], rows[0].replace(",0.000,", ",,"), *rows[1:]]))
    with pytest.raises(InputError, match="missing column price_usd_per_kwh"):
        read("grid", make["text"]([make["grid_head"].replace("price_usd", "price_eur"), *rows]))


def test_grid_column_that_comes_twice_is_refused(read, make):
    lines = [f"{make['grid_head']},price_usd_per_kwh", *(f"{row},0.5" for row in make["grid"]())]
    with pytest.raises(InputError, match=r"column price_usd_per_kwh twice.*line 1|line 1.*column price_usd_per_kwh twice"):
        read("grid", make["text"](lines))


def test_grid_disorder_duplicates_negative_prices_and_bad_values(read, make):
    rows = [*make["grid"](30), *make["grid"](30, "east")]
    rows[3] = rows[3].replace(",0.030,203,", ",-0.030,203,")
    rows[7], rows[8] = rows[8], rows[7]
    rows.append(rows[-1].replace(",229,", ",500,"))
    rows[12] = rows[12].replace(",212,", ",-5,")
    frame, quality = read("grid", make["text"]([make["grid_head"], *rows]))
    assert quality.total() == {"duplicate": 1, "out_of_order": 1, "unparseable": 1}
    west = frame[frame["site"] == "west"]
    assert west["price_usd_per_kwh"].iloc[3] == -0.03
    assert west["carbon_g_per_kwh"].iloc[12] == 211
    assert frame[frame["site"] == "east"]["carbon_g_per_kwh"].iloc[-1] == 500


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("n[0-1]", ["n0", "n1"]),
        ("gpu[08-10,12],login1", ["gpu08", "gpu09", "gpu10", "gpu12", "login1"]),
        ("r[1-2]n[3-4]-ib", ["r1n3-ib", "r1n4-ib", "r2n3-ib", "r2n4-ib"]),
        ("west-a40-0001,west-a40-0003", ["west-a40-0001", "west-a40-0003"]),
        ("None assigned", []),
        ("", []),
        ("n[0-", []),
        ("n[x-y]", []),
        ("n[0-999999999]", []),
        ("n[0-99999]m[0-99999]", []),
    ],
)
def test_slurm_host_lists_name_the_nodes(text, nodes):
    assert host_names(text) == nodes
