"""Where a result comes from: commit, packages, data."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd


def git_state(folder: Path | None = None) -> dict[str, Any]:
    """``{"commit": 40 hex digits or "unknown", "dirty": bool or None}`` of the checkout that holds ``folder``."""
    where = folder or Path(__file__).resolve().parent
    commit = _git(where, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": "unknown", "dirty": None}
    changes = _git(where, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environment() -> dict[str, Any]:
    """Python, platform and the version of every installed distribution."""
    packages = {(dist.metadata["Name"] or "").lower(): dist.version for dist in metadata.distributions() if dist.metadata["Name"]}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "packages": dict(sorted(packages.items())),
    }


def frame_hash(frame: pd.DataFrame) -> str:
    """SHA-256 over the values, column names and dtypes of ``frame``; the index does not count, the order of rows does."""
    digest = hashlib.sha256()
    for column in frame.columns:
        digest.update(f"{column}:{frame[column].dtype};".encode())
    digest.update(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def data_facts(frame: pd.DataFrame, time_column: str = "ds") -> dict[str, Any]:
    """``{"sha256", "rows", "start", "end"}`` of a table, for a run's and a manifest's data lineage."""
    times = frame[time_column]
    return {"sha256": frame_hash(frame), "rows": len(frame), "start": _iso(times.min()), "end": _iso(times.max())}


def _iso(moment: Any) -> str | None:
    return None if pd.isna(moment) else pd.Timestamp(moment).isoformat()
