"""What is done about each flaw: ``drop``, ``repair``, ``keep`` or ``refuse``.

========== =====================================================================================================================
``drop``   the rows are left out
``repair`` the rows are put right, each flaw in its own way (``docs/quality.md``)
``keep``   the rows stay as they are
``refuse`` up to a tolerated share of the source's rows, the first policy of the flaw applies; above it nothing is stored
========== =====================================================================================================================

Whatever the policy, a flaw is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from telemetry.errors import InputError
from telemetry.quality import FLAWS, QualityReport

DROP, REPAIR, KEEP, REFUSE = "drop", "repair", "keep", "refuse"
# Flaw -> policies that make sense for it; the first is the default, and what applies to a tolerated share.
POLICIES: dict[str, tuple[str, ...]] = {
    "counter_reset": (REPAIR, DROP, REFUSE),
    "counter_wrap": (REPAIR, DROP, REFUSE),
    "scrape_gap": (KEEP, REPAIR, REFUSE),
    "duplicate": (DROP, REPAIR, REFUSE),
    "sentinel": (DROP, REFUSE),
    "unsupported_zero": (KEEP, DROP, REFUSE),
    "clock_skew": (REPAIR, KEEP, REFUSE),
    "missing_pod_label": (KEEP, REFUSE),
    "out_of_order": (REPAIR, REFUSE),
    "negative_power": (DROP, REFUSE),
    "unit_converted": (REPAIR, REFUSE),
    "unit_suspected": (KEEP, REPAIR, DROP, REFUSE),
    "unparseable": (DROP, REFUSE),
    "implausible_power": (DROP, KEEP, REFUSE),
    "utilization_above_one": (DROP, REPAIR, REFUSE),
    "stuck_value": (KEEP, DROP, REFUSE),
    "future_timestamp": (KEEP, DROP, REFUSE),
    "energy_mismatch": (KEEP, REFUSE),
}
# Flaws that are the size of another one, and go by its policy.
MEASURES: dict[str, str] = {"scrape_gap_samples": "scrape_gap"}
# Flaws of a device or node as a whole: their share is one of the devices.
OF_DEVICES: tuple[str, ...] = ("clock_skew", "energy_mismatch")
FILLS: tuple[str, ...] = ("hold", "linear")
REMEDY: dict[str, str] = {
    "counter_reset": "see why the exporter restarts",
    "scrape_gap": "export the gap again",
    "duplicate": "export without overlap",
    "clock_skew": "run NTP on these nodes",
    "missing_pod_label": "give the exporter its pod resources",
    "unit_suspected": "export in the metric's unit",
    "unit_converted": "export in the metric's unit",
    "future_timestamp": "check the clocks, of this machine too",
    "implausible_power": "check the sensor, or tell max_power_w in the inventory",
    "stuck_value": "restart the exporter, or check the sensor",
    "energy_mismatch": "check sensor and counter against another meter",
}


@dataclass(frozen=True)
class QualityPolicy:
    """A policy for each flaw, and the numbers that decide what is one; part of the digest of a source.

    Attributes:
        refuse_above: share (0 to 1) of a source's rows that may have a flaw whose policy is ``refuse``.
        gap_fill: how gaps are repaired: ``hold`` the last value, or ``linear`` between the neighbours. Linear looks ahead of the gap: it is
            for reports and not for series that are forecast.
        max_gap_fill_s: longest gap that is repaired, seconds between the samples around it.
        power_margin: a GPU's watts may be this times its data sheet's.
        stuck_min_s: seconds that watts must stay the very same before they are called stuck.
        stuck_utilization: how far utilisation must move in that time (0 to 1).
        future_s: seconds that a time may lie ahead of the clock.
        energy_share: how far the energy of a counter and the integral of power may lie apart, as a share of the larger.
    """

    counter_reset: str = REPAIR
    counter_wrap: str = REPAIR
    scrape_gap: str = KEEP
    duplicate: str = DROP
    sentinel: str = DROP
    unsupported_zero: str = KEEP
    clock_skew: str = REPAIR
    missing_pod_label: str = KEEP
    out_of_order: str = REPAIR
    negative_power: str = DROP
    unit_converted: str = REPAIR
    unit_suspected: str = KEEP
    unparseable: str = DROP
    implausible_power: str = DROP
    utilization_above_one: str = DROP
    stuck_value: str = KEEP
    future_timestamp: str = KEEP
    energy_mismatch: str = KEEP
    refuse_above: float = 0.0
    gap_fill: str = "hold"
    max_gap_fill_s: int = 3600
    power_margin: float = 1.5
    stuck_min_s: int = 3600
    stuck_utilization: float = 0.3
    future_s: int = 300
    energy_share: float = 0.25

    def __post_init__(self) -> None:
        for flaw, allowed in POLICIES.items():
            if getattr(self, flaw) not in allowed:
                raise InputError(f"policy {getattr(self, flaw)!r}", where=f"quality.{flaw}", allowed=", ".join(allowed))
        if self.gap_fill not in FILLS:
            raise InputError(f"{self.gap_fill!r}", where="quality.gap_fill", allowed=", ".join(FILLS))
        for name, low, high in (
            ("refuse_above", 0, 1), ("max_gap_fill_s", 0, 7 * 86_400), ("power_margin", 1, 10), ("stuck_min_s", 1, 7 * 86_400),
            ("stuck_utilization", 0, 1), ("future_s", 0, 86_400), ("energy_share", 0, 1),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{getattr(self, name)}", where=f"quality.{name}", allowed=f"{low} to {high}")

    def of(self, flaw: str) -> str:
        """What is done about the rows: the policy, or what applies to the tolerated share where it is ``refuse``."""
        chosen = str(getattr(self, flaw))
        return POLICIES[flaw][0] if chosen == REFUSE else chosen

    def chosen(self) -> dict[str, str]:
        """Policy of each flaw."""
        return {flaw: str(getattr(self, flaw)) for flaw in POLICIES}

    def check(self, quality: QualityReport, rows: int, *, where: str) -> None:
        """Refuse a file with too much of a flaw whose policy is ``refuse``.

        Args:
            rows: rows that were kept, for a reader that does not tell how many it saw.

        Raises:
            InputError: names flaw, count, share, devices, file and remedy.
        """
        for source in quality.sources():
            total = quality.total(source)
            for flaw in POLICIES:
                if getattr(self, flaw) == REFUSE and flaw in total:
                    measure = next((size for size, name in MEASURES.items() if name == flaw and size in total), flaw)
                    share = total[measure] / _of_how_many(quality, source, measure, rows)
                    if share > self.refuse_above:
                        raise self._refusal(flaw, measure, share, quality, source, where)

    def _refusal(self, flaw: str, measure: str, share: float, quality: QualityReport, source: str, where: str) -> InputError:
        count = quality.total(source)[measure]
        others = "|".join(policy for policy in POLICIES[flaw] if policy != REFUSE)
        return InputError(
            f"{measure}: {count:,} ({share:.2%}; {FLAWS[measure]}), at {_devices(quality, source, measure)}",
            where=where,
            allowed=f"{self.refuse_above:.2%} (quality.refuse_above)",
            remedy=f"{REMEDY.get(flaw, 'export the file again')}, or choose quality.{flaw}={others}",
        )


def _of_how_many(quality: QualityReport, source: str, flaw: str, rows: int) -> int:
    """What a count is a share of: devices, or rows with those that are missing or were left out."""
    seen, count = quality.seen.get(source, {}), quality.total(source)[flaw]
    if flaw in OF_DEVICES:
        return max(seen.get("devices", 0), count)
    return max(seen.get("points", rows) + (count if flaw in MEASURES or "points" not in seen else 0), count)


def _devices(quality: QualityReport, source: str, flaw: str) -> str:
    """The devices with most of a flaw."""
    having = [(device, flaws[flaw]) for device, flaws in quality.counts[source].items() if flaw in flaws]
    having.sort(key=lambda item: (-item[1], item[0]))
    told = [f"{device or 'the file'} ({count:,})" for device, count in having[:5]]
    return ", ".join(told) + (f" and {len(having) - 5:,} more" if len(having) > 5 else "")
