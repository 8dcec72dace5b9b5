"""From raw points to canonical samples: each flaw detected, counted, and repaired or dropped, by one rule for all readers.

What is done about a flaw is its policy (``telemetry/policy.py``); told here is the default. Order of the steps (each counts on what the
step before left):

1. points without a readable time are dropped (``unparseable``); points later than the clock (``future_timestamp``) and points in a foreign
   unit (``unit_converted``) are counted;
2. ``out_of_order``: earlier than the predecessor in the file; sorted;
3. ``clock_skew``: where most nodes scrape at one phase of the grid, a node that keeps to another constant phase is shifted onto it, by at
   most half a step (a skew of more than that cannot be told from one of less);
4. ``duplicate``: same series and time; the last in the file wins;
5. ``scrape_gap``: on the times that are left, before any value is judged. Before the first and after the last sample is no gap;
6. values: ``unparseable``, ``sentinel``; then series: ``unsupported_zero``, ``unit_suspected``; then ``negative_power``,
   ``implausible_power``, ``utilization_above_one``, other values that cannot be true (``unparseable``), ``stuck_value``;
7. counters become rates (``counter_reset``, ``counter_wrap``), and are held against power (``energy_mismatch``);
8. ``missing_pod_label``: a busy GPU without a pod; kept. Gaps of gauges are filled where the policy says so; counters never are: the rate
   after a gap is the mean over it, so energy is neither lost nor made.

All but three of the steps look at one entity alone, so a file may be cleaned in pieces that hold whole entities
(:class:`telemetry.cleaner.Cleaner`): what the pieces must be told is the usual step of each metric (5), the common phase (3) and the series
whose unit is suspected beside those of their peers (6), which are counted over all of them before.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from telemetry.cleaner import DEFAULT_POLICY, Cleaner, Common, common_phase, most_common
from telemetry.errors import InputError
from telemetry.implausible import unit_factors
from telemetry.inventory import Inventory
from telemetry.policy import QualityPolicy
from telemetry.quality import QualityReport
from telemetry.raw import Labels, PointSource


def clean_samples(
    raw: PointSource,
    inventory: Inventory,
    quality: QualityReport,
    *,
    where: str,
    policy: QualityPolicy = DEFAULT_POLICY,
    now: pd.Timestamp | None = None,
) -> pd.DataFrame:
    """Canonical samples of one file; flaws are counted in ``quality`` under ``raw.source``.

    Args:
        policy: what is done about each flaw; ``refuse`` is left to :meth:`QualityPolicy.check`.
        now: the clock that times are held against; None = they are not.

    Raises:
        InputError: a unit that cannot be converted, or no point with a readable time.
    """
    cleaner = Cleaner(raw.source, raw.points(where=where), inventory, quality, policy, now)
    if cleaner.without_time and not cleaner.timed:
        raise no_time(where)
    step_ns = {metric: most_common(counts) for metric, counts in cleaner.step_counts().items()}
    phase_ns = common_phase(cleaner.own_phases(step_ns), len(cleaner.entities))
    cleaner.finish(Common(step_ns, phase_ns, unit_factors(cleaner.typical())))
    note_unknown(raw.source, cleaner.labels, inventory, quality)
    quality.trim()
    return cleaner.cleaned().frame()


def no_time(where: str) -> InputError:
    """What is raised where no point has a readable time."""
    return InputError(
        "no point has a time between 2000 and 2100", where=where, allowed="seconds since 1970", remedy="are they milliseconds?"
    )


def note_unknown(source: str, labels: Sequence[Labels], inventory: Inventory, quality: QualityReport) -> None:
    """Note how many nodes the inventory does not know."""
    unknown = {la.node for la in labels if la.node and la.node not in inventory.nodes}
    quality.note(source, "nodes that are not in the inventory (no site, no pool)", len(unknown))
