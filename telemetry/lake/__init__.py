"""The lake: canonical tables as Parquet, partitioned by table, source and date, queried with DuckDB.

::

    ROOT/manifest.json                                          what is in the lake; replaced atomically, the only commit point
    ROOT/tables/<table>/source=<s>/version=<digest>/date=<d>/part*.parquet
    ROOT/tables/forecasts/source=<s>/date=<d>/issued=*.parquet  what was forecast: one file an issue, see telemetry/forecasts.py
    ROOT/quality/report.{html,json}                             of everything in the lake
    ROOT/.staging-*                                             files of an ingest that is not committed

Readers see only files that the manifest names. Files are written to a staging folder, moved into place, and then one replacement of the
manifest makes all sources of the ingest visible at once. An ingest that is killed, or that runs out of disk, leaves the last good state;
what it left behind is removed by the next one. A source whose content, reader and inventory are unchanged is not read again.

``store`` commits, ``staging`` writes, ``reading`` reads, ``compaction`` makes old samples coarser; ``telemetry/storage.py`` is the folder
or the bucket below. docs/lake.md has the guarantees and the figures.
"""

from telemetry.lake.staging import SourceTables
from telemetry.lake.store import Lake

__all__ = ["Lake", "SourceTables"]
