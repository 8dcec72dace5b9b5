"""Whatever is changed in a promoted version, in its files or in the registry's rows, it does not load."""

from __future__ import annotations

from benchmarks.tampering import tamper
from registry.promotion import champion_version, promote


def test_no_tampered_version_loads(tracking, make_version):
    first = make_version()
    second = make_version(evidence={"naive": "persistence", "skill": 0.3, "low": 0.2, "high": 0.4, "windows": 40})
    promote(tracking.client, "workload-forecaster", first, expected_champion=None)
    promote(tracking.client, "workload-forecaster", second, expected_champion=first)
    tally = tamper(tracking, second, first, every=3)
    assert tally.loaded == []
    assert {"bit flipped", "deleted", "pickle", "link", "file added", "column", "tag changed", "tag removed", "alias"} <= tally.tries.keys()
    assert tally.total > 80
    assert champion_version(tracking.client, "workload-forecaster") == second
