"""What runs: one thin module per command."""
