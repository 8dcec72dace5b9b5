"""Whether a forecaster still keeps what it promised: signals of what came against what was issued, and detectors over them."""
