"""Readers of public request traces: rates of requests and tokens, each stamped at the end of its window."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from telemetry.errors import InputError
from telemetry.raw import Labels
from telemetry.readers.base import Mapped
from telemetry.readers.public_requests import FUNCTION_STEP_S, SERVEGEN_STEP_S
from telemetry.readers.trace_file import START, STEP, SampleColumns, Trace, TraceReader, reference_tables
from telemetry.schema import UTC

MAX_TOKENS = 1e9
MAX_WINDOWS = 5_000_000
DEFAULT_STEP_S = 60
HISTOGRAM_PAIR = re.compile(r"(\d{1,9}): ([0-9.]+(?:e-?\d{1,3})?)")
HISTOGRAM = re.compile(r"\{(?:\d{1,9}: [0-9.]+(?:e-?\d{1,3})?(?:, |(?=\})))+\}")
RATES = ("http.server.request.rate", "gen_ai.input_tokens.rate", "gen_ai.output_tokens.rate")
PARTIAL = "requests in a first or last window that is not whole"


def rates_of_requests(trace: Trace, times: pd.Series, service: pd.Series | str, tokens: tuple[str, str], origin: pd.Timestamp | None):
    """Samples of requests a second and tokens a second, in windows of option ``step_s``.

    Args:
        times: UTC [N], of each request; NaT = unreadable, its row is dropped.
        service: what each request is for.
        tokens: columns of tokens in and out.
        origin: where the first window begins; None = windows begin at whole steps of the clock, and the first and the last that are not
            whole are left out with a note.

    Raises:
        InputError: no whole window, or too many.
    """
    step = trace.whole_number("step_s", DEFAULT_STEP_S)
    names = pd.Series(service, index=trace.frame.index, dtype=object) if isinstance(service, str) else service
    trace.frame = trace.frame.assign(_time=times.to_numpy(), _service=names.to_numpy())
    trace.drop(trace.frame["_time"].isna(), "unparseable")
    frame = trace.frame
    seconds = frame["_time"].to_numpy(dtype="datetime64[ns]").astype(np.int64) / 1e9
    trace.quality.add(trace.context.source, "out_of_order", int((np.diff(seconds) < 0).sum()))
    zero = origin.timestamp() if origin is not None else 0.0
    window = np.floor((seconds - zero) / step).astype(np.int64)
    first = 0 if origin is not None else int(window.min()) + 1
    count = int(window.max()) - first
    codes, services = pd.factorize(frame["_service"], sort=True)
    if count < 1:
        raise InputError(f"not one whole window of {step} s", where=trace.where, remedy="give a smaller option step_s")
    if count * len(services) > MAX_WINDOWS:
        told = f"{count:,} windows of {step} s for {len(services)} service(s)"
        raise InputError(told, where=trace.where, allowed=f"{MAX_WINDOWS:,} windows", remedy="give a larger option step_s; check the times")
    whole = (window >= first) & (window < first + count)
    trace.note(PARTIAL, int((~whole).sum()))
    place = codes[whole] * count + window[whole] - first
    ends = pd.Series(pd.to_datetime(((first + 1 + np.arange(count)) * step + zero) * 1e9, utc=True).astype(UTC))
    columns = SampleColumns(trace)
    for metric, weight in zip(RATES, (None, *tokens), strict=True):
        weights = None if weight is None else frame[weight].to_numpy()[whole]
        total = np.bincount(place, weights=weights, minlength=count * len(services)) / step
        keys = pd.Series(np.repeat(np.asarray(services, dtype=object), count))
        unit = "1/s" if weight is None else "{token}/s"
        columns.add(pd.Series(total), pd.concat([ends] * len(services), ignore_index=True), keys, _labels(metric, unit))
    return columns.tables()


def _labels(metric: str, unit: str):
    return lambda service: Labels(metric=metric, service=service, unit=unit, native_unit=unit)


class AzureLlmReader(TraceReader):
    """Requests to two of Azure's language model services, one file a service."""

    name = "azure_llm"
    reads = "Azure LLM inference trace: TIMESTAMP, ContextTokens, GeneratedTokens (.parquet, .csv)"
    options = {"service": "name of the service; default: the last part of the file's name", "step_s": STEP}  # noqa: RUF012
    maps = (
        Mapped("rows by TIMESTAMP", "http.server.request.rate", "1 a row", "service = last part of the file's name"),
        Mapped("ContextTokens", "gen_ai.input_tokens.rate", "1", "same"),
        Mapped("GeneratedTokens", "gen_ai.output_tokens.rate", "1", "same"),
    )
    flaws = "one hour only; times without a zone"

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        trace.require("TIMESTAMP", "ContextTokens", "GeneratedTokens")
        trace.need_numbers({"ContextTokens": (0.0, MAX_TOKENS), "GeneratedTokens": (0.0, MAX_TOKENS)})
        times = trace.iso("TIMESTAMP", note_naive=True)
        service = str(trace.option("service", trace.stem.rpartition("_")[2]))
        return rates_of_requests(trace, times, service, ("ContextTokens", "GeneratedTokens"), None)


class MooncakeReader(TraceReader):
    """Requests of Mooncake's traces."""

    name = "mooncake"
    reads = "Mooncake trace: timestamp (ms), input_length, output_length (.parquet, .jsonl)"
    options = {"start": START, "step_s": STEP}  # noqa: RUF012
    maps = (
        Mapped("rows by timestamp", "http.server.request.rate", "1 a row; ms", "service = mooncake"),
        Mapped("input_length", "gen_ai.input_tokens.rate", "1", "same"),
        Mapped("output_length", "gen_ai.output_tokens.rate", "1", "same"),
    )
    flaws = "synthetic: Poisson arrivals; 17 minutes"

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        trace.require("timestamp", "input_length", "output_length")
        start = trace.start()
        trace.need_numbers({"timestamp": (0.0, 1e13), "input_length": (0.0, MAX_TOKENS), "output_length": (0.0, MAX_TOKENS)})
        times = trace.after(start, trace.frame["timestamp"] / 1000.0)
        return rates_of_requests(trace, times, "mooncake", ("input_length", "output_length"), start)


class BurstGptReader(TraceReader):
    """Requests to ChatGPT and GPT-4 on Azure (HPMLL/BurstGPT; Wang et al. 2024, arXiv:2401.17644)."""

    name = "burstgpt"
    reads = "BurstGPT trace: Timestamp (s), Model, Request tokens, Response tokens, Log Type (.csv)"
    tested = "a small table of the published columns; the public file is not among the traces"
    options = {"start": START, "step_s": STEP}  # noqa: RUF012
    maps = (
        Mapped("rows by Timestamp", "http.server.request.rate", "1 a row; s", "service = Model/Log Type"),
        Mapped("Request tokens", "gen_ai.input_tokens.rate", "1", "same"),
        Mapped("Response tokens", "gen_ai.output_tokens.rate", "1", "same; 0 = the request failed (kept, noted)"),
    )

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        tokens = ("Request tokens", "Response tokens")
        trace.require("Timestamp", "Model", *tokens, also=("Total tokens", "Log Type"))
        start = trace.start()
        trace.need_numbers({"Timestamp": (0.0, 1e10), **dict.fromkeys(tokens, (0.0, MAX_TOKENS))})
        trace.need_texts("Model")
        service = trace.frame["Model"]
        if trace.has("Log Type"):
            trace.need_texts("Log Type")
            service = trace.frame["Model"] + "/" + trace.frame["Log Type"]
        trace.note("requests that failed (no response token), kept", int((trace.frame[tokens[1]] == 0).sum()))
        return rates_of_requests(trace, trace.after(start, trace.frame["Timestamp"]), service, tokens, start)


class ServeGenReader(TraceReader):
    """Request rates of ServeGen's clients, or their histograms of token counts as means."""

    name = "servegen"
    reads = "ServeGen rates (chunk, timestamp, rate) or token histograms (chunk, timestamp, field, histogram) (.parquet, .csv)"
    options = {  # noqa: RUF012
        "start": START,
        "model": "name that goes before that of each client, so that the clients of several files are told apart; default: none",
    }
    maps = (
        Mapped("rate", "http.server.request.rate", "1/s", "service = client-CHUNK, after MODEL/ where that is given"),
        Mapped("histogram of input_tokens", "gen_ai.input_tokens.mean", "1", "same"),
        Mapped("histogram of output_tokens", "gen_ai.output_tokens.mean", "1", "same"),
    )
    flaws = "clients with long silences; the sum over clients is 0 in some windows"

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        if trace.has("histogram"):
            return self._histograms(trace)
        trace.require("chunk", "timestamp", "rate", also=("cv", "pat_name", "pat_arg1", "pat_arg2"))
        start, clients = trace.start(), self._clients(trace)
        times = trace.after(start, trace.frame["timestamp"] + SERVEGEN_STEP_S)
        columns = SampleColumns(trace)
        columns.add(trace.frame["rate"], times, clients, _labels("http.server.request.rate", "1/s"))
        return columns.tables()

    def _clients(self, trace: Trace) -> pd.Series:
        trace.need_numbers({"chunk": (0.0, 1e6), "timestamp": (0.0, 1e10)})
        model = str(trace.option("model", ""))
        return (f"{model}/" if model else "") + "client-" + trace.frame["chunk"].map("{:02.0f}".format)

    def _histograms(self, trace: Trace) -> dict[str, pd.DataFrame]:
        trace.require("chunk", "timestamp", "field", "histogram")
        start, clients = trace.start(), self._clients(trace)
        trace.need_texts("field", "histogram", blank=True)
        frame = trace.frame
        # A histogram holds for the window that begins at its timestamp, and is known at its end.
        steps = frame["timestamp"].drop_duplicates().sort_values().diff().dropna()
        if steps.empty:
            raise InputError("one window has no length", where=trace.where, allowed="histograms of at least two windows")
        ends = trace.after(start, frame["timestamp"] + steps.mode().iloc[0])
        means = frame["histogram"].map(histogram_mean)
        columns = SampleColumns(trace)
        known = pd.Series(False, index=frame.index)
        for side in ("input", "output"):
            own = frame["field"] == f"{side}_tokens"
            known |= own
            if own.any():
                part = (means[own], ends[own], clients[own])
                columns.add(*(p.reset_index(drop=True) for p in part), _labels(f"gen_ai.{side}_tokens.mean", "{token}"))
        trace.note("histograms of another field than tokens, left out", int((~known).sum()))
        return columns.tables()


def histogram_mean(text: str) -> float | str:
    """Mean of a histogram ``{tokens: share, ...}`` as ServeGen prints it; the text itself where it is none."""
    if text == "{}":
        return float("nan")  # a window without a request
    if not HISTOGRAM.fullmatch(text):
        return text or "?"
    try:
        pairs = np.array([(float(tokens), float(share)) for tokens, share in HISTOGRAM_PAIR.findall(text)])
    except ValueError:
        return text
    total = pairs[:, 1].sum()
    return float((pairs[:, 0] * pairs[:, 1]).sum() / total) if 0 < total < np.inf else text


class AzureFunctionsReader(TraceReader):
    """Invocations of Azure Functions by minute; durations and memory have no time, and become reference."""

    name = "azure_functions"
    reads = "Azure Functions 2019 invocations, durations or memory per function (.csv)"
    options = {"start": START + ", its first minute"}  # noqa: RUF012
    maps = (
        Mapped("1 ... 1440", "http.server.request.rate", "1/min", "service = first 16 characters of HashFunction"),
        Mapped("Average, Minimum, Maximum, percentile_*", "reference duration", "ms", "by HashOwner, HashApp, HashFunction"),
        Mapped("AverageAllocatedMb, *_pct*", "reference memory", "MB", "same"),
    )
    flaws = "four functions only, an example; samples are per function, whichever application owns it"
    keys = ("HashOwner", "HashApp", "HashFunction")

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        if trace.has("AverageAllocatedMb"):
            found = [name for name in trace.frame if name.startswith("AverageAllocatedMb")]
            counts = {"SampleCount": ("memory samples", "1")} if trace.has("SampleCount") else {}
            return reference_tables(trace, self.keys, {**counts, **{name: (name, "MB") for name in found}})
        if trace.has("percentile_Average_50"):
            found = [name for name in ("Average", "Minimum", "Maximum") if trace.has(name)]
            found += [name for name in trace.frame if name.startswith("percentile_")]
            counts = {"Count": ("invocations", "1")} if trace.has("Count") else {}
            return reference_tables(trace, self.keys, {**counts, **{name: (f"duration {name}", "ms") for name in found}})
        minutes = [name for name in trace.frame if name.isascii() and name.isdigit() and 1 <= int(name) <= 1440]
        trace.require("HashFunction", also=("HashOwner", "HashApp", "Trigger", *minutes))
        if not minutes:
            raise InputError("no column of a minute", where=trace.where, allowed="1 ... 1440")
        trace.need_texts("HashFunction")
        start, frame = trace.start(), trace.frame
        again = frame["HashFunction"].str[:16]
        columns = SampleColumns(trace)
        ends = trace.after(start, np.array([int(name) for name in minutes]) * FUNCTION_STEP_S)
        for service, rows in frame.groupby(again, sort=True):
            for _, row in rows.iterrows():
                columns.add(pd.Series(row[minutes].tolist()), ends, str(service), _labels("http.server.request.rate", "1/min"))
        return columns.tables()
