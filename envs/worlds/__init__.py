"""Other worlds from a trace: thinner, faster, longer, or under stress. Pure functions on canonical tables."""
