"""Measured power curves: speed and watts per GPU model, workload kind and power level."""
