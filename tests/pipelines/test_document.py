"""Pages that are written from the code are current."""

from pathlib import Path

import pytest

from envs.observation import ObservationLayout
from pipelines.document import OBSERVATION_PAGE, TELEMETRY_PAGE, TRACES_PAGE, observation_page
from pipelines.origins import trace_infos
from pipelines.telemetry_page import collectors_of, mapping_of, stated, telemetry_page
from pipelines.traces_page import traces_page
from telemetry.collectors import COLLECTORS
from telemetry.quality import FLAWS
from telemetry.readers import READERS
from telemetry.schema import COLUMNS
from telemetry.units import METRICS

ROOT = Path(__file__).parents[2]


def test_the_observation_page_is_current():
    assert (ROOT / OBSERVATION_PAGE).read_text() == observation_page(), "run: python -m pipelines.document"


def test_every_index_of_the_example_is_on_the_page():
    page = observation_page()
    for index, name, _ in ObservationLayout(2, 2).describe():
        assert f"| {index} | `{name}` |" in page


def test_the_traces_page_is_current_and_names_every_trace_and_file():
    page = traces_page()
    assert (ROOT / TRACES_PAGE).read_text() == page, "run: python -m pipelines.document"
    for info in trace_infos():
        assert f"| {info.name} | {info.kind} |" in page
        assert all(f"`{file.file}`" in page for file in info.fetch)


def test_the_telemetry_page_is_current_and_complete():
    page = telemetry_page()
    assert (ROOT / TELEMETRY_PAGE).read_text() == page, "run: python -m pipelines.document"
    for name, metric in METRICS.items():
        assert f"| `{name}` | `{metric.unit}` |" in page
    for flaw in FLAWS:
        assert f"| `{flaw}` |" in page
    for name, reader in READERS.items():
        assert f"| `{name}` | {reader.reads} |" in page


@pytest.mark.parametrize("name", sorted(READERS))
def test_every_reader_says_what_it_was_tested_against_and_maps_to_what_there_is(name):
    reader = READERS[name]
    assert len(stated(reader, "tested")) > 10, "a reader states what its tests read: tested = '...'"
    for row in mapping_of(reader):
        table, _, column = row.canonical.partition(".")
        first = column.partition(",")[0]
        known = row.canonical in METRICS or (row.canonical in COLUMNS) or (table in COLUMNS and first in COLUMNS[table])
        assert known or row.canonical.startswith("reference "), row


def test_every_collector_says_what_it_was_tested_against_and_has_a_reader():
    for name, kind in COLLECTORS.items():
        assert len(stated(kind, "tested")) > 10, "a collector states what its tests ask: tested = '...'"
        assert name in collectors_of(kind.reader)
        assert kind.reader in READERS
