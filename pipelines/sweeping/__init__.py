"""A sweep in pieces: what is searched, where trials are kept, how one is scored, and what is written to MLflow."""
