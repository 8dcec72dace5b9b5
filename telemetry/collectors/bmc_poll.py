"""Asks BMCs once, in a process of its own: pyghmi keeps its sessions in the class, where dead ones come back, and a BMC may never answer.

Reads ``{user, password, workers, places: [{host, port, dcmi, sensors}]}`` from standard input and prints a line of JSON for each place as
soon as it is known: ``{index, text}`` as ``ipmitool`` would print it, or ``{index, error, refused}``; ``no_dcmi`` is true where the BMC
knows no DCMI power reading. Run as a file, it needs pyghmi and nothing of this project.
Sources: IPMI v2.0 (RMCP+ sessions, sensors), DCMI v1.5 section 6.6.1 "Get Power Reading" (netfn 2Ch, command 02h).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

DCMI_GROUP, DCMI_NETFN, GET_POWER_READING = 0xDC, 0x2C, 0x02
# Completion codes: the command is not known, not for this BMC, or not at this level of privilege.
NOT_SUPPORTED = (0xC1, 0xC2, 0xC9, 0xCB, 0xCC, 0xCD, 0xD4, 0xD5, 0xD6)
REFUSED = re.compile(r"password|unauthori|privilege|user|role", re.IGNORECASE)
UNITS = {"W": "Watts", "A": "Amps", "V": "Volts"}


def dcmi_text(data: bytes) -> str:
    """Answer to Get Power Reading as ``ipmitool dcmi power reading`` prints it.

    Raises:
        struct.error: too short.
    """
    _, now, low, high, mean, _, period_ms, state = struct.unpack("<BHHHHIIB", data[:18])
    return (
        f"    Instantaneous power reading:              {now:8d} Watts\n"
        f"    Minimum during sampling period:           {low:8d} Watts\n"
        f"    Maximum during sampling period:           {high:8d} Watts\n"
        f"    Average power reading over sample period: {mean:8d} Watts\n"
        f"    Sampling period:                          {period_ms // 1000:08d} Seconds.\n"
        f"    Power reading state is:                   {'activated' if state & 0x40 else 'deactivated'}\n"
    )


def sensor_text(sensors: Iterable[Any]) -> str:
    """Sensors in W, A and V as ``ipmitool sdr`` prints them: ``name | value unit | status``."""
    rows = []
    for sensor in sensors:
        unit = UNITS.get(str(sensor.units))
        if unit is not None:
            value = "no reading" if sensor.value is None or sensor.unavailable else f"{sensor.value:g} {unit}"
            rows.append(f"{sensor.name:<16} | {value:<17} | ok\n")
    return "".join(rows)


def asked(place: dict[str, Any], user: str, password: str) -> dict[str, Any]:
    """What one BMC says."""
    from pyghmi.exceptions import PyghmiException
    from pyghmi.ipmi.command import Command

    command, no_dcmi = None, False
    try:
        command = Command(bmc=place["host"], userid=user, password=password, port=place["port"], privlevel=3)
        if place["dcmi"]:
            answer = command.raw_command(netfn=DCMI_NETFN, command=GET_POWER_READING, data=(DCMI_GROUP, 1, 0, 0))
            no_dcmi = answer.get("code") in NOT_SUPPORTED
            if "error" not in answer:
                return {"text": dcmi_text(bytes(answer["data"]))}
            if not (place["sensors"] and no_dcmi):
                return {"error": str(answer["error"])}
        return {"text": sensor_text(command.get_sensor_data()), "no_dcmi": no_dcmi}
    except PyghmiException as error:
        why = str(error)
        return {"error": "no session" if why in ("", "None") else why, "refused": bool(REFUSED.search(why)), "no_dcmi": no_dcmi}
    except Exception as error:  # whatever a BMC's odd answer makes of the library, the others go on
        return {"error": f"{type(error).__name__}: {error}", "no_dcmi": no_dcmi}
    finally:
        if command is not None:
            with contextlib.suppress(Exception):  # it may be gone already; a BMC has few sessions
                command.ipmi_session.logout()


def main() -> None:
    """See the module."""
    request = json.load(sys.stdin)
    lock = threading.Lock()

    def told(index: int) -> None:
        line = json.dumps({"index": index, **asked(request["places"][index], request["user"], request["password"])})
        with lock:
            print(line, flush=True)

    with ThreadPoolExecutor(max(1, min(request["workers"], len(request["places"])))) as pool:
        list(pool.map(told, range(len(request["places"]))))
    os._exit(0)  # pyghmi's own thread waits for ever


if __name__ == "__main__":
    main()
