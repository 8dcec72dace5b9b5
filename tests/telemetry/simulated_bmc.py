"""A BMC that speaks RMCP+ on a port of this machine: ``python simulated_bmc.py PORT PASSWORD_FILE MODE``, where MODE is

``dcmi``     power readings by DCMI, 350 W now and 345 W on average;
``off``      DCMI whose power reading state is deactivated;
``sensors``  no DCMI; a repository of three sensors: 488 W, 12 A, 230 V;
``silent``   a session, and then no answer to anything.

It answers what ``ipmitool`` and pyghmi ask (IPMI v2.0, tables 33, 35 and 43; DCMI v1.5, table 6-15), and prints one line when it listens.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from pyghmi.ipmi import bmc
from pyghmi.ipmi.private import serversession, session

WATTS, AMPS, VOLTS = 6, 5, 4
# name, base unit, M (the factor of a reading), reading
SENSORS = (("Pwr Consumption", WATTS, 4, 122), ("PS1 Current", AMPS, 1, 12), ("PS1 Voltage", VOLTS, 2, 115))


def full_record(number: int, name: str, unit: int, factor: int, following: int) -> bytes:
    """SDR type 01h of a linear, unsigned threshold sensor without thresholds; its header included."""
    body = bytes([0x20, 0, number, 0x0A, number, 0x7F, 0x40, 0x0B, 0x01]) + bytes(6)
    body += bytes([0, unit, 0, 0, factor, 0, 0, 0, 0, 0, 0]) + bytes([0, 0, 0, 0xFF, 0]) + bytes(6) + bytes(2) + bytes(3)
    body += bytes([0xC0 | len(name)]) + name.encode()
    return struct.pack("<HBBB", number, 0x51, 0x01, len(body)) + body


class Suite3Session(serversession.ServerSession):
    """Knows cipher suite 3 alone (HMAC-SHA1), and says so to who proposes another, as a BMC of its time does."""

    def create_open_session_response(self, request):
        if request[12] != 1:
            self.clientsessionid = request[4:8]
            return bytearray([request[0], 0x04, 0, 0]) + bytearray(request[4:8])
        return super().create_open_session_response(request)


class SimulatedBmc(bmc.Bmc):
    def __init__(self, password: str, port: int, mode: str) -> None:
        super().__init__({"admin": password}, port=port, address="127.0.0.1")
        self.mode = mode
        self.additionaldevices = 0b11  # sensors and their repository
        self.records = [full_record(i, n, u, m, i + 1) for i, (n, u, m, _) in enumerate(SENSORS, start=1)]

    def get_power_state(self) -> str:
        return "on"

    def handle_raw_request(self, request, sess) -> None:
        asked = request["netfn"], request["command"]
        data = bytes(request["data"])
        if self.mode == "silent":
            return
        if asked == (0x2C, 0x02) and self.mode in ("dcmi", "off"):
            state = 0x40 if self.mode == "dcmi" else 0
            sess.send_ipmi_response(data=struct.pack("<BHHHHIIB", 0xDC, 350, 300, 400, 345, 1_767_571_200, 1000, state))
        elif asked == (0x0A, 0x20):
            sess.send_ipmi_response(data=struct.pack("<BHHIIB", 0x51, len(self.records), 0, 0, 0, 0x02))
        elif asked == (0x0A, 0x22):
            sess.send_ipmi_response(data=[1, 0])
        elif asked == (0x0A, 0x23):
            self._record(data, sess)
        elif asked == (0x04, 0x2D):
            known = 0 < data[0] <= len(SENSORS)
            sess.send_ipmi_response(data=[SENSORS[data[0] - 1][3], 0xC0, 0xC0], code=0) if known else sess.send_ipmi_response(code=0xCB)
        elif asked == (0x04, 0x27):
            sess.send_ipmi_response(data=[0] * 7)
        else:
            super().handle_raw_request(request, sess)

    def _record(self, data: bytes, sess) -> None:
        number, offset, size = struct.unpack("<HBB", data[2:6])
        index = max(number, 1) - 1
        if index >= len(self.records):
            return sess.send_ipmi_response(code=0xCB)
        following = index + 2 if index + 1 < len(self.records) else 0xFFFF
        part = self.records[index][offset : offset + size] if size != 0xFF else self.records[index][offset:]
        return sess.send_ipmi_response(data=struct.pack("<H", following) + part)


if __name__ == "__main__":
    port, password_file, mode = sys.argv[1:]
    serversession.ServerSession = Suite3Session
    SimulatedBmc(Path(password_file).read_text().strip(), int(port), mode)
    print("listening", flush=True)
    while True:
        session.Session.wait_for_rsp(timeout=30)
