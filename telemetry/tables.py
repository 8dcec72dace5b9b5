"""Tables of a user's own as they are, before anything is checked."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa

from telemetry.errors import InputError


def read_table(path: Path | str) -> pd.DataFrame:
    """A CSV or Parquet table.

    Raises:
        InputError: no such file, or one that cannot be read.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError("no such file", where=str(path), allowed="a CSV or Parquet file")
    try:
        return pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"cannot be read: {str(error).splitlines()[0]}", where=str(path), remedy="give a whole CSV or Parquet table"
        ) from error
