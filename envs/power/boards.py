"""What data sheets say of boards: ``boards.csv`` beside this module, or a file of one's own beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from envs.power.readings import Board
from telemetry.errors import InputError

BOARDS_FILE = Path(__file__).with_name("boards.csv")
COLUMNS = ("gpu_model", "limit_w", "idle_w")


def load_boards(path: Path | str | None = None) -> dict[str, Board]:
    """Boards by model: the committed ones, those of ``path`` (columns ``gpu_model, limit_w, idle_w``) in place of or beside them.

    Raises:
        InputError: no such file, a missing column, or a figure that is no watts.
    """
    boards = _read(BOARDS_FILE)
    return boards | _read(Path(path)) if path is not None else boards


def _read(file: Path) -> dict[str, Board]:
    if not file.is_file():
        raise InputError("no such file", where=str(file), allowed=f"a CSV of the columns {', '.join(COLUMNS)}")
    try:
        table = pd.read_csv(file)
    except (ValueError, OSError) as error:
        raise InputError(f"no CSV: {str(error).strip()}", where=str(file)) from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise InputError(f"missing column {', '.join(missing)}", where=str(file), allowed=", ".join(COLUMNS))
    boards = {}
    for row in table.itertuples(index=False):
        figures = [pd.to_numeric(value, errors="coerce") for value in (row.limit_w, row.idle_w)]
        if not np.isfinite(figures).all():
            raise InputError(f"limit {row.limit_w}, idle {row.idle_w}", where=f"{file}, {row.gpu_model}", allowed="watts")
        boards[str(row.gpu_model)] = Board(str(row.gpu_model), float(figures[0]), float(figures[1]))
    return boards
