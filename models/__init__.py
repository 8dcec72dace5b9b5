"""What will happen: forecasters behind one contract, metrics and the rolling-origin backtest."""
