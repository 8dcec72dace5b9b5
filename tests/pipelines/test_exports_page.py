"""Every ingest line of docs/exports.md is run, on small exports of the names in it."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest

from pipelines import ingest as command
from pipelines.cli import compose_config
from telemetry.spool import Spool, Window

PAGE = (Path(__file__).parents[2] / "docs" / "exports.md").read_text()
LINES = [line for line in PAGE.splitlines() if line.startswith("python -m pipelines.ingest")]
START = pd.Timestamp("2026-01-05T00:00:00Z")
MACHINE = "/subscriptions/0/resourceGroups/r/providers/Microsoft.Compute/virtualMachines/n1"
STAT = {"Metric": {"Namespace": "CWAgent", "MetricName": "nvidia_smi_power_draw", "Dimensions": [
    {"Name": "InstanceId", "Value": "i-0abc"}, {"Name": "index", "Value": "0"},
]}, "Period": 300, "Stat": "Average"}  # fmt: skip
ANSWER = {
    "MetricDataQueries": [{"Id": "m0", "MetricStat": STAT}],
    "MetricDataResults": [{"Id": "m0", "Timestamps": ["2026-01-05T00:00:00+00:00"], "Values": [250.0], "StatusCode": "Complete"}],
}
RECORD = {
    "time": "2026-01-05T00:00:00Z",
    "resourceId": MACHINE.upper(),
    "metricName": "Percentage CPU",
    "timeGrain": "PT1M",
    "average": 5.0,
}
STREAM = {
    "namespace": "AWS/EC2", "metric_name": "CPUUtilization", "dimensions": {"InstanceId": "i-0abc"}, "timestamp": 1_767_571_200_000,
    "value": {"sum": 10.0, "count": 2.0}, "unit": "Percent",
}  # fmt: skip
REST = {
    "interval": "PT5M",
    "value": [{"id": f"{MACHINE}/providers/Microsoft.Insights/metrics/Percentage CPU", "name": {"value": "Percentage CPU"},
               "unit": "Percent", "timeseries": [{"data": [{"timeStamp": "2026-01-05T00:00:00Z", "average": 5.0}]}]}],
}  # fmt: skip
IPMI = "=== n1 2026-01-05T00:10:00Z\n    Instantaneous power reading:                   350 Watts\n"
HOST = [{"key": "host.name", "value": {"stringValue": "n1"}}]
OTLP = {"resourceMetrics": [{"resource": {"attributes": HOST}, "scopeMetrics": [{"metrics": [
    {"name": "hw.power", "unit": "W", "gauge": {"dataPoints": [{"timeUnixNano": "1767571800000000000", "asDouble": 99.0}]}},
]}]}]}  # fmt: skip
GPUS = {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]}
META = {"name": "a", "creationTimestamp": "2026-01-05T00:00:00Z"}
SACCT = (
    "JobID|State|Submit|Start|End|ElapsedRaw|ReqTRES\n"
    "1|COMPLETED|2026-01-05T00:00:00|2026-01-05T00:00:00|2026-01-05T01:00:00|3600|gres/gpu=1\n"
)


def block(language: str, holding: str) -> str:
    """The code block of a language that holds a text."""
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL) if holding in text)


FILES = {
    "stream.jsonl": json.dumps(STREAM),
    "export.json": json.dumps(ANSWER),
    "records.jsonl": json.dumps(RECORD),
    "azure.json": json.dumps(REST, indent=1),
    "ipmi.txt": IPMI,
    "sacct.txt": SACCT,
    "jobs.json": json.dumps({"items": [{"metadata": META, "spec": {"template": {"spec": GPUS}}}]}),
    "pods.json": json.dumps({"items": [{"kind": "Pod", "metadata": META, "spec": GPUS}]}),
    "meter.csv": block("csv", "Zeit"),
    "meter.yaml": block("yaml", "Zeit"),
}
SPOOLS = {"spool/aws": ("json", ANSWER), "spool/azure": ("jsonl", REST), "spool/bmcs": ("txt", IPMI), "spool/local": ("jsonl", OTLP)}


@pytest.mark.parametrize("line", LINES, ids=[re.search(r"path: ([\w./]+)", line).group(1) for line in LINES])
def test_the_line_reads_an_export_of_that_name(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    for name, (suffix, content) in SPOOLS.items():
        data = content if isinstance(content, str) else json.dumps(content)
        Spool(name).write(Window(START, START + pd.Timedelta("1h")), suffix, data.encode())
    monkeypatch.setattr(sys, "argv", ["ingest", *shlex.split(line)[3:], "lake.root=lake"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    assert re.search(r"(samples|jobs) +[1-9]", printed.out)


def test_there_is_a_line_for_every_export_of_the_page():
    named = " ".join(LINES)
    assert all(f"path: {name}," in named or f"mapping: {name}" in named for name in (*FILES, *SPOOLS))


@pytest.mark.parametrize("line", [line for line in PAGE.splitlines() if re.match(r"python -m pipelines\.(collect|sample_\w+) ", line)])
def test_the_live_lines_compose(line):
    words = shlex.split(line)
    compose_config(words[2].removeprefix("pipelines."), words[3:])
