"""Pages that are written from the code are current."""

from pathlib import Path

from envs.observation import ObservationLayout
from pipelines.document import OBSERVATION_PAGE, observation_page

ROOT = Path(__file__).parents[2]


def test_the_observation_page_is_current():
    assert (ROOT / OBSERVATION_PAGE).read_text() == observation_page(), "run: python -m pipelines.document"


def test_every_index_of_the_example_is_on_the_page():
    page = observation_page()
    for index, name, _ in ObservationLayout(2, 2).describe():
        assert f"| {index} | `{name}` |" in page
