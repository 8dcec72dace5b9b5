"""Readers of public grid and weather series as samples, one zone a service; stamped at the beginning of the step that a value holds for.

The canonical grid table needs price and carbon together; these sources hold one of them each, so they become samples that are joined later
(``public_traces.read_public_grid`` joins three of them from their files).
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from telemetry.errors import InputError
from telemetry.raw import Labels
from telemetry.readers.base import Mapped
from telemetry.readers.trace_file import START, ZONES, SampleColumns, Trace, TraceReader
from telemetry.schema import UTC

ZONE = "zone that the file is of; default: the last part of its name"
FUELS = {
    "WND": "wind", "SUN": "solar", "WAT": "water", "OIL": "oil", "NG": "gas", "COL": "coal", "NUC": "nuclear", "OTH": "other",
}  # fmt: skip
# Share of the generation above which a fuel does not stop in a whole zone.
STEADY_SHARE = 0.05
ERCOT_CLOCK = "America/Chicago"


def _labels(metric: str, unit: str, sites: Mapping[str, str], device: str = ""):
    return lambda zone: Labels(metric=metric, service=zone, site=sites.get(zone, zone), device=device, unit=unit, native_unit=unit)


class GridTraceReader(TraceReader):
    """A table of zones: ``values`` are its columns as ``(metric, unit, device)``."""

    zone: str = ""
    values: Mapping[str, tuple[str, str, str]] = {}

    def mapping(self) -> tuple[Mapped, ...]:
        labels = f"service = {self.zone}" if self.zone else "service = zone"
        return tuple(
            Mapped(name, metric, unit, labels + (f", device = {device}" if device else ""))
            for name, (metric, unit, device) in self.values.items()
        )

    def samples(self, trace: Trace, times: pd.Series, zones: pd.Series | str, sites: Mapping[str, str]) -> dict[str, pd.DataFrame]:
        """Samples of the columns in ``values``."""
        columns = SampleColumns(trace)
        for name, (metric, unit, device) in self.values.items():
            columns.add(trace.frame[name], times, zones, _labels(metric, unit, sites, device))
        return columns.tables()


class EiaReader(GridTraceReader):
    """Hourly generation by fuel and average carbon intensity of one US balancing authority (EIA-930, via dc-rl)."""

    name = "eia"
    reads = "EIA-930 hourly generation by fuel (MW) and avg_CI (g/kWh) (.parquet, .csv)"
    options = {"zone": ZONE}  # noqa: RUF012
    values = {  # noqa: RUF012
        "avg_CI": ("grid.carbon_intensity", "g/kWh", ""),
        **{name: ("grid.generation", "MW", fuel) for name, fuel in FUELS.items()},
    }
    flaws = "the intensity was computed by dc-rl, and is wrong where a fuel reads 0 that always runs (noted)"

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        trace.require("timestamp", *self.values)
        zone = str(trace.option("zone", trace.stem.rpartition("_")[2]))
        fuels = trace.frame[list(FUELS)].apply(pd.to_numeric, errors="coerce").astype(float)
        steady = fuels.median() > STEADY_SHARE * fuels.median().sum()
        trace.note("hours in which a fuel that always runs reads 0, kept", int((fuels.loc[:, steady] == 0).any(axis=1).sum()))
        return self.samples(trace, trace.iso("timestamp"), zone, {})


class ElectricityMapsReader(GridTraceReader):
    """Hourly carbon intensity, life cycle and direct, and shares of renewable and low-carbon power (Electricity Maps)."""

    name = "electricitymaps"
    reads = "Electricity Maps hourly table (.parquet, .csv)"
    options = {"zones": ZONES}  # noqa: RUF012
    zone = "Zone Id"
    values = {  # noqa: RUF012
        "Carbon Intensity gCO₂eq/kWh (LCA)": ("grid.carbon_intensity", "g/kWh", ""),
        "Carbon Intensity gCO₂eq/kWh (direct)": ("grid.carbon_intensity.direct", "g/kWh", ""),
        "Renewable Percentage": ("grid.renewable_fraction", "%", ""),
        "Low Carbon Percentage": ("grid.low_carbon_fraction", "%", ""),
    }

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        about = ("Country", "Zone Name", "Data Source", "Data Estimated", "Data Estimation Method")
        trace.require("Datetime (UTC)", self.zone, *self.values, also=about)
        trace.need_texts(self.zone)
        sites = trace.sites(self.zone)
        if trace.has("Data Estimated"):
            estimated = trace.frame["Data Estimated"].astype(object).map(lambda v: str(v).lower() == "true")
            trace.note("hours that the source marks as estimated, kept", int(estimated.sum()))
        return self.samples(trace, trace.iso("Datetime (UTC)"), trace.frame[self.zone], sites)


class IsoPriceReader(GridTraceReader):
    """Hourly wholesale prices, standardised by SustainCluster."""

    name = "iso_price"
    reads = "SustainCluster hourly prices: zone, Datetime (UTC), Price (USD/MWh) (.parquet, .csv)"
    options = {  # noqa: RUF012
        "zones": ZONES,
        "clock": "stated (the default): the column that is called UTC; local_is_utc: the wall clock of the local column, read as UTC",
    }
    zone = "zone"
    values = {"Price (USD/MWh)": ("grid.price", "USD/MWh", "")}  # noqa: RUF012
    flaws = (
        "gaps and first hours were filled backwards upstream (hours equal to the one before are noted); negative prices are real; the "
        "column called UTC seems to lag by the zone's offset: prices peak at 2 at night in California and at 22 in New York, and fit the "
        "carbon intensity best when taken 7 and 4 to 5 hours earlier (option clock)"
    )

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        trace.require("zone", "Datetime (UTC)", *self.values, also=("Datetime (Local)",))
        trace.need_texts("zone")
        clock = trace.option("clock", "stated")
        if clock not in ("stated", "local_is_utc"):
            raise InputError(f"option 'clock' is {clock!r}", where=trace.where, allowed="stated, local_is_utc")
        sites = trace.sites("zone")
        if clock == "local_is_utc":
            trace.require("Datetime (Local)", also=list(trace.frame))
            trace.frame["_wall"] = trace.frame["Datetime (Local)"].astype(object).map(lambda v: str(v)[:19])
        times = trace.iso("Datetime (UTC)" if clock == "stated" else "_wall")
        tables = self.samples(trace, times, trace.frame["zone"], sites)
        samples = tables["samples"]
        flat = samples.groupby("service", observed=True)["value"].diff() == 0
        trace.note("hours whose price repeats the hour before exactly, kept", int(flat.sum()))
        trace.note("hours of a negative price, kept", int((samples["value"] < 0).sum()))
        return tables


class OpenMeteoReader(GridTraceReader):
    """Hourly weather of Open-Meteo's archive, in local times at one stated offset through the year."""

    name = "openmeteo"
    reads = "Open-Meteo hourly archive with zone and utc_offset_seconds (.parquet, .csv)"
    options = {"zones": ZONES}  # noqa: RUF012
    zone = "zone"
    values = {  # noqa: RUF012
        "temperature_2m": ("weather.temperature", "Cel", ""),
        "relative_humidity_2m": ("weather.relative_humidity", "%", ""),
        "cloudcover": ("weather.cloud_cover", "%", ""),
        "windspeed_10m": ("weather.wind_speed", "km/h", "10 m"),
    }

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        trace.require("zone", "time", "utc_offset_seconds", *self.values, also=("latitude", "longitude", "timezone"))
        trace.need_texts("zone")
        trace.need_numbers({"utc_offset_seconds": (-86_400.0, 86_400.0)})
        sites = trace.sites("zone")
        times = trace.iso("time") - pd.to_timedelta(trace.frame["utc_offset_seconds"], unit="s")
        return self.samples(trace, times.astype(UTC), trace.frame["zone"], sites)


class SgipMoerReader(GridTraceReader):
    """Marginal emission rate of the SGIP signal in 5 minutes, kgCO2/kWh."""

    name = "sgip_moer"
    reads = "SGIP marginal emission rates: time, moer (kg/kWh) (.parquet, .csv)"
    options = {"zone": ZONE}  # noqa: RUF012
    values = {"moer": ("grid.carbon_intensity.marginal", "kg/kWh", "")}  # noqa: RUF012
    flaws = "monthly files overlap by two days, with equal values; its own forecasts (f1, f3, ...) are not read"

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        trace.require("time", "moer", also=("source_month",))
        zone = str(trace.option("zone", trace.stem.rpartition("_")[2]))
        return self.samples(trace, trace.iso("time"), zone, {})


class ErcotDamReader(GridTraceReader):
    """ERCOT's day-ahead prices by settlement point, in Central time with the repeated hour of autumn marked."""

    name = "ercot_dam"
    reads = "ERCOT DAM settlement point prices, report 13060 (.parquet, .csv)"
    options = {"zones": "settlement point -> site of ours; the others are left out. Default: all, each its own site"}  # noqa: RUF012
    zone = "Settlement Point"
    values = {"Settlement Point Price": ("grid.price", "USD/MWh", "")}  # noqa: RUF012

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        clock = ("Delivery Date", "Hour Ending", "Repeated Hour Flag")
        trace.require(*clock, self.zone, *self.values, also=("sheet",))
        trace.need_texts(*clock, self.zone)
        sites = trace.sites(self.zone)
        frame = trace.frame
        days = pd.to_datetime(frame["Delivery Date"], format="%m/%d/%Y", errors="coerce")
        hours = pd.to_numeric(frame["Hour Ending"].str.extract(r"^(\d{1,2}):00$", expand=False), errors="coerce")
        local = days + pd.to_timedelta(hours.where(hours.between(1, 24)) - 1, unit="h")
        # ambiguous=True is summer time, the first of the two equal hours; the flag marks the second.
        first = (frame["Repeated Hour Flag"] != "Y").to_numpy()
        times = local.dt.tz_localize(ERCOT_CLOCK, ambiguous=first, nonexistent="NaT").dt.tz_convert("UTC").astype(UTC)
        return self.samples(trace, times, frame[self.zone], sites)


class WindReader(GridTraceReader):
    """Wind at 100 m off California, NREL's WIND toolkit."""

    name = "wind"
    reads = "NREL WIND toolkit: Year, Month, Day, Hour, Minute, wind speed at 100m (m/s) (.parquet, .csv)"
    options = {"zone": "name of the place; default: wind-100m"}  # noqa: RUF012
    values = {"wind speed at 100m (m/s)": ("weather.wind_speed", "m/s", "100 m")}  # noqa: RUF012

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        limits = {"Year": (2000.0, 2099.0), "Month": (1.0, 12.0), "Day": (1.0, 31.0), "Hour": (0.0, 23.0), "Minute": (0.0, 59.0)}
        trace.require(*limits, *self.values)
        trace.need_numbers(limits)
        parts = trace.frame[list(limits)].rename(columns=str.lower)
        times = pd.to_datetime(parts, errors="coerce", utc=True).astype(UTC)
        return self.samples(trace, times, str(trace.option("zone", "wind-100m")), {})


class AvertReader(GridTraceReader):
    """CO2 that one kWh less avoids in each hour of a year, by region of the US (EPA AVERT): lb/kWh."""

    name = "avert"
    reads = "EPA AVERT hourly avoided CO2: Month, Timestamp (hour of the year), a column a region (lb/kWh) (.parquet, .csv)"
    options = {"start": START + ", the first hour of the year", "zones": ZONES}  # noqa: RUF012
    maps = (Mapped("CA, CENT, FL, ...", "grid.carbon_intensity.marginal", "lb/kWh", "service = region; hours of the year taken as UTC"),)
    flaws = "8,760 hours of a modelled year; their zone is not stated"

    def mapping(self) -> tuple[Mapped, ...]:
        return self.maps

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        regions = [name for name in trace.frame if name not in ("Month", "Timestamp")]
        trace.require("Month", "Timestamp", also=regions)
        start = trace.start()
        trace.need_numbers({"Timestamp": (0.0, 8783.0)})
        long = trace.frame.melt(id_vars="Timestamp", value_vars=regions, var_name="zone", value_name="co2")
        trace.frame = long.reset_index(drop=True)
        if long.empty:
            trace.require("a column a region")
        sites = trace.sites("zone")
        times = trace.after(start, trace.frame["Timestamp"] * 3600.0)
        columns = SampleColumns(trace)
        columns.add(trace.frame["co2"], times, trace.frame["zone"], _labels("grid.carbon_intensity.marginal", "lb/kWh", sites))
        return columns.tables()
