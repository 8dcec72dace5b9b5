"""Benchmarks and reproducible fits; each prints a table and writes its result."""
