"""Request traces as rates, on small tables of the same form and, where they are at hand, on the traces themselves."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from envs.services import check_rates
from telemetry.errors import InputError
from telemetry.readers.public_requests import REQUEST_TRACES, counted, read_request_rates

TRACES = Path(os.environ.get("JOULEWISE_TRACES", Path(__file__).parents[2] / ".." / "shared" / "traces"))
CONF = Path(__file__).parents[2] / "conf" / "trace" / "requests"
needs_traces = pytest.mark.skipif(not TRACES.is_dir(), reason=f"no traces at {TRACES}")
START = pd.Timestamp("2026-01-05", tz="UTC")


def files(name, root=TRACES):
    return [root / part["file"] for part in yaml.safe_load((CONF / f"{name}.yaml").read_text())["fetch"]]


def test_single_requests_are_counted_in_whole_steps():
    table = counted({"a": np.array([100.0, 101.0, 159.9, 160.0, 225.0]), "b": np.array([170.0])}, START, 60)
    assert table["requests_per_s"].tolist() == [3 / 60, 1 / 60, 0.0, 1 / 60]
    assert table["time"].tolist() == [START, START + pd.Timedelta(minutes=1)] * 2
    with pytest.raises(InputError, match="steps of 100 s"):
        counted({"a": np.array([0.0, 150.0])}, START, 100)


def test_azure_and_servegen_forms(tmp_path):
    for name, times in (
        ("code", ["2023-11-16 18:00:00.5", "2023-11-16 18:00:59", "2023-11-16 18:03:01"]),
        ("conv", ["2023-11-16 18:01:10"]),
    ):
        pd.DataFrame({"TIMESTAMP": times}).to_parquet(tmp_path / f"AzureLLMInferenceTrace_{name}.parquet")
    paths = [tmp_path / f"AzureLLMInferenceTrace_{name}.parquet" for name in ("code", "conv")]
    table = read_request_rates("azure_llm_2023", paths, "2026-01-05", 60)
    assert table.loc[table["service"] == "code", "requests_per_s"].tolist() == [2 / 60, 0, 0]
    assert table.loc[table["service"] == "conv", "requests_per_s"].tolist() == [0, 1 / 60, 0]
    rows = pd.DataFrame({"chunk": [5, 5, 7, 7], "timestamp": [0, 600, 0, 600], "rate": [1.0, 2.0, 3.0, 0.0]})
    rows.to_parquet(tmp_path / "s.parquet")
    table = read_request_rates("servegen_m_small", [tmp_path / "s.parquet"], "2026-01-05")
    total = table[table["service"] == "total"]
    assert total["requests_per_s"].tolist() == [4.0, 2.0]
    assert total["time"].tolist() == [START, START + pd.Timedelta(minutes=10)]
    for bad, message in (
        (("servegen_m_small", [tmp_path / "s.parquet"], START, 60), "steps of 60 s; allowed: 600"),
        (("servegen_m_small", [tmp_path / "t.parquet"], START), "t.parquet: no such file"),
        (("wikipedia", [], START), "no request trace 'wikipedia'"),
        (("mooncake", [paths[0]], START), "cannot be read.*columns timestamp"),
    ):
        with pytest.raises(InputError, match=message):
            read_request_rates(*bad)


def test_every_request_trace_of_the_configuration_can_be_read():
    assert sorted(REQUEST_TRACES) == sorted(path.stem for path in CONF.glob("*.yaml"))


@needs_traces
@pytest.mark.parametrize("name", sorted(REQUEST_TRACES))
def test_real_traces_are_whole_series(name):
    table = check_rates(read_request_rates(name, files(name), START))
    assert table["time"].min() == START
    assert table["requests_per_s"].sum() > 0


@needs_traces
def test_azure_counts_all_requests_but_the_last_part_of_a_step():
    paths = files("azure_llm_2023")
    table = read_request_rates("azure_llm_2023", paths, START)
    assert 0 <= sum(len(pd.read_parquet(path)) for path in paths) - table["requests_per_s"].sum() * 60 < 600
