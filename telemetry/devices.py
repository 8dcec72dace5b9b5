"""What a device name says: which part of a node, or of the supply above it, a reading measures.

====================================  =========  ======================================================================
device                                kind       what its watts are
====================================  =========  ======================================================================
``''`` with a node                    node       all of the node (DCMI, Redfish, a smart plug, Kepler's node)
``''`` or ``site`` without a node     site       all of the site
``psuNAME``                           psu        one power supply; the supplies of a node together are the node
``psys``, ``platform``                psys       the processor's own reading of the whole board; a cross-check of the node
``gpuN``                              gpu        one board
``gpuN/migI``                         mig        a slice within that board, never beside it
``cpuN``, ``package-N``               cpu        one processor package
``cpuN/core``, ``core``, ``uncore``   zone       a zone within a package, never beside it
``cpuN/dram``, ``dram``               memory     memory, which RAPL counts beside the package
``pdu/NAME/OUTLET``                   outlet     one outlet; its node is the one that it feeds
``pdu/NAME``                          pdu        all of one power distribution unit
anything else                         other      told, never summed
====================================  =========  ======================================================================

RAPL's zones: Linux ``Documentation/power/powercap``; core and uncore lie within the package, dram beside it, psys above both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

PART_KINDS: tuple[str, ...] = ("gpu", "cpu", "memory")  # what is summed below a node
KINDS: tuple[str, ...] = ("node", "site", "psu", "psys", "gpu", "mig", "cpu", "zone", "memory", "outlet", "pdu", "other")
FEW_KEYS = 1_000_000
PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("psu", re.compile(r"^psu.*$", re.IGNORECASE)),
    ("mig", re.compile(r"^gpu[^/]+/mig[^/]+$", re.IGNORECASE)),
    ("gpu", re.compile(r"^gpu[^/]+$", re.IGNORECASE)),
    ("outlet", re.compile(r"^pdu/[^/]+/.+$", re.IGNORECASE)),
    ("pdu", re.compile(r"^pdu/[^/]+$", re.IGNORECASE)),
    ("psys", re.compile(r"^(.*/)?(psys|platform)(-\d+)?$", re.IGNORECASE)),
    ("memory", re.compile(r"^(.*/)?dram(-\d+)?$", re.IGNORECASE)),
    ("zone", re.compile(r"^(.*/)?(core|uncore|pp0|pp1)(-\d+)?$", re.IGNORECASE)),
    ("cpu", re.compile(r"^(cpu[^/]*|package[^/]*|(.*/)package(-\d+)?)$", re.IGNORECASE)),
)


@dataclass(frozen=True)
class Place:
    """Kind of a device and what it lies in: the board of a slice, the PDU of an outlet, else ''."""

    kind: str
    parent: str = ""


def place_of(node: str, device: str) -> Place:
    """What a reading of ``device`` at ``node`` measures."""
    if device in ("", "site"):
        return Place("site" if not node or device else "node")
    kind = next((name for name, pattern in PATTERNS if pattern.match(device)), "other")
    parent = device.rpartition("/")[0] if kind in ("mig", "outlet") else ""
    return Place(kind, parent)


def codes_of(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values and the code of each row, int64 ``[R]``; cheap for a categorical column."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.categories.to_numpy(), column.cat.codes.to_numpy().astype(np.int64)
    codes, names = pd.factorize(column, use_na_sentinel=False)
    return np.asarray(names), codes.astype(np.int64)


def combined(codes: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of several code columns as one: the distinct combinations ``[K, C]`` of codes, and which of them each row is, ``[R]``."""
    key = np.zeros(len(codes[0][1]), dtype=np.int64)
    size = 1
    for names, code in codes:
        key = key * max(len(names), 1) + code
        size *= max(len(names), 1)
    if size <= max(len(key), FEW_KEYS):  # counting is much faster than sorting
        there = np.bincount(key, minlength=size) > 0
        distinct, inverse = np.flatnonzero(there), (np.cumsum(there) - 1)[key]
    else:
        distinct, inverse = np.unique(key, return_inverse=True)
    parts = []
    for names, _ in reversed(codes):
        parts.append(distinct % max(len(names), 1))
        distinct = distinct // max(len(names), 1)
    return np.stack(parts[::-1], axis=1), inverse.reshape(-1)
