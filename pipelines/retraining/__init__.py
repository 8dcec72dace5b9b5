"""Retraining: one attempt a model, resumable, that either replaces the champion through the gates or leaves it untouched."""
