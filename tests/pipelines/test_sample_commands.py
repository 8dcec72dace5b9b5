"""The sampling commands: exit codes, files, and the line that reads them."""

from __future__ import annotations

import sys

import pytest

from pipelines import sample_bmcs, sample_local
from telemetry.collectors.ipmi import BmcAsker
from telemetry.collectors.local import Nvml
from telemetry.errors import InputError
from telemetry.spool import Spool


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(command, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as ended:
            command.main()
        return ended.value.code, capsys.readouterr()

    return run


def test_without_a_driver_local_sampling_ends_with_2(call, monkeypatch):
    def none():
        raise InputError("no NVIDIA driver answers", where="NVML")

    monkeypatch.setattr(Nvml, "opened", staticmethod(none))
    code, printed = call(sample_local, "out=spool", "seconds=1")
    assert code == 2
    assert "no NVIDIA driver answers" in printed.err


def test_local_sampling_writes_files_and_says_how_to_read_them(call, monkeypatch, tmp_path):
    class Quiet:
        def __init__(self):
            self.unknown = {"nvmlDeviceGetMigMode": 3}

        def points(self):
            yield "hw.power", "W", "gpu0", 100.0, {}

    monkeypatch.setattr(Nvml, "opened", staticmethod(Quiet))
    code, printed = call(sample_local, "out=spool", "seconds=1", "interval_s=0.5", "rapl=false", "node=n0")
    assert code == 0
    assert len(Spool(tmp_path / "spool").files()) >= 1
    assert "[{path: spool, reader: otlp}]" in printed.out
    assert "nvmlDeviceGetMigMode was not answered 3 time(s)" in printed.out


def test_bmcs_need_their_settings_and_are_told(call, monkeypatch, tmp_path):
    code, printed = call(sample_bmcs, "seconds=1")
    assert code == 2
    assert "collector.user" in printed.err
    (tmp_path / "pw").write_text("x")
    monkeypatch.setattr(BmcAsker, "_polled", lambda self, places: {"n1": {"index": 0, "text": "Pwr Consumption | 9 Watts | ok\n"}})
    given = ('collector.bmcs=["n1=127.0.0.1","n2=127.0.0.1:9"]', "collector.user=u", "collector.password_file=pw")
    code, printed = call(sample_bmcs, *given, "seconds=1", "collector.interval_s=0.5", "out=spool")
    assert code == 0
    assert "[{path: spool, reader: ipmi}]" in printed.out
    assert "note: n2 gave no reading" in printed.out
    code, printed = call(sample_bmcs, *given, "collector.method=snmp")
    assert code == 2
    assert "auto, dcmi, sensors" in printed.err
