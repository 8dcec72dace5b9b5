"""What ``python -m pipelines.watch`` is made of: state, one target's shot, the plot, and what is done about a finding."""
