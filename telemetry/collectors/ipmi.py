"""Node power from baseboard management controllers (BMCs) over the network, as ``ipmitool`` would print it.

A BMC keeps no history: it tells the power of now. So ``sample`` asks all of them once, and ``fetch`` asks again and again until the window
is over. ``python -m pipelines.sample_bmcs`` does so for ever, into a spool.
The asking itself is ``bmc_poll.py``'s, in a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from telemetry.errors import InputError

BMC = re.compile(r"^(?P<node>[^=\s]+)=(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:=]+)(?::(?P<port>\d{1,5}))?$")
METHODS = ("auto", "dcmi", "sensors")
POLL = Path(__file__).with_name("bmc_poll.py")


@dataclass(frozen=True)
class IpmiCollector:
    """A BMC that does not answer is told in its block, as ``ipmitool`` would, and the others go on; ``ingest`` counts it.

    Attributes:
        bmcs: ``NODE=HOST`` or ``NODE=HOST:PORT``.
        user: with the privilege of an operator.
        password_file: holds the password of that user, in its first line.
        method: ``dcmi`` (the power reading), ``sensors`` (the sensors in watts), or ``auto``: the second where a BMC has no first.
        interval_s: between two samples in ``fetch``.
        timeout_s: for one sample of all BMCs; who has not answered by then is told as silent.
        workers: BMCs that are asked at a time.
    """

    bmcs: tuple[str, ...]
    user: str
    password_file: str
    method: str = "auto"
    interval_s: float = 60.0
    timeout_s: float = 20.0
    workers: int = 16

    tested: ClassVar[str] = "a simulated BMC, asked by pyghmi"
    reader: ClassVar[str] = "ipmi"
    suffix: ClassVar[str] = "txt"

    def __post_init__(self) -> None:
        if not self.bmcs:
            raise InputError("none", where="collector.bmcs", allowed="[NODE=HOST[:PORT], ...]")
        for name in ("user", "password_file"):
            if not getattr(self, name):
                raise InputError("none", where=f"collector.{name}", allowed="a name" if name == "user" else "a file")
        wrong = [text for text in self.bmcs if not BMC.match(text)]
        if wrong:
            raise InputError(f"{wrong[0]!r}", where="collector.bmcs", allowed="NODE=HOST or NODE=HOST:PORT")
        nodes = [place.node for place in self.places()]
        twice = sorted({node for node in nodes if nodes.count(node) > 1})
        if twice:
            raise InputError(f"node '{twice[0]}' twice", where="collector.bmcs", allowed="one BMC a node")
        if self.method not in METHODS:
            raise InputError(f"{self.method!r}", where="collector.method", allowed=", ".join(METHODS))
        if not self.interval_s > 0 or not self.timeout_s > 0 or self.workers < 1:
            told = f"interval_s {self.interval_s}, timeout_s {self.timeout_s}, workers {self.workers}"
            raise InputError(told, where="collector", allowed="more than 0, more than 0, from 1")

    def places(self) -> list[Place]:
        """Where the BMCs are."""
        matches = [match for text in self.bmcs if (match := BMC.match(text))]
        return [Place(m["node"], m["host"].strip("[]"), int(m["port"] or 623)) for m in matches]

    def asker(self) -> BmcAsker:
        """Who asks the BMCs.

        Raises:
            InputError: pyghmi is not installed, or the password cannot be read.
        """
        if importlib.util.find_spec("pyghmi") is None:
            raise InputError("pyghmi is not installed", where="collector ipmi", remedy="pip install -e '.[cloud]'")
        try:
            password = Path(self.password_file).read_text(encoding="utf-8").split("\n")[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                "the password cannot be read", where=self.password_file, remedy="write it alone into the first line"
            ) from error
        if not password:
            raise InputError("no password", where=self.password_file, remedy="write it alone into the first line")
        return BmcAsker(self, password)

    def fetch(self, start: pd.Timestamp, end: pd.Timestamp) -> bytes:
        """Blocks of all BMCs, every ``interval_s`` from now until ``end``.

        Raises:
            InputError: the window is over, or not one BMC gave a reading in it.
        """
        if end <= pd.Timestamp.now("UTC"):
            raise InputError(
                f"window until {end} is over", where="collector ipmi", remedy="a BMC keeps no history: python -m pipelines.sample_bmcs"
            )
        asker, blocks = self.asker(), []
        while (now := pd.Timestamp.now("UTC")) < end:
            blocks.append(asker.sample(now))
            time.sleep(min(self.interval_s - now.timestamp() % self.interval_s, max((end - now).total_seconds(), 0.0)))
        return b"".join(blocks)


@dataclass(frozen=True)
class Place:
    """Where a node's BMC is."""

    node: str
    host: str
    port: int


@dataclass
class BmcAsker:
    """Asks BMCs, and remembers what need not be asked again.

    Attributes:
        refused: nodes whose BMC refused the password, and how: asking on could lock the account.
        without_dcmi: nodes whose BMC knows no DCMI power reading.
        failures: node -> samples without a reading.
    """

    collector: IpmiCollector
    password: str = field(repr=False)
    refused: dict[str, str] = field(default_factory=dict)
    without_dcmi: set[str] = field(default_factory=set)
    failures: dict[str, int] = field(default_factory=dict)

    reader: ClassVar[str] = "ipmi"
    suffix: ClassVar[str] = "txt"
    counts: ClassVar[bool] = False

    def sample(self, now: pd.Timestamp) -> bytes:
        """A block per BMC, headed by ``=== NODE TIME`` of ``now``, in the order of ``bmcs``.

        Raises:
            InputError: every BMC refused the password.
        """
        places = self.collector.places()
        answers = self._polled([place for place in places if place.node not in self.refused])
        bodies = [self._body(place, answers.get(place.node)) for place in places]
        if len(self.refused) == len(places):
            raise InputError(
                f"all {len(places)} BMCs refuse user '{self.collector.user}' ({next(iter(self.refused.values()))})",
                where="collector ipmi",
                remedy=f"check {self.collector.password_file} and the user's privilege; asking on could lock the account",
            )
        stamp = now.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        return "".join(f"=== {place.node} {stamp}\n\n{body}\n" for place, body in zip(places, bodies, strict=True)).encode()

    def _polled(self, places: list[Place]) -> dict[str, dict[str, Any]]:
        """Node -> what was said of it; those without an answer in time are absent."""
        if not places:
            return {}
        method = self.collector.method
        asked = [
            {
                "host": place.host,
                "port": place.port,
                "dcmi": method != "sensors" and place.node not in self.without_dcmi,
                "sensors": method != "dcmi",
            }
            for place in places
        ]
        request = {"user": self.collector.user, "password": self.password, "workers": self.collector.workers, "places": asked}
        try:
            # Safe path (-P): the folder of the file is no place to import from.
            run = subprocess.run(
                [sys.executable, "-P", str(POLL)], input=json.dumps(request).encode(), timeout=self.collector.timeout_s,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False,
            )  # fmt: skip
            printed = run.stdout
        except subprocess.TimeoutExpired as error:
            printed = error.stdout or b""
        answers = [json.loads(line) for line in printed.splitlines() if line.endswith(b"}")]
        return {places[answer["index"]].node: answer for answer in answers}

    def _body(self, place: Place, answer: dict[str, Any] | None) -> str:
        """What a BMC said, as ipmitool prints it."""
        if answer is not None and answer.get("no_dcmi"):
            self.without_dcmi.add(place.node)
        if answer is not None and answer.get("refused"):
            self.refused[place.node] = answer["error"]
        if answer is not None and "text" in answer:
            return str(answer["text"])
        self.failures[place.node] = self.failures.get(place.node, 0) + 1
        silent = f"no answer within {self.collector.timeout_s:g} s"
        why = self.refused.get(place.node) or (silent if answer is None else answer["error"])
        return f"Error: Unable to read {place.host} ({why})\n"
