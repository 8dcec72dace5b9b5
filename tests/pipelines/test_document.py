"""Pages that are written from the code are current."""

from pathlib import Path

from envs.observation import ObservationLayout
from pipelines.document import OBSERVATION_PAGE, TRACES_PAGE, observation_page
from pipelines.origins import trace_infos
from pipelines.traces_page import traces_page

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
