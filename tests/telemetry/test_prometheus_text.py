"""Text exposition and OpenMetrics: parsed as the reference client parses, and read as the same series of a query are."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.errors import InputError
from telemetry.readers import READERS
from telemetry.readers.prometheus_text import parse_sample
from telemetry.schema import validate

T0 = 1_767_571_200


@pytest.fixture
def read(tmp_path, context):
    def reading(text: str):
        path = tmp_path / "scrapes.prom"
        path.write_bytes(text.encode())
        result = READERS["prometheus_text"].read(path, context)
        return result.tables["samples"], result.quality

    return reading


def test_a_file_of_scrapes_gives_the_rows_of_the_query(clean, tmp_path, context):
    found = {}
    for reader in ("prometheus", "prometheus_text"):
        path = tmp_path / clean[reader][0]
        path.write_bytes(clean[reader][1])
        found[reader] = READERS[reader].read(path, context).tables["samples"]
    pd.testing.assert_frame_equal(found["prometheus"], found["prometheus_text"])


def test_the_reference_client_parses_the_same():
    exposition = pytest.importorskip("prometheus_client.exposition")
    client = pytest.importorskip("prometheus_client")
    parser = pytest.importorskip("prometheus_client.parser")
    open_metrics = pytest.importorskip("prometheus_client.openmetrics.exposition")
    number = st.floats(allow_nan=False) | st.just(math.nan)
    texts = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=12)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(texts, texts, number), min_size=1, max_size=6, unique_by=lambda row: row[:2]))
    def same(rows):
        registry = client.CollectorRegistry()
        gauge = client.Gauge("DCGM_FI_DEV_POWER_USAGE", 'of "a" board\\', ["gpu", "pod"], registry=registry)
        for gpu, pod, value in rows:
            gauge.labels(gpu, pod).set(value)
        for text in (exposition.generate_latest(registry).decode(), open_metrics.generate_latest(registry).decode()):
            own = [parse_sample(line) for line in text.split("\n") if line and not line.startswith("#")]
            theirs = [s for f in parser.text_string_to_metric_families(text.replace("# EOF\n", "")) for s in f.samples]
            assert [(s.name, dict(s.labels)) for s in own] == [(s.name, dict(s.labels)) for s in theirs]
            assert all(a.value == b.value or (math.isnan(a.value) and math.isnan(b.value)) for a, b in zip(own, theirs, strict=True))

    same()


@pytest.mark.parametrize(
    ("line", "labels", "value", "time"),
    [
        ("a 1", {}, 1, None),
        ("a{} 1 1767571200000", {}, 1, 1_767_571_200_000),
        ('a { b = "c" , } 1e3', {"b": "c"}, 1000, None),
        ('a{b="x\\"y\\\\z\\n{}, #"} -Inf', {"b": 'x"y\\z\n{}, #'}, -math.inf, None),
        ('a{b="c"} 1 1767571200.5 # {trace="x"} 0.5', {"b": "c"}, 1, 1_767_571_200.5),
        ('a{b="c"}1', {"b": "c"}, 1, None),
    ],
)
def test_lines(line, labels, value, time):
    found = parse_sample(line)
    assert (dict(found.labels), found.value, found.time) == (labels, value, time)


@pytest.mark.parametrize(
    "line",
    ["", "a", "1 a", 'a{b="c" 1', "a{b=c} 1", 'a{b="c",b="d"} 1', 'a{b="c"', "a 1_000", "a 0x1p3", "a 1 2 3", "a one", 'a{"b"} 1', "a-b 1"],
)
def test_what_is_no_sample(line):
    assert parse_sample(line) is None


def test_a_long_line_of_quotes_is_refused_at_once():
    assert parse_sample("a{" + 'b="' * 50_000) is None
    assert parse_sample('a{b="' + '\\"' * 100_000) is None


def test_times_of_scrapes_stand_before_them(read):
    scrape = 'DCGM_FI_DEV_POWER_USAGE{gpu="0"} %d\nDCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0"} %d\n'
    text = "".join(f"# scraped at 2026-01-05T00:0{k}:00Z from n{k % 2}:9400\n" + scrape % (100 + k, 6_000_000 * k) for k in range(6))
    frame, quality = read(text)
    assert set(frame["node"]) == {"n0", "n1"}
    watts = frame[(frame["node"] == "n1") & (frame["metric"] == "hw.power")]
    assert watts["value"].to_list() == [101, 103, 105]
    assert watts["time"].iloc[0] == pd.Timestamp("2026-01-05T00:01:00Z")
    assert frame[frame["metric"] == "hw.energy.rate"]["value"].to_list() == pytest.approx([100.0] * 4)
    assert quality.total() == {}


def test_open_metrics_has_seconds(read):
    frame, _ = read(f'DCGM_FI_DEV_POWER_USAGE{{gpu="0",Hostname="n0"}} 250 {T0}.5\n# EOF\n')
    assert frame["time"].to_list() == [pd.Timestamp(T0 + 0.5, unit="s", tz="UTC")]


def test_a_last_line_without_its_end_is_not_trusted(read):
    line = 'DCGM_FI_DEV_POWER_USAGE{gpu="0",Hostname="n0"} %s %d\n'
    whole = line % ("250", 1000 * T0) + line % ("1250", 1000 * T0 + 60_000)
    frame, quality = read(whole[:-1])
    assert frame["value"].to_list() == [250]
    assert quality.total() == {"unparseable": 1}


def test_lines_that_are_none_are_counted(read):
    line = f'DCGM_FI_DEV_POWER_USAGE{{gpu="0",Hostname="n0"}} 250 {1000 * T0}\n'
    frame, quality = read("<html>\n" + line + "# scraped at noon\nDCGM_FI_DEV_POWER_USAGE{gpu=} 1\n" + 'up{job="x"} 1 1767571200000\n')
    assert len(frame) == 1
    assert quality.total() == {"unparseable": 3}
    assert quality.notes["src"]["series of metric up, which is not read"] == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("DCGM_FI_DEV_POWER_USAGE 250\n", "line 1: a sample without a time.*scraped at"),
        (f"up 1 {1000 * T0}\n", "empty export"),
        ("<html>\n", "no line is a sample"),
        ("# EOF\n", "no line is a sample"),
        (f"DCGM_FI_DEV_POWER_USAGE 250 {T0}\n", "no point has a time"),
    ],
)
def test_a_file_without_points_is_refused(read, text, told):
    with pytest.raises(InputError, match=told):
        read(text)


NAMES = st.sampled_from(
    ["DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_FB_FREE", "http_requests_total", "kube_pod_labels", "node_load1", "ipmi_up"]
)
LABELS = st.dictionaries(st.sampled_from(["gpu", "Hostname", "GPU_I_ID", "pod", "uuid", "service", "é"]), st.text(max_size=5), max_size=4)
VALUES = st.sampled_from(["1", "-1", "NaN", "+Inf", "1e400", "0", "1_0", "x", "", "0x1"]) | st.floats().map(str)
TIMES = st.sampled_from([str(1000 * T0), str(1000 * T0 + 60_000), str(T0), "-5", "x", "", "9" * 400, "1e400", "nan"])
BREAKS = st.sampled_from(["\n", "\r\n", "", "\n# EOF\n", "\n# scraped at 2026-01-05T00:00:00Z\n", "\n#\n", "\u2028", "\x0b"])


@settings(max_examples=150, deadline=None)
@given(lines=st.lists(st.tuples(NAMES, LABELS, VALUES, TIMES, BREAKS), min_size=1, max_size=12))
def test_whatever_is_in_it_it_is_read_or_refused(tmp_path_factory, lines):
    """Structure-aware: lines of known names with odd labels, values, times and ends."""
    from telemetry.readers import ReadContext

    text = "".join(
        name + "{" + ",".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in labels.items()) + f"}} {value} {time}{end}"
        for name, labels, value, time, end in lines
    )
    path = tmp_path_factory.getbasetemp() / "odd.prom"
    path.write_bytes(text.encode("utf-8", "replace"))
    try:
        result = READERS["prometheus_text"].read(path, ReadContext("src"))
    except InputError as error:
        assert path.name in str(error)  # noqa: PT017
    else:
        validate("samples", result.tables["samples"], where="odd")
