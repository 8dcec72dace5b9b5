"""``source=traces``: every file of the public traces by its reader, no row lost silently, and values that were worked out apart."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipelines.cli import build, compose_config
from pipelines.ingest import FileConfig, SourceConfig
from telemetry.quality import FLAWS
from telemetry.readers import READERS, ReadContext, ReadResult
from telemetry.schema import validate

TRACES = Path(os.environ.get("JOULEWISE_TRACES", Path(__file__).parents[2] / ".." / "shared" / "traces"))
pytestmark = pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not there (JOULEWISE_TRACES)")

DROPS = ("unparseable", "sentinel", "negative_power", "implausible_power", "duplicate")
# Columns of values that a file has, so cells that must be accounted for; by reader, or by file where a reader reads several.
VALUES = {
    "helios": 5, "azure_vm": 2, "nab": 1, "servegen": 1, "mlperf_power": 1, "eia": 9, "electricitymaps": 4, "iso_price": 1, "openmeteo": 4,
    "sgip_moer": 1, "ercot_dam": 1, "wind": 1, "avert": 17, "azure_functions": 1440, "zeus": 2, "acme": 1, "ccf": 3,
    "openb_node_list_all_node.parquet": 3, "gavel_simulation_throughputs_isolated.parquet": 1,
    "kepler_nx12_preprocess_abs_default_acpi_Basic.parquet": 1, "kepler_nx12_preprocess_abs_default_rapl_Basic.parquet": 4,
    "azfunc_example_durations.csv": 11, "azfunc_example_memory.csv": 10, "zeus_summary_train.csv": 1, "acme_cluster_summary.csv": 27,
    "ccf_coefficients-gcp-embodied-mean.csv": 1, "ccf_grid-emissions-factors-aws.csv": 1, "ccf_grid-emissions-factors-azure.csv": 1,
    "ccf_grid-emissions-factors-gcp.csv": 1,
}  # fmt: skip
# Rows that a flaw drops before they have cells: one row of too many fields.
RAGGED = {"ccf_grid-emissions-factors-azure.csv": 1}


def configured() -> dict[str, FileConfig]:
    config = build(SourceConfig, compose_config("ingest", ["source=traces", f"source.root={TRACES}"]).source, "source")
    return {Path(file.path).name: file for file in config.files}


FILES = configured()


@cache
def read(name: str, **options: object) -> ReadResult:
    file = FILES[name]
    context = ReadContext(name, options={**file.options, **options})
    return READERS[file.reader].read(Path(file.path), context)


def rows_of(path: Path) -> int:
    return pq.read_metadata(path).num_rows if path.suffix == ".parquet" else len(path.read_text().splitlines()) - 1


def raw(name: str) -> pd.DataFrame:
    path = Path(FILES[name].path)
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def value(name: str, time: str, metric: str, **labels: str) -> float:
    frame = read(name).tables["samples"]
    found = frame[(frame["time"] == pd.Timestamp(time)) & (frame["metric"] == metric)]
    for column, label in labels.items():
        found = found[found[column] == label]
    assert len(found) == 1
    return float(found["value"].iloc[0])


def test_every_table_of_the_folder_is_in_the_configuration():
    there = {p.name for p in TRACES.rglob("*") if p.suffix in (".parquet", ".csv") and "_head" not in p.parts and "LICENSES" not in p.parts}
    texts = {"mlperf_train40_smc_1_8node_phases.parquet", "mlperf_train40_smc_1_8node_nodefiles.parquet"}
    assert there - set(FILES) == texts
    assert {file.reader for file in FILES.values()} >= {name for name, reader in READERS.items() if "whole public file" in reader.tested}


@pytest.mark.parametrize("name", list(FILES))
def test_no_row_is_lost_silently(name):
    file, result = FILES[name], read(name)
    ((table, frame),) = result.tables.items()
    validate(table, frame, where=name)
    rows, flaws, notes = rows_of(Path(file.path)), result.quality.total(name), result.quality.notes.get(name, {})
    assert set(flaws) <= set(FLAWS)
    dropped = sum(flaws.get(flaw, 0) for flaw in DROPS)
    left_out = sum(count for what, count in notes.items() if what.endswith(("left out", "that are no reading", "not whole")))
    if file.reader in ("azure_llm", "mooncake"):
        requests = frame[frame["metric"] == "http.server.request.rate"]["value"].sum() * 60
        assert round(requests, 6) + left_out + dropped == rows
    elif table == "jobs":
        assert len(frame) + left_out + dropped == rows
    else:
        cells = (rows - RAGGED.get(name, 0)) * VALUES.get(name, VALUES.get(file.reader, 0))
        assert cells > 0
        assert len(frame) + left_out + dropped - RAGGED.get(name, 0) == cells


def test_flaws_of_the_files_are_those_that_were_counted_by_hand():
    """Each by plain pandas on the file as it is."""
    smc = raw("mlperf_train40_smc_1_8node_watts.parquet")
    smc = smc[smc["key"] == "power_reading"]
    step = smc.groupby(["system", "benchmark", "run", "node"], sort=False)["time_ms"].diff()
    found = read("mlperf_train40_smc_1_8node_watts.parquet").quality.total()
    assert found["out_of_order"] == (step < 0).sum() > 0
    assert found["negative_power"] == ((smc["value"] < 0) & (smc["value"] != -1)).sum() > 0
    assert found["sentinel"] == (smc["value"] == -1).sum() > 0
    a100 = raw("mlperf_inf30_a100x8_watts.parquet")["Watts"]
    assert read("mlperf_inf30_a100x8_watts.parquet").quality.total() == {"sentinel": (a100 == -1).sum()}
    assert read("sgip_moer_PGE.parquet").quality.total()["duplicate"] == raw("sgip_moer_PGE.parquet")["time"].duplicated().sum() > 0
    pjm = raw("eia_2022_PJM.parquet")
    assert read("eia_2022_PJM.parquet").quality.total()["sentinel"] == pjm.isna().sum().sum() > 0
    assert read("openb_pod_list_default.parquet").quality.notes["openb_pod_list_default.parquet"][
        "pods that were never scheduled, left out"
    ] == (raw("openb_pod_list_default.parquet")["scheduled_time"].isna().sum())
    weather = read("openmeteo_train.parquet").tables["samples"]
    assert (weather[weather["metric"] == "weather.temperature"]["value"] == -1).sum() == (
        raw("openmeteo_train.parquet")["temperature_2m"] == -1
    ).sum()
    for source in ("iso_price_train.parquet", "electricitymaps_ci_train.parquet", "ercot_dam_2021.parquet", "openmeteo_train.parquet"):
        assert read(source).quality.total() == {}


def test_values_times_and_units_worked_out_apart():
    # ERCOT's highest price of the winter storm: hour ending 19 on 17 February, Central Standard Time (UTC-6), 9052.53 USD/MWh.
    assert value("ercot_dam_2021.parquet", "2021-02-18T00:00Z", "grid.price", service="LZ_AEN") == pytest.approx(9.05253)
    # The second hour ending 2:00 of 7 November is standard time: 07:00 UTC; 27.78 USD/MWh.
    assert value("ercot_dam_2021.parquet", "2021-11-07T07:00Z", "grid.price", service="HB_BUSAVG") == pytest.approx(0.02778)
    # California's local midnight at the stated UTC-7: 9.0 degrees, 3.6 km/h.
    place = {"service": "US-CAL-CISO"}
    assert value("openmeteo_train.parquet", "2021-01-01T07:00Z", "weather.temperature", **place) == 9.0
    assert value("openmeteo_train.parquet", "2021-01-01T07:00Z", "weather.wind_speed", **place) == pytest.approx(1.0)
    assert value("electricitymaps_ci_train.parquet", "2021-01-01T00:00Z", "grid.carbon_intensity", **place) == 317.31
    assert value("electricitymaps_ci_train.parquet", "2021-01-01T00:00Z", "grid.renewable_fraction", **place) == pytest.approx(0.3374)
    assert value("iso_price_train.parquet", "2020-01-01T00:00Z", "grid.price", **place) == pytest.approx(0.036667705)
    assert value("eia_2022_CISO.parquet", "2022-01-01T00:00Z", "grid.generation", device="wind") == 3130e6
    assert value("sgip_moer_PGE.parquet", "2019-12-31T00:05Z", "grid.carbon_intensity.marginal") == pytest.approx(244.64066042031)
    region = {"service": "CA"}
    assert value("epa_avert_2023_co2_lb_per_kwh.parquet", "2023-01-01T01:00Z", "grid.carbon_intensity.marginal", **region) == pytest.approx(
        0.94 * 453.59237
    )
    assert value("nrel_wind_100m_2019.parquet", "2019-01-01T00:15Z", "weather.wind_speed") == 14.01
    assert value("ec2_cpu_utilization_24ae8d.csv", "2014-02-14T14:35Z", "system.cpu.utilization", node="24ae8d") == pytest.approx(0.00134)
    assert value("elb_request_count_8c0756.csv", "2014-04-10T00:04Z", "http.server.request.rate") == pytest.approx(94 / 300)
    assert value("azure_v2_vm_300s.parquet", "2019-01-01T00:05Z", "source.value", device="assigned_mem") == 2002296.0
    assert value("azfunc_example_invocations.csv", "2019-07-15T00:01Z", "http.server.request.rate", service="c13acdc7567b2259") == 5 / 60
    run = {"service": "3d-unet-99.9/Offline/ranging", "node": "A100-PCIe-80GBx8_TRT_MaxQ"}
    assert value("mlperf_inf30_a100x8_watts.parquet", "2023-02-28T01:15:15.363Z", "hw.power", **run) == 714.35
    assert value("kepler_nx12_preprocess_abs_default_acpi_Basic.parquet", "2023-09-19T09:27:46Z", "hw.power", device="") == 182.0


def test_requests_tokens_and_queues_agree_with_the_files():
    code = raw("AzureLLMInferenceTrace_code.parquet")
    minute = pd.to_datetime(code["TIMESTAMP"]).between("2023-11-16 18:20:00", "2023-11-16 18:20:59.9999999")
    for metric, total in (("http.server.request.rate", minute.sum()), ("gen_ai.input_tokens.rate", code["ContextTokens"][minute].sum())):
        assert value("AzureLLMInferenceTrace_code.parquet", "2023-11-16T18:21Z", metric, service="code") * 60 == pytest.approx(total)
    rates = raw("servegen_m-small_trace.parquet")
    own = rates[(rates["chunk"] == 17) & (rates["timestamp"] == 600_000)]["rate"].iloc[0]
    end = str(pd.Timestamp("2024-01-01", tz="UTC") + pd.Timedelta(seconds=600_600))
    assert value("servegen_m-small_trace.parquet", end, "http.server.request.rate", service="m-small/client-17") == own
    helios = raw("helios_earth_vc_sequence.parquet")
    at = helios[(helios["vc"] == "vcpDC") & (helios["time"] == "2020-05-17 12:34:00")].iloc[0]
    for column, metric in (("running_gpu_num", "scheduler.gpus.running"), ("pending_gpujob_num", "scheduler.jobs.pending")):
        assert value("helios_earth_vc_sequence.parquet", "2020-05-17T12:34Z", metric, service="vcpDC") == at[column]


def test_jobs_agree_with_the_files():
    pods = read("openb_pod_list_default.parquet").tables["jobs"].set_index("job_id")
    pod = pods.loc["openb-pod-0001"]
    assert (pod["gpus"], pod["cpus"], pod["memory_gib"], pod["project"]) == (0.46, 6.0, 12.0, "LS")
    assert pod["submit_time"] == pod["start_time"] == pd.Timestamp("2023-01-01", tz="UTC") + pd.Timedelta(seconds=427_061)
    assert pod["duration_s"] == 12_902_960 - 427_061
    eagle = read("sample_eagle_data.csv").tables["jobs"].set_index("job_id").loc["532209"]
    assert (eagle["workers"], eagle["cpus"], eagle["duration_s"], eagle["requested_duration_s"]) == (10, 1.0, 99_825.0, 172_800.0)
    assert eagle["end_time"] - eagle["start_time"] == pd.Timedelta(seconds=99_825)
    speeds = raw("gavel_simulation_throughputs_isolated.parquet")
    speed = speeds[
        (speeds["worker_type"] == "v100") & (speeds["job_type"] == "Transformer (batch size 128)") & (speeds["scale_factor"] == 1)
    ]
    philly = read("philly_gavel_seed0_vcs.parquet").tables["jobs"].set_index("job_id").loc["0e4a51-00000"]
    assert philly["duration_s"] == pytest.approx(95_121 / speed["throughput"].iloc[0])
    machine = read("azure_100k.parquet").tables["jobs"].iloc[0]
    assert machine["duration_s"] in (2_700, 68_700)  # two of 0.75 and 19.08 hours come at hour 0


def test_reference_agrees_with_the_files():
    sweep = read("zeus_summary_power_v100.csv").tables["reference"].set_index(["item", "quantity"])["value"]
    item = "dataset=cifar100,network=shufflenetv2,batch_size=1024,optimizer=adam,power_limit=100"
    assert sweep[item, "time_per_epoch"] == 11.086666666666668
    assert sweep[item, "average_power"] == 91.0042349567595
    factors = read("ccf_grid-emissions-factors-azure.csv").tables["reference"].set_index("item")["value"]
    assert factors["Region=East US"] == 0.000415755
    assert factors.max() < 0.001  # 000402 of Germany West Central has lost its decimal point, and would be 402 t/kWh
    curves = read("acme_cdf_seren.parquet").tables["reference"]
    assert len(curves) == 14_000


def test_prices_called_utc_lag_by_the_zone_and_an_option_sets_them_right():
    """Prices follow what the grid burns: they fit the carbon intensity best when nothing is shifted."""
    name = "iso_price_train.parquet"
    carbon = read("electricitymaps_ci_train.parquet").tables["samples"]
    carbon = carbon[carbon["metric"] == "grid.carbon_intensity"].set_index("time")

    def best_lag(zone: str, clock: str) -> int:
        prices = read(name, clock=clock).tables["samples"].set_index("time")
        price = prices[prices["service"] == zone]["value"].clip(-0.05, 0.3)
        intensity = carbon[carbon["service"] == zone]["value"]
        hours = range(-12, 13)
        fits = [price.set_axis(price.index - pd.Timedelta(hours=lag)).corr(intensity) for lag in hours]
        return hours[int(np.argmax(fits))]

    assert best_lag("US-CAL-CISO", "stated") in (7, 8)
    assert best_lag("US-NY-NYIS", "stated") in (4, 5)
    assert abs(best_lag("US-CAL-CISO", "local_is_utc")) <= 1
    assert abs(best_lag("US-NY-NYIS", "local_is_utc")) <= 1
