"""The generator of the embedded sample: a synthetic cluster written in native export formats."""
