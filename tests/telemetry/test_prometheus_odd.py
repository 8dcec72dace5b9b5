"""Structure-aware bad input of the prometheus reader: known names with odd labels, times and values, and answers of odd shape."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.errors import InputError
from telemetry.readers import READERS, ReadContext
from telemetry.readers.prometheus_metrics import METRIC_NAMES
from telemetry.schema import validate

T0 = 1_767_571_200
KEYS = (
    "gpu", "GPU_I_ID", "Hostname", "instance", "node", "pod", "exported_pod", "namespace", "zone", "path", "name", "chip", "uuid", "index",
    "sensorType", "outletId", "service", "code", "power_control_name", "label_team",
)  # fmt: skip
TEXTS = st.sampled_from(["", "0", "1", "n0", "n0:9100", "package", "package-1", "dram", "psys", "5", "PS1 Input Power", "a/b", "\x1f", "é"])
VALUES = st.sampled_from(["1", "0", "-1", "NaN", "+Inf", "1e400", "x", "", "65535"]) | st.none() | st.integers() | st.floats()
TIMES = st.integers(T0, T0 + 300) | st.sampled_from([T0 + 0.5, 0, -1, 1e18, None, "x", str(T0), [], True])
SERIES = st.fixed_dictionaries(
    {
        "metric": st.builds(
            lambda name, labels: {"__name__": name, **labels},
            st.sampled_from([*METRIC_NAMES, "up"]),
            st.dictionaries(st.sampled_from(KEYS), TEXTS, max_size=5),
        ),
        "values": st.lists(st.tuples(TIMES, VALUES), min_size=1, max_size=6),
    }
)


def read(path, answer):
    """The reader's tables fit their schema, or it names the file."""
    path.write_text(json.dumps(answer))
    try:
        result = READERS["prometheus"].read(path, ReadContext("src"))
    except InputError as error:
        assert path.name in str(error)  # noqa: PT017
        return None
    validate("samples", result.tables["samples"], where="odd")
    return result


@settings(max_examples=250, deadline=None)
@given(series=st.lists(SERIES, min_size=1, max_size=5))
def test_odd_series_are_read_or_refused(tmp_path_factory, series):
    result = read(tmp_path_factory.getbasetemp() / "odd.json", {"status": "success", "data": {"resultType": "matrix", "result": series}})
    if result is not None:
        points = sum(len(entry["values"]) for entry in series)
        shares = sum(len(entry["values"]) for entry in series if entry["metric"]["__name__"] == "DCGM_FI_DEV_FB_USED")
        assert len(result.tables["samples"]) <= points + shares, "no point is made up"


ODD = st.recursive(st.none() | st.booleans() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=8)
HALF = st.fixed_dictionaries({}, optional={"metric": st.sampled_from([{"__name__": "ipmi_up"}, {}]), "values": TIMES, "value": TIMES})


@settings(max_examples=100, deadline=None)
@given(result=ODD | st.lists(HALF))
def test_odd_answers_are_refused(tmp_path_factory, result):
    assert read(tmp_path_factory.getbasetemp() / "odd.json", {"status": "success", "data": {"result": result}}) is None
