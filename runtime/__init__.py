"""What acts: decisions from promoted models."""
