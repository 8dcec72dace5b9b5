"""Every reader, one contract: schema-valid UTC tables, same result twice, and one clear error for what cannot be read."""

from __future__ import annotations

import gzip
import json
import random

import pandas as pd
import pytest

from telemetry.errors import InputError
from telemetry.readers import READERS, reader_named
from telemetry.schema import COLUMNS, TIME_COLUMN, validate

NAMES = sorted(READERS)


@pytest.fixture
def write(tmp_path):
    def put(name: str, data: bytes):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return put


@pytest.mark.parametrize("reader", NAMES)
def test_clean_export_gives_valid_utc_tables_and_no_flaw(reader, clean, write, told):
    result = READERS[reader].read(write(*clean[reader]), told(reader))
    assert result.quality.total() == {}
    assert result.tables
    for table, frame in result.tables.items():
        validate(table, frame, where=reader)
        assert list(frame.columns) == list(COLUMNS[table])
        assert len(frame) > 0
        assert set(frame["source"].astype(str)) == {"src"}
        if table not in TIME_COLUMN:
            continue
        times = frame[TIME_COLUMN[table]]
        assert str(times.dt.tz) == "UTC"
        assert times.min() >= pd.Timestamp("2026-01-05", tz="UTC")
        assert times.max() < pd.Timestamp("2026-01-08", tz="UTC")


@pytest.mark.parametrize("reader", NAMES)
def test_reading_twice_and_gzipped_gives_the_same(reader, clean, write, told):
    name, data = clean[reader]
    paths = [write(name, data), write(name, data), write(name + ".gz", gzip.compress(data))]
    results = [READERS[reader].read(path, told(reader)) for path in paths]
    for other in results[1:]:
        assert other.quality.to_dict() == results[0].quality.to_dict()
        for table, frame in results[0].tables.items():
            pd.testing.assert_frame_equal(frame, other.tables[table])


@pytest.mark.parametrize("reader", NAMES)
@pytest.mark.parametrize("data", [b"", b"\n \n"], ids=["no bytes", "blank"])
def test_empty_file_is_refused(reader, data, clean, write, told):
    path = write(clean[reader][0], data)
    with pytest.raises(InputError, match="empty export") as caught:
        READERS[reader].read(path, told(reader))
    assert path.name in str(caught.value)


@pytest.mark.parametrize("reader", NAMES)
def test_truncated_file_is_refused_or_counted(reader, clean, write, told):
    """Cut at many places: never another exception, never a silent loss inside a row, never an invalid table."""
    name, data = clean[reader]
    for share in (0.05, 0.3, 0.5, 0.77, 0.93, 0.99):
        path = write(name, data[: int(len(data) * share)])
        try:
            result = READERS[reader].read(path, told(reader))
        except InputError as error:
            assert path.name in str(error)  # noqa: PT017
        else:
            for table, frame in result.tables.items():
                validate(table, frame, where=reader)


@pytest.mark.parametrize("reader", NAMES)
@pytest.mark.parametrize("damage", ["cut", "flipped", "no header"])
def test_corrupt_gzip_is_refused(reader, damage, clean, write, told):
    name, data = clean[reader]
    packed = bytearray(gzip.compress(data))
    if damage == "cut":
        packed = packed[: len(packed) // 2]
    elif damage == "flipped":
        packed[len(packed) // 2] ^= 0xFF
    else:
        packed = packed[2:]
    with pytest.raises(InputError, match="gzip"):
        READERS[reader].read(write(name + ".gz", bytes(packed)), told(reader))


@pytest.mark.parametrize("reader", NAMES)
def test_missing_file_and_another_format_are_refused(reader, clean, write, told, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        READERS[reader].read(tmp_path / "nowhere.txt", told(reader))
    with pytest.raises(InputError):
        READERS[reader].read(write("other.txt", b"dear diary,\ntoday nothing was measured\n"), told(reader))
    with pytest.raises(InputError):
        READERS[reader].read(write("binary.txt", bytes(range(128, 256))), told(reader))


def _damaged(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut or put in."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randrange(len(out)), rng.random()
        if kind < 0.4:
            out[at] = rng.randrange(32, 127)
        elif kind < 0.7:
            del out[at : at + rng.randint(1, 40)]
        else:
            out[at:at] = rng.choice([b"-", b"9", b",", b"|", b"\n", b"NaN", b"e9", b'"', b"."])
    return bytes(out)


def _reshaped(value, rng: random.Random):
    """JSON with one value somewhere replaced by one of another type."""
    odd = rng.choice([None, 1, "x", [], {}, -1.5, True, [1], 1e400, 10**400])
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        return {**value, key: odd if rng.random() < 0.3 else _reshaped(value[key], rng)}
    if isinstance(value, list) and value:
        at = rng.randrange(len(value))
        return [*value[:at], _reshaped(value[at], rng), *value[at + 1 :]]
    return odd


@pytest.mark.parametrize("reader", NAMES)
def test_damaged_files_never_raise_anything_else(reader, clean, write, told):
    """Each is read into valid tables, with its damage counted, or refused by name."""
    name, data = clean[reader]
    for seed in range(40):
        rng = random.Random(seed)
        damaged = _damaged(data, rng)
        if reader in ("prometheus", "kubernetes") and seed % 2:
            damaged = json.dumps(_reshaped(json.loads(data), rng)).encode()
        elif reader == "otlp" and seed % 2:
            lines = data.decode().splitlines()
            lines[seed % len(lines)] = json.dumps(_reshaped(json.loads(lines[seed % len(lines)]), rng))
            damaged = "\n".join(lines).encode()
        path = write(name, damaged)
        try:
            result = READERS[reader].read(path, told(reader))
        except InputError as error:
            assert path.name in str(error)  # noqa: PT017
        else:
            for table, frame in result.tables.items():
                validate(table, frame, where=reader)


def test_unknown_reader_names_the_choices():
    with pytest.raises(InputError, match=r"unknown reader 'prometeus'.*prometheus.*otlp"):
        reader_named("prometeus")


def test_every_reader_has_a_clean_export(clean):
    assert set(clean) == set(READERS)
    assert all(reader.name == name for name, reader in READERS.items())
