"""The data sets of the forecast benchmark, each on a 10-minute grid: public traces and the power of the embedded sample."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from pipelines.ingest import ingest
from pipelines.stages.real_traces import HELIOS, SERVEGEN, SERVEGEN_START
from telemetry.errors import InputError
from telemetry.readers.public_traces import read_azure_vm, read_helios_demand, read_nab, read_servegen_rates
from telemetry.series import SeriesConfig, cut_series

FREQ = "10min"
AZURE_VM = "e_cloud/azure_v2_vm_300s.parquet"
AZURE_VM_START = "2019-04-01"  # the source has no dates
NAB_FOLDER = "e_cloud/NAB/realAWSCloudwatch"
SAMPLE_SOURCE = "conf/source/sample.yaml"
ROOT = Path(__file__).parents[1]
# Rules that choose series look at the first part of the history alone, which no test window of the benchmark reaches.
CHOOSING_SHARE = 0.7
LEAST_ACTIVE_SHARE = 0.1
LEAST_DAYS = 8


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        name: on the command line and in results.
        title: what a reader of the table sees.
        load: folder of the public traces and a folder for what has to be made -> ``unique_id, ds, y`` and covariates.
        public: whether it comes from the public traces.
        headline: whether it counts in the geometric means.
    """

    name: str
    title: str
    load: Callable[[Path, Path], pd.DataFrame]
    public: bool = True
    headline: bool = True


def traces_root() -> Path:
    """Folder of the public traces: ``JOULEWISE_TRACES``, else ``../shared/traces`` beside the repository."""
    return Path(os.environ.get("JOULEWISE_TRACES", ROOT.parent / "shared" / "traces"))


def helios(traces: Path, made: Path) -> pd.DataFrame:
    """GPUs that run or are waited for, by virtual cluster."""
    return read_helios_demand(traces / HELIOS, freq=FREQ)[0]


def helios_running(traces: Path, made: Path) -> pd.DataFrame:
    """GPUs that run, by virtual cluster, with the waiting GPUs and jobs as past covariates."""
    return read_helios_demand(traces / HELIOS, freq=FREQ, quantity="running")[0]


def servegen(traces: Path, made: Path, share: float = CHOOSING_SHARE) -> pd.DataFrame:
    """Requests per second of the clients that ask anything in at least a tenth of the windows of the first ``share`` of the history.

    The others are silent but for a few bursts: any loss scaled by their own changes would be that of one or two rows.
    """
    rates, _ = read_servegen_rates(traces / SERVEGEN, start=SERVEGEN_START)
    begin, end = rates["ds"].min(), rates["ds"].max()
    first = rates[rates["ds"] <= begin + share * (end - begin)]
    active = (first["y"] > 0).groupby(first["unique_id"]).mean()
    kept = active[active >= LEAST_ACTIVE_SHARE].index
    return rates[rates["unique_id"].isin(kept)].reset_index(drop=True)


def azure_vm(traces: Path, made: Path) -> pd.DataFrame:
    """CPU use of a fleet of virtual machines."""
    return read_azure_vm(traces / AZURE_VM, start=AZURE_VM_START, freq=FREQ)[0]


def nab(traces: Path, made: Path) -> pd.DataFrame:
    """CloudWatch metrics of at least eight days; the files cover different days, so origins count back from each end."""
    files = sorted((traces / NAB_FOLDER).glob("*.csv"))
    if not files:
        raise InputError("no CSV files", where=str(traces / NAB_FOLDER), remedy="give the folder of the traces")
    parts = [read_nab(file, freq=FREQ)[0] for file in files]
    long = [part for part in parts if part["ds"].iloc[-1] - part["ds"].iloc[0] >= pd.Timedelta(days=LEAST_DAYS)]
    return pd.concat(long, ignore_index=True)


def sample_power(traces: Path, made: Path) -> pd.DataFrame:
    """Watts of nodes, pools and sites of the embedded sample, which is synthetic; cut anew when ``made`` does not hold them."""
    file = made / "sample_power.parquet"
    if not file.is_file():
        source = yaml.safe_load((ROOT / SAMPLE_SOURCE).read_text())
        source["inventory"] = str(ROOT / source["inventory"])
        source["files"] = [{**entry, "path": str(ROOT / entry["path"])} for entry in source["files"]]
        lake, _ = ingest(source, {"root": str(made / "lake")}, replace=True)
        series = cut_series(["power"], lake.table("samples"), None, SeriesConfig(freq=FREQ)).frame
        fresh = file.with_suffix(".new")
        series.to_parquet(fresh)
        os.replace(fresh, file)
    return pd.read_parquet(file)


DATA_SETS: dict[str, DataSet] = {
    one.name: one
    for one in (
        DataSet("helios", "Helios GPU demand", helios),
        DataSet("servegen", "ServeGen request rates", servegen),
        DataSet("azure_vm", "Azure-VM CPU use", azure_vm),
        DataSet("nab", "NAB CloudWatch", nab),
        DataSet("sample_power", "sample power (synthetic)", sample_power, public=False),
        DataSet("helios_running", "Helios running GPUs, queue known", helios_running, headline=False),
    )
}


def check_traces(traces: Path) -> None:
    """
    Raises:
        InputError: the folder of the public traces is not there.
    """
    if not traces.is_dir():
        raise InputError("the public traces are not there", where=str(traces), remedy="set JOULEWISE_TRACES to their folder")


def load_data(name: str, traces: Path, made: Path) -> pd.DataFrame:
    """Series of a data set: ``unique_id, ds, y`` and covariates.

    Raises:
        InputError: unknown name, or public traces that are not there.
    """
    if name not in DATA_SETS:
        raise InputError(f"unknown data set '{name}'", where="--data", allowed=", ".join(DATA_SETS))
    data = DATA_SETS[name]
    if data.public:
        check_traces(traces)
    made.mkdir(parents=True, exist_ok=True)
    return data.load(traces, made)
