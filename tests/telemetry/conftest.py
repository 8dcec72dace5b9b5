"""A small, clean export per reader, in its native format; makes the makers beside this file importable."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from telemetry.inventory import Inventory, NodeInfo
from telemetry.readers import ReadContext

sys.path.insert(0, str(Path(__file__).parent))  # makers beside this file: tests are collected in importlib mode, without packages

T0 = 1_767_571_200  # 2026-01-05T00:00:00Z
STEP = 600
STEPS = 12


def iso(seconds: int) -> str:
    return pd.Timestamp(seconds, unit="s", tz="UTC").strftime("%Y-%m-%dT%H:%M:%SZ")


def prometheus_answer(
    changes: dict[tuple[str, int], str] | None = None, nodes: tuple[str, ...] = ("n0", "n1", "n2"), old: bool = True
) -> dict:
    """A query_range answer; ``changes`` maps (node, step) to another power value."""
    result = []
    for node in nodes:
        pod = {"pod": "p", "namespace": "ns"} if old else {"pod_name": "p", "pod_namespace": "ns"}
        labels = {"gpu": "0", "UUID": f"GPU-{node}", ("Hostname" if old else "hostname"): node, **pod}
        for name, value in (
            ("DCGM_FI_DEV_POWER_USAGE", lambda k, node=node: (changes or {}).get((node, k), f"{100 + k}")),
            ("DCGM_FI_DEV_GPU_UTIL", lambda k: "50"),
            ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", lambda k: str(1_000_000 * STEP * (k + 1) // 10)),
        ):
            values = [[T0 + STEP * (k + 1), value(k)] for k in range(STEPS)]
            result.append({"metric": {"__name__": name, **labels}, "values": values})
    return {"status": "success", "data": {"resultType": "matrix", "result": result}}


def otlp_line(
    k: int, *, node: str = "n0", watts: object = None, unit: str = "W", requests: int | None = None, temporality: object = 2
) -> dict:
    """One export request of step ``k``."""
    time = str((T0 + STEP * (k + 1)) * 10**9)

    def attributes(**values: str) -> list[dict]:
        return [{"key": key.replace("__", "."), "value": {"stringValue": value}} for key, value in values.items()]

    gpu = attributes(hw__id="gpu0", k8s__pod__name="p")
    power = {"asDouble": watts} if isinstance(watts, float) else {"asInt": str(200 + k if watts is None else watts)}
    metrics = [
        {"name": "hw.power", "unit": unit, "gauge": {"dataPoints": [{"attributes": gpu, "timeUnixNano": time, **power}]}},
        {
            "name": "hw.energy",
            "unit": "J",
            "sum": {
                "aggregationTemporality": temporality,
                "isMonotonic": True,
                "dataPoints": [{"attributes": gpu, "timeUnixNano": time, "asInt": str(120_000 * (k + 1))}],
            },
        },
    ]
    count = {"timeUnixNano": time, "asInt": str(600 * (k + 1) if requests is None else requests)}
    served = [
        {"name": "http.server.request.count", "sum": {"aggregationTemporality": temporality, "isMonotonic": True, "dataPoints": [count]}}
    ]
    return {
        "resourceMetrics": [
            {"resource": {"attributes": attributes(host__name=node)}, "scopeMetrics": [{"metrics": metrics}]},
            {"resource": {"attributes": attributes(service__name="chat")}, "scopeMetrics": [{"metrics": served}]},
        ]
    }


def ipmi_block(node: str, k: int, reading: str = "500 Watts") -> str:
    return (
        f"=== {node} {iso(T0 + STEP * (k + 1))}\n\n    Instantaneous power reading:                   999 Watts\n"
        f"    Average power reading over sample period:      {reading}\n    Sampling period:     00000600 Seconds.\n"
        "    Power reading state is:                   activated\n\n"
    )


def prometheus_text(answer: dict) -> bytes:
    """The same as text exposition: a line per point, in the order of time, with times in milliseconds."""
    lines = []
    for step in range(STEPS):
        for entry in answer["data"]["result"]:
            labels = ",".join(f'{key}="{value}"' for key, value in entry["metric"].items() if key != "__name__")
            time, value = entry["values"][step]
            lines.append(f"{entry['metric']['__name__']}{{{labels}}} {value} {1000 * time}")
    return as_text(["# TYPE DCGM_FI_DEV_POWER_USAGE gauge", *lines])


SACCT_HEAD = "JobID|JobName|User|Account|Partition|State|Submit|Start|End|ElapsedRaw|TimelimitRaw|AllocTRES|ReqTRES|NNodes|NodeList|Comment"


def sacct_row(job: str, **change: str) -> str:
    row = {
        "JobID": job, "JobName": "train", "User": "u", "Account": "vision", "Partition": "west-a100", "State": "COMPLETED",
        "Submit": "2026-01-05T00:00:00", "Start": "2026-01-05T00:10:00", "End": "2026-01-05T01:10:00", "ElapsedRaw": "3600",
        "TimelimitRaw": "120", "AllocTRES": "", "ReqTRES": "cpu=32,mem=128G,node=2,gres/gpu=8,gres/gpu:a100_80gb=8", "NNodes": "2",
        "NodeList": "n[0-1]",
        "Comment": "class=training;project=p;priority=2;deadline=2026-01-07T12:00:00;max_watts=850;workers=2;preemptible=1",
    }  # fmt: skip
    return "|".join((row | change).values())


def k8s_job(name: str, **status: object) -> dict:
    return {
        "metadata": {
            "name": name,
            "creationTimestamp": "2026-01-05T00:00:00Z",
            "labels": {
                "joulewise.io/workload-class": "fine_tuning",
                "team": "nlp",
                "project": "p",
                "kueue.x-k8s.io/queue-name": "east-a40",
            },
            "annotations": {"joulewise.io/deadline": "2026-01-06T02:00:00+02:00", "joulewise.io/max-watts": "700"},
        },
        "spec": {
            "parallelism": 2,
            "activeDeadlineSeconds": 7200,
            "template": {
                "spec": {
                    "priorityClassName": "priority-3",
                    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A40"},
                    "containers": [{"resources": {"requests": {"nvidia.com/gpu": "4", "cpu": "500m", "memory": "64Gi"}}}],
                }
            },
        },
        "status": status or {"startTime": "2026-01-05T00:05:00Z", "completionTime": "2026-01-05T01:05:00Z"},
    }


GRID_HEAD = "time,site,price_usd_per_kwh,carbon_g_per_kwh,renewable_fraction,temperature_c"


def grid_rows(hours: int = 48, site: str = "west") -> list[str]:
    return [f"{iso(T0 + 3600 * h)},{site},{0.01 * (h % 24):.3f},{200 + h},0.5,-3.5" for h in range(hours)]


def as_text(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


SWF = "; Version: 2.2\n; UnixStartTime: 1767571200\n; MaxProcs: 64\n" + "".join(
    f" {i} {60 * i} 30 600 {procs} -1 -1 {procs} {asked} -1 1 3 2 -1 1 1 -1 -1\n"
    for i, procs, asked in ((1, 1, 900), (2, 8, -1), (3, 32, 900))
)  # fmt: skip


def cloudwatch_record(
    k: int, name: str = "nvidia_smi_power_draw", value: object = None, unit: str = "None", node: str = "n0", **change: object
) -> dict:
    """A metric stream record of the minute that ends at step ``k``; its sum is that of two readings."""
    dimensions = {"InstanceId": node, "index": "0", "name": "NVIDIA A100-SXM4-40GB", "arch": "Ampere"}
    return {
        "metric_stream_name": "all", "account_id": "123456789012", "region": "us-west-2", "namespace": "CWAgent", "metric_name": name,
        "dimensions": dimensions, "timestamp": 1000 * (T0 + 60 * k), "unit": unit,
        "value": {"max": 300.0, "min": 100.0, "sum": 400.0 + k if value is None else value, "count": 2.0, "p99": 300.0},
    } | change  # fmt: skip


AZURE_GROUP = "/SUBSCRIPTIONS/0000/RESOURCEGROUPS/RG/PROVIDERS"


def azure_record(k: int, resource: str = "MICROSOFT.COMPUTE/VIRTUALMACHINES/N0", name: str = "Percentage CPU", **change: object) -> dict:
    """A diagnostic settings record of the minute that ends at step ``k``."""
    values = {"count": 4, "total": 200.0 + 4 * k, "minimum": 40.0, "maximum": 90.0, "average": 50.0 + k}
    place = {"resourceId": f"{AZURE_GROUP}/{resource}", "time": iso(T0 + 60 * k).replace("Z", ".0000000Z"), "metricName": name}
    return values | place | {"timeGrain": "PT1M"} | change


def samples_table() -> bytes:
    """The answer of ``prometheus_answer`` in columns, one row a sample, in the order of the scrapes."""
    rows = [
        {"timestamp": time * 1000, "value": float(value), **{k: v for k, v in entry["metric"].items() if k != "UUID"}}
        for entry in prometheus_answer()["data"]["result"]
        for time, value in entry["values"]
    ]
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["timestamp"]))
    table = table.set_column(0, "timestamp", table["timestamp"].cast(pa.timestamp("ms", tz="UTC")))
    sink = io.BytesIO()
    pq.write_table(table, sink, write_page_checksum=True)
    return sink.getvalue()


CLEAN: dict[str, tuple[str, bytes]] = {
    "prometheus": ("answer.json", json.dumps(prometheus_answer()).encode()),
    "otlp": ("metrics.jsonl", as_text([json.dumps(otlp_line(k)) for k in range(STEPS)])),
    "ipmi": ("ipmi.txt", "".join(ipmi_block(n, k) for k in range(STEPS) for n in ("n0", "n1", "n2")).encode()),
    "slurm": ("sacct.txt", as_text([SACCT_HEAD, sacct_row("1"), sacct_row("1.batch"), sacct_row("2", State="CANCELLED by 1004")])),
    "kubernetes": ("jobs.json", json.dumps({"kind": "List", "items": [k8s_job("a"), k8s_job("b")]}).encode()),
    "grid": ("grid.csv", as_text([GRID_HEAD, *grid_rows()])),
    "swf": ("log.swf", SWF.encode()),
    "jobs_table": (
        "jobs.csv",
        b"job_id,submit_time,duration_s,gpus,workers,workload_class,team,project,max_watts\n"
        b"a,2026-01-05T00:00:00Z,600,0.5,1,training,t,p,\nb,2026-01-05T02:00:00+02:00,600,4,2,,,,800\n",
    ),
    "azure_monitor": ("PT1H.json", json.dumps({"records": [azure_record(k) for k in range(STEPS)]}).encode()),
    "samples_table": ("samples.parquet", samples_table()),
    "csv": (
        "meter.csv",
        as_text(["Zeit;Host;Leistung;Notiz", *(f"{iso(T0 + 3600 + STEP * k)};n{k % 2};0,5{k:02d};x" for k in range(STEPS))]),
    ),
    "prometheus_text": ("scrapes.prom", prometheus_text(prometheus_answer())),
    "cloudwatch": ("stream.jsonl", as_text([json.dumps(cloudwatch_record(k, node=n)) for k in range(STEPS) for n in ("n0", "n1")])),
}

CSV_MAPPING = {
    "delimiter": ";",
    "decimal": ",",
    "time": {"column": "Zeit"},
    "labels": {"node": "Host"},
    "values": {"Leistung": {"metric": "hw.power", "unit": "W"}},
}


HOURS = [iso(T0 + 3600 * h) for h in range(24)]
START = {"start": "2026-01-05"}
WEEKDAY = {"Year": 2026, "Month": 1, "Day": 5}
ZEUS = {"dataset": "cifar100", "network": ["a", "b"], "batch_size": 1024, "optimizer": "adam"}

# Reader of a public trace -> small table of its form, and the options that it needs.
TRACES: dict[str, tuple[pd.DataFrame, dict[str, object]]] = {
    "openb": (
        pd.DataFrame(
            {
                "name": ["p0", "p1", "p2"], "cpu_milli": [12000, 6000, 500], "memory_mib": [16384, 0, 512], "num_gpu": [1, 1, 0],
                "gpu_milli": [1000, 460, 0], "qos": ["LS", "BE", "LS"], "creation_time": [0, 60, 120], "deletion_time": [600, 4000, 500],
                "scheduled_time": [0.0, 61.0, 130.0],
            }
        ),
        START,
    ),
    "philly_gavel": (
        pd.DataFrame(
            {
                "vc": ["a", "a", "b"], "job_type": "LM (batch size 80)", "total_steps": [100, 200, 300], "arrival_time": [0.0, 6.5, 60.0],
                "scale_factor": [1, 2, 12],
            }
        ),
        START,
    ),
    "gaia": (pd.DataFrame({"arrival_time": [0.0, 0.5, 3.0], "length": [0.75, 19.0, 1.0], "cpus": [4, 2, 8]}), START),
    "eagle": (
        pd.DataFrame(
            {
                "job_id": [1, 1, 2], "user": "u", "account": "acc", "wallclock_req": 7200.0, "nodes_req": [10, 1, 2],
                "processors_req": [10, 4, 2], "gpus_req": [0, 2, 4], "submit_time": "2026-01-05 08:00:00",
                "start_time": "2026-01-05 08:01:00", "end_time": "2026-01-05 09:01:00", "run_time": 3600.0, "state": "COMPLETED",
            }
        ),
        {},
    ),
    "helios": (
        pd.DataFrame(
            {
                "vc": ["x"] * 12 + ["y"] * 12, "time": [f"2026-01-05 00:{m:02d}:00" for m in range(12)] * 2, "running_gpu_num": 3,
                "pending_gpu_num": [0, 1] * 12, "total_gpu_num": 16, "running_gpujob_num": 2, "pending_gpujob_num": 1,
            }
        ),
        {},
    ),
    "azure_vm": (pd.DataFrame({"cpu_usage": np.arange(24) + 6e6, "assigned_mem": 2e6}), START),
    "nab": (pd.DataFrame({"timestamp": [h.replace("T", " ")[:19] for h in HOURS], "value": np.arange(24) / 4.0}), {}),
    "azure_llm": (
        pd.DataFrame(
            {
                "TIMESTAMP": [f"2026-01-05 18:{m:02d}:{s:02d}.9799600" for m in range(4) for s in (3, 40)],
                "ContextTokens": range(8), "GeneratedTokens": 2,
            }
        ),
        {},
    ),
    "mooncake": (pd.DataFrame({"timestamp": [0, 100, 60_000, 185_000], "input_length": [7, 8, 9, 1], "output_length": 2}), START),
    "servegen": (
        pd.DataFrame({"chunk": [0] * 6 + [1] * 6, "timestamp": [600 * k for k in range(6)] * 2, "rate": np.arange(12) / 8, "cv": 0.5}),
        START,
    ),
    "burstgpt": (
        pd.DataFrame(
            {
                "Timestamp": [5, 45, 118, 200], "Model": ["ChatGPT", "GPT-4"] * 2, "Request tokens": [472, 1087, 10, 3],
                "Response tokens": [18, 230, 0, 1], "Total tokens": [490, 1317, 10, 4], "Log Type": "Conversation log",
            }
        ),
        START,
    ),
    "azure_functions": (
        pd.DataFrame(
            {"HashOwner": "o", "HashApp": "a", "HashFunction": ["f1", "f2"], "Trigger": "queue"} | {str(m): [m, 0] for m in range(1, 11)}
        ),
        START,
    ),
    "mlperf_power": (
        pd.DataFrame(
            {
                "system": "sys", "benchmark": "bert", "scenario": "Offline", "phase": "run_1",
                "Time": [f"01-05-2026 18:00:{s:02d}.364" for s in range(12)], "Watts": np.arange(12) + 600.25,
            }
        ),
        {},
    ),
    "kepler_models": (pd.DataFrame({"timestamp": [T0 + 3 * k for k in range(12)], "platform_power": 190.0 + np.arange(12)}), {}),
    "zeus": (pd.DataFrame({**ZEUS, "power_limit": [100, 125], "time_per_epoch": [11.5, 10.0], "average_power": [86.5, 91.0]}), {}),
    "acme": (pd.DataFrame({"file": "gpu_power", "curve": 0, "x": [15.4, 58.2, 60.0], "y": [0.0, 50.0, 100.0]}), {}),
    "ccf": (pd.DataFrame({"Architecture": ["Haswell", "Skylake"], "Min Watts": [1.9, 0.6], "Max Watts": 6.0, "GB/Chip": 27.3}), {}),
    "eia": (
        pd.DataFrame(
            {"timestamp": HOURS, "avg_CI": 222.3} | dict.fromkeys(("WND", "SUN", "WAT", "OIL", "NG", "COL", "NUC", "OTH"), 100.0)
        ),
        {},
    ),
    "electricitymaps": (
        pd.DataFrame(
            {
                "Datetime (UTC)": HOURS, "Zone Id": ["A"] * 12 + ["B"] * 12, "Carbon Intensity gCO₂eq/kWh (direct)": 238.71,
                "Carbon Intensity gCO₂eq/kWh (LCA)": 317.31, "Low Carbon Percentage": 44.72, "Renewable Percentage": 33.74,
                "Data Estimated": False,
            }
        ),
        {},
    ),
    "iso_price": (pd.DataFrame({"zone": "A", "Datetime (UTC)": HOURS, "Price (USD/MWh)": np.arange(24) * 5.0 - 6.0}), {}),
    "openmeteo": (
        pd.DataFrame(
            {
                "zone": "A", "time": [h[:16] for h in HOURS], "temperature_2m": np.arange(24) - 5.0, "relative_humidity_2m": 92,
                "cloudcover": 49, "windspeed_10m": 3.6, "utc_offset_seconds": -7200,
            }
        ),
        {},
    ),
    "sgip_moer": (pd.DataFrame({"time": HOURS, "moer": np.arange(24) / 64}), {}),
    "ercot_dam": (
        pd.DataFrame(
            {
                "Delivery Date": "01/05/2026", "Hour Ending": [f"{h:02d}:00" for h in range(1, 25)], "Repeated Hour Flag": "N",
                "Settlement Point": "HB_WEST", "Settlement Point Price": np.arange(24) - 3.0,
            }
        ),
        {},
    ),
    "wind": (pd.DataFrame({**WEEKDAY, "Hour": np.arange(24), "Minute": 0, "wind speed at 100m (m/s)": np.arange(24) / 2}), {}),
    "avert": (pd.DataFrame({"Month": 1, "Timestamp": np.arange(24), "CA": 1.11, "TE": np.arange(24) / 8 - 1}), START),
}  # fmt: skip


def table_bytes(frame: pd.DataFrame, kind: str) -> bytes:
    """A table as a file of ``kind`` parquet or csv."""
    if kind == "csv":
        return frame.to_csv(index=False).encode()
    out = io.BytesIO()
    frame.to_parquet(out, index=False)
    return out.getvalue()


for index, (trace, (table, _)) in enumerate(TRACES.items()):
    kind = ("csv", "parquet")[index % 2]
    CLEAN[trace] = (f"{trace}_A.{kind}", table_bytes(table, kind))
# Reader -> the options without which it cannot read its clean export.
CLEAN_OPTIONS: dict[str, dict[str, object]] = {trace: options for trace, (_, options) in TRACES.items()} | {"csv": {"mapping": CSV_MAPPING}}


@pytest.fixture
def traces() -> dict[str, tuple[pd.DataFrame, dict[str, object]]]:
    """Reader of a public trace -> a small table of its form, and options."""
    return TRACES


@pytest.fixture
def as_file():
    """A table as the bytes of a file of a kind."""
    return table_bytes


@pytest.fixture
def told(context):
    """The context that a reader needs for its clean export."""
    return lambda reader: replace(context, options=CLEAN_OPTIONS.get(reader, {}))


@pytest.fixture
def clean() -> dict[str, tuple[str, bytes]]:
    """Reader name -> file name and content of a clean export."""
    return CLEAN


@pytest.fixture
def make():
    """The makers of export parts."""
    return {
        "prometheus": prometheus_answer, "otlp": otlp_line, "ipmi": ipmi_block, "sacct": sacct_row, "k8s": k8s_job, "grid": grid_rows,
        "sacct_head": SACCT_HEAD, "grid_head": GRID_HEAD, "text": as_text, "t0": T0, "step": STEP, "steps": STEPS,
        "cloudwatch": cloudwatch_record,
        "azure": azure_record,
    }  # fmt: skip


@pytest.fixture
def context() -> ReadContext:
    nodes = {f"n{i}": NodeInfo("west", "west-a100", "A100", 1) for i in range(3)}
    return ReadContext("src", Inventory(nodes, shards_per_gpu=4))
