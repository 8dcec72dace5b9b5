"""Amazon CloudWatch by ``GetMetricData``: every metric that the reader knows, of the machines and services that ``ListMetrics`` names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from telemetry.collectors.base import UnavailableError
from telemetry.errors import InputError
from telemetry.inventory import Inventory
from telemetry.readers.cloudwatch import METRICS_READ, metric_named

# Quota of one GetMetricData call; more points than one call may return come on further pages.
QUERIES_PER_CALL = 500
# Answers that a later run may not get; botocore has asked again before.
PASSING = ("Throttl", "LimitExceeded", "Internal", "Unavailable", "Connection", "Timeout", "Connect")


@dataclass(frozen=True)
class CloudWatchCollector:
    """Credentials come from the vendor's chain (environment, profile, role of the machine); ``cloudwatch:ListMetrics`` and
    ``cloudwatch:GetMetricData`` must be allowed.

    Attributes:
        region: AWS region; each is asked by itself.
        namespaces: where metrics are looked for.
        dimensions: ``NAME=VALUE``: only series that carry all of them.
        period_s: length of a period, a multiple of 60; CloudWatch keeps periods of 60 s for 15 days, of 300 s for 63 days.
        profile: of the shared credentials file; '' = the chain's own choice.
        endpoint_url: of a private endpoint; '' = the region's.
        timeout_s: for one answer.
        attempts: calls in all before giving up, by botocore's standard mode (back-off, and only where a fault may pass).
    """

    region: str
    namespaces: tuple[str, ...] = ("AWS/EC2", "CWAgent", "ContainerInsights", "AWS/ApplicationELB")
    dimensions: tuple[str, ...] = ()
    period_s: int = 300
    profile: str = ""
    endpoint_url: str = ""
    timeout_s: float = 30.0
    attempts: int = 5

    tested: ClassVar[str] = "moto, which stands in for CloudWatch"
    reader: ClassVar[str] = "cloudwatch"
    suffix: ClassVar[str] = "json"

    def __post_init__(self) -> None:
        if not self.region:
            raise InputError(f"{self.region!r}", where="collector.region", allowed="such as us-west-2")
        if self.period_s <= 0 or self.period_s % 60:
            raise InputError(f"{self.period_s}", where="collector.period_s", allowed="a multiple of 60 s")
        if not self.namespaces:
            raise InputError("no namespace", where="collector.namespaces", allowed="such as AWS/EC2, CWAgent, ContainerInsights")
        wrong = [text for text in self.dimensions if not all(text.partition("="))]
        if wrong:
            raise InputError(f"{wrong[0]!r}", where="collector.dimensions", allowed="NAME=VALUE")
        if not self.timeout_s > 0 or self.attempts < 1:
            raise InputError(f"timeout_s {self.timeout_s}, attempts {self.attempts}", where="collector", allowed="more than 0, from 1")

    def fetch(self, start: pd.Timestamp, end: pd.Timestamp) -> bytes:
        """``{Region, MetricDataQueries, MetricDataResults}``: periods that begin at ``start <= time < end``.

        Raises:
            InputError: no credentials, refused, unreachable, or nothing to ask for.
        """
        client, faults = self._client()
        try:
            queries = self._queries(client)
            results = [result for part in _parts(queries) for result in _asked(client, part, start, end)]
        except faults as error:
            raise self._told(error) from error
        incomplete = {result["StatusCode"] for result in results} - {"Complete", "PartialData"}
        if incomplete:
            raise InputError(
                f"results with status {', '.join(sorted(incomplete))}", where=self._place, remedy="repeat, or check the access"
            )
        return json.dumps({"Region": self.region, "MetricDataQueries": queries, "MetricDataResults": results}).encode()

    @property
    def _place(self) -> str:
        return f"CloudWatch {self.region}"

    def _client(self) -> tuple[Any, tuple[type[Exception], ...]]:
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise InputError("boto3 is not installed", where=self._place, remedy="pip install -e '.[cloud]'") from error
        retries: dict[str, Any] = {"mode": "standard", "total_max_attempts": self.attempts}
        config = Config(retries=retries, connect_timeout=self.timeout_s, read_timeout=self.timeout_s)
        try:
            session = boto3.Session(profile_name=self.profile or None, region_name=self.region)
            client = session.client("cloudwatch", config=config, endpoint_url=self.endpoint_url or None)
        except (BotoCoreError, ValueError) as error:
            raise self._told(error) from error
        return client, (BotoCoreError, ClientError)

    def _told(self, error: Exception) -> InputError:
        """The fault without what the service says of the caller."""
        answer = getattr(error, "response", None)
        code = answer.get("Error", {}).get("Code", "") if isinstance(answer, dict) else ""
        kind = code or type(error).__name__
        remedy = "check the settings of the collector"
        if "Credentials" in kind or "Profile" in kind or "Token" in kind:
            remedy = "give credentials by the vendor's chain: a profile, a role of the machine, or the environment"
        elif "Denied" in kind or "Unauthorized" in kind or "Signature" in kind:
            remedy = "allow cloudwatch:ListMetrics and cloudwatch:GetMetricData to this identity"
        elif any(word in kind for word in PASSING):
            return UnavailableError(f"not answered: {kind}", where=self._place, remedy="check the region and the way to it")
        return InputError(f"not answered: {kind}", where=self._place, remedy=remedy)

    def _queries(self, client: Any) -> list[dict[str, Any]]:
        """One query per series that the reader would read."""
        chosen = [{"Name": name, "Value": value} for name, _, value in (text.partition("=") for text in self.dimensions)]
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        for namespace in self.namespaces:
            for name in METRICS_READ:
                metric = metric_named(namespace, name)
                # Their names are common words: elsewhere than in the agent's namespaces they are another thing.
                if metric is None or (namespace.startswith("AWS/") and metric.namespace != namespace):
                    continue
                for page in client.get_paginator("list_metrics").paginate(Namespace=namespace, MetricName=name, Dimensions=chosen):
                    for series in page["Metrics"]:
                        dimensions = {item["Name"]: item["Value"] for item in series["Dimensions"]}
                        if metric.labels(dimensions, self.region, Inventory(), unit="") is not None:
                            key = (namespace, name, *sorted(dimensions.items()))
                            stat = {"Metric": series, "Period": self.period_s, "Stat": metric.statistic}
                            found[key] = {"MetricStat": stat, "ReturnData": True}
        if not found:
            raise InputError(
                "no metric that is read",
                where=f"{self._place}, {', '.join(self.namespaces)}",
                allowed=", ".join(METRICS_READ),
                remedy="check collector.namespaces and collector.dimensions, and that the agent reports GPUs",
            )
        return [{"Id": f"m{index}", **found[key]} for index, key in enumerate(sorted(found))]


def _parts(queries: Sequence[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    for first in range(0, len(queries), QUERIES_PER_CALL):
        yield queries[first : first + QUERIES_PER_CALL]


def _asked(client: Any, queries: Sequence[dict[str, Any]], start: pd.Timestamp, end: pd.Timestamp) -> list[dict[str, Any]]:
    """Results of one call, its pages joined by query."""
    joined: dict[str, dict[str, Any]] = {}
    pages = client.get_paginator("get_metric_data").paginate(
        MetricDataQueries=list(queries), StartTime=start.to_pydatetime(), EndTime=end.to_pydatetime(), ScanBy="TimestampAscending"
    )
    for page in pages:
        for result in page["MetricDataResults"]:
            own = joined.setdefault(result["Id"], {"Id": result["Id"], "Label": result.get("Label", ""), "Timestamps": [], "Values": []})
            own["Timestamps"] += [pd.Timestamp(time).tz_convert("UTC").isoformat() for time in result["Timestamps"]]
            own["Values"] += result["Values"]
            own["StatusCode"] = result["StatusCode"]
    return list(joined.values())
