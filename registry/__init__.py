"""What do we trust? Tracking, packaging, gates, promotion and verified loading of models."""

import os

# MLflow reads these when it is first imported: no usage reports leave the cluster, no bars mix with our own.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
