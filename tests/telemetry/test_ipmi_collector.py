"""BMCs that are simulated on ports of this machine: asked through pyghmi and through the real ipmitool, silent ones told, others kept."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from telemetry.collectors import COLLECTORS
from telemetry.errors import InputError
from telemetry.readers import READERS

pytest.importorskip("pyghmi")
Collector = COLLECTORS["ipmi"]
PASSWORD = "not-a-real-password"
MODES = ("dcmi", "off", "sensors", "silent")
NOW = pd.Timestamp("2026-01-05T00:00:00Z")


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


@pytest.fixture(scope="module")
def password_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "password"
    path.write_text(PASSWORD + "\n")
    return path


@pytest.fixture(scope="module")
def ports(password_file):
    """Mode -> port of a BMC of that mode; ``nowhere`` is a port without one."""
    script = Path(__file__).with_name("simulated_bmc.py")
    found = {mode: free_port() for mode in (*MODES, "nowhere")}
    processes = [
        subprocess.Popen([sys.executable, str(script), str(found[mode]), str(password_file), mode], stdout=subprocess.PIPE, text=True)
        for mode in MODES
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "listening\n"
        yield found
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture
def make(ports, password_file):
    def run(*modes, **change):
        bmcs = tuple(f"{mode}=127.0.0.1:{ports[mode]}" for mode in modes)
        return Collector(**({"bmcs": bmcs, "user": "admin", "password_file": str(password_file), "timeout_s": 10.0} | change))

    return run


@pytest.fixture
def read(tmp_path, context):
    def run(data: bytes):
        (tmp_path / "ipmi.txt").write_bytes(data)
        result = READERS["ipmi"].read(tmp_path / "ipmi.txt", context)
        frame = result.tables["samples"]
        return dict(zip(frame["node"], frame["value"], strict=True)), result.quality

    return run


def test_dcmi_sensors_and_a_deactivated_meter(make, read):
    asker = make("dcmi", "off", "sensors").asker()
    values, quality = read(asker.sample(NOW))
    assert values == {"dcmi": 345.0, "sensors": 488.0}
    assert quality.counts["src"] == {"off": {"sentinel": 1}}
    assert quality.notes["src"]["sensors in Amps, which are not read"] == 1
    assert asker.without_dcmi == {"sensors"}
    assert asker.failures == {}
    assert read(asker.sample(NOW))[0] == values
    only, _ = read(make("dcmi", "sensors", method="sensors").asker().sample(NOW))
    assert only == {"dcmi": 488.0, "sensors": 488.0}


def test_who_does_not_answer_is_told_and_the_others_are_kept(make, read):
    asker = make("silent", "dcmi", "sensors", timeout_s=2.0, method="dcmi").asker()
    text = asker.sample(NOW)
    assert b"no answer within 2 s" in text
    values, quality = read(text)
    assert values == {"dcmi": 345.0}
    assert quality.counts["src"] == {"silent": {"unparseable": 1}, "sensors": {"unparseable": 1}}
    assert asker.failures == {"silent": 1, "sensors": 1}


def test_nobody_there(make, read):
    asker = make("nowhere", "dcmi").asker()
    text = asker.sample(NOW)
    assert asker.failures == {"nowhere": 1}
    assert b"=== nowhere 2026-01-05T00:00:00.000Z\n\nError: Unable to read 127.0.0.1 (no session)" in text


def test_a_wrong_password_is_asked_once_and_stands_nowhere(make, tmp_path):
    (tmp_path / "wrong").write_text("guessed")
    asker = make("dcmi", password_file=str(tmp_path / "wrong")).asker()
    for _ in range(2):
        with pytest.raises(InputError, match=r"all 1 BMCs refuse user 'admin' \(Incorrect password") as caught:
            asker.sample(NOW)
    assert asker.failures == {"dcmi": 2}
    assert "guessed" not in str(caught.value) + repr(asker)
    some = make("dcmi", "sensors").asker()
    some.refused["dcmi"] = "Incorrect password provided"
    text = some.sample(NOW)
    assert b"Incorrect password provided" in text
    assert b"488 Watts" in text


def test_fetch_samples_until_the_end_of_the_window(make, read):
    now = pd.Timestamp.now("UTC")
    text = make("dcmi", interval_s=0.1).fetch(now, now + pd.Timedelta("1s"))
    assert read(text)[0] == {"dcmi": 345.0}
    with pytest.raises(InputError, match=r"keeps no history.*sample_bmcs"):
        make("dcmi").fetch(now - pd.Timedelta("1h"), now)


def test_settings_and_password_files(make, tmp_path):
    for wrong in ({"bmcs": ()}, {"bmcs": ("n1",)}, {"bmcs": ("a=h", "a=i")}, {"method": "snmp"}, {"workers": 0}, {"timeout_s": 0.0}):
        with pytest.raises(InputError, match="allowed"):
            make("dcmi", **wrong)
    assert [(place.host, place.port) for place in make("dcmi", bmcs=("a=[fe80::1]:624", "b=bmc.example")).places()] == [
        ("fe80::1", 624), ("bmc.example", 623),
    ]  # fmt: skip
    (tmp_path / "empty").write_text("\n")
    for path, told in ((tmp_path / "empty", "no password"), (tmp_path / "nowhere", "cannot be read")):
        with pytest.raises(InputError, match=told):
            make("dcmi", password_file=str(path)).asker()


@pytest.mark.skipif(shutil.which("ipmitool", path="/usr/bin") is None, reason="Debian's ipmitool is not installed")
@pytest.mark.parametrize(
    ("mode", "command", "watts"),
    [
        ("dcmi", ("dcmi", "power", "reading"), 345.0),
        ("sensors", ("sensor",), 488.0),
        ("sensors", ("sdr",), 488.0),
        ("sensors", ("sdr", "elist"), 488.0),
        ("off", ("dcmi", "power", "reading"), None),
        ("sensors", ("dcmi", "power", "reading"), None),
    ],
)
def test_text_of_the_real_ipmitool(ports, password_file, read, mode, command, watts):
    place = ["-I", "lanplus", "-C", "3", "-H", "127.0.0.1", "-p", str(ports[mode]), "-U", "admin", "-f", str(password_file)]
    run = subprocess.run(["/usr/bin/ipmitool", *place, *command], capture_output=True, timeout=60)
    block = b"=== n1 2026-01-05T00:00:00Z\n" + run.stdout + run.stderr + b"=== n0 2026-01-05T00:00:00Z\nPwr Consumption | 1 Watts | ok\n"
    values, quality = read(block)
    assert values == ({"n0": 1.0} if watts is None else {"n0": 1.0, "n1": watts})
    flaw = {"off": "sentinel", "sensors": "unparseable"}[mode] if watts is None else None
    assert quality.total() == ({} if flaw is None else {flaw: 1})
