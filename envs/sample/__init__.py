"""The generator of the synthetic sample telemetry in ``data/sample``."""
