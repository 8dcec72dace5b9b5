"""``python -m pipelines.receive``: OTLP/HTTP metrics into a spool, which ``python -m pipelines.ingest`` reads."""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from dataclasses import dataclass, field

from omegaconf import DictConfig

from pipelines.cli import build, hydra_command
from pipelines.collect import sole_writer, stop_signals
from telemetry.collectors.http import read_secret
from telemetry.errors import InputError
from telemetry.otlp_receiver import Limits, Receiver
from telemetry.otlp_store import RequestStore, StoreConfig

LOG = logging.getLogger(__name__)
LOOK_S = 1.0


@dataclass(frozen=True)
class ReceiveConfig:
    """Everything of the command.

    Attributes:
        out: folder of the spool.
        host, port: where it listens; anything but this machine itself needs a token. Port 0 takes a free one.
        token_file: file with the bearer token that senders give.
        finish: finish what is open in ``out``, and end.
    """

    out: str
    host: str = "127.0.0.1"
    port: int = 4318
    token_file: str | None = None
    finish: bool = False
    store: StoreConfig = field(default_factory=StoreConfig)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"{self.port}", where="port", allowed="0 to 65535")
        if not _is_local(self.host) and self.token_file is None:
            raise InputError(f"'{self.host}' without a token", where="host", remedy="give token_file, or listen on 127.0.0.1")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def receive(config: ReceiveConfig, stop: threading.Event, started: threading.Event | None = None) -> Receiver:
    """Listen until ``stop``; the receiver, closed, with its counts. ``started`` is set, and the address printed, once it listens.

    Raises:
        InputError: the address cannot be listened on, or the token cannot be read.
        OSError: the folder cannot be written.
    """
    token = read_secret(config.token_file) if config.token_file is not None else None
    store = RequestStore(config.out, config.store)
    try:
        receiver = Receiver((config.host, config.port), store, config.limits, token)
    except OSError as error:
        store.close()
        raise InputError(
            f"cannot listen on {config.host}:{config.port} ({error.strerror or error})", where="port", remedy="choose another"
        ) from error
    thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        print(f"receiving on http://{config.host}:{receiver.server_port}/v1/metrics into {config.out}", flush=True)
        if started is not None:
            started.set()
        while not stop.wait(LOOK_S):
            _finish_due(store)
    finally:
        receiver.drain()
        receiver.shutdown()
        receiver.server_close()
        thread.join()
        _finish_due(store)
        store.close()
    return receiver


def _finish_due(store: RequestStore) -> None:
    try:
        store.finish_due(time.time())
    except OSError as error:
        LOG.warning("cannot finish a window (%s); it stays open", error.strerror or error)


@hydra_command("receive")
def main(cfg: DictConfig) -> int:
    """Receive, store, say what was stored."""
    config = build(ReceiveConfig, cfg, "receive")
    with sole_writer(config.out):
        try:
            if config.finish:
                store = RequestStore(config.out, config.store)
                print(f"{len(store.finish_all(time.time()))} window(s) finished in {config.out}")
                return 0
            with stop_signals() as stop:
                counts = receive(config, stop).counts
        except OSError as error:
            raise InputError(
                f"cannot be written ({error.strerror or error})", where=config.out, remedy="make room or permit writing"
            ) from error
    print(f"{counts.points:,} points of {counts.requests:,} requests stored, {counts.rejected:,} rejected; {counts.refused:,} refused")
    print(f"read them with: python -m pipelines.ingest source=files 'source.files=[{{path: {config.out}, reader: otlp}}]'")
    return 0


if __name__ == "__main__":
    main()
