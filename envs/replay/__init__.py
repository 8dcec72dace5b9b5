"""An episode told again from its event log alone: totals, placement, causes of missed objectives, and one page to read."""
