"""The served form of a package, logged from code: ``mlflow.pyfunc.load_model`` and the scoring server work on every version.

Our own runtime does not use it: it loads through ``registry.loading``. This form, too, refuses a package that no trusted key signed, that
was revoked, or whose files changed. The trust folder is ``model_config={"trust_folder": ...}`` of ``load_model``, else the environment
variable ``JOULEWISE_TRUST_FOLDER`` (``mlflow models serve`` has no other way in), else that of MLflow's tracking URI.
"""

from __future__ import annotations

import os
from pathlib import Path

import mlflow
import mlflow.models
import mlflow.pyfunc
import pandas as pd


class PackagedModel(mlflow.pyfunc.PythonModel):
    """A forecaster (rows newer than its history in, quantiles out) or a policy (observations ``[B, D]`` in, actions ``[B]`` out)."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        from registry.keys import trust_folder
        from registry.loading import open_package

        named = (context.model_config or {}).get("trust_folder") or os.environ.get("JOULEWISE_TRUST_FOLDER") or None
        self.served = open_package(Path(context.artifacts["package"]), trust_folder(mlflow.get_tracking_uri(), named))

    # MLflow wants a hint that it knows; a policy's input is an array, which the signature in the version says.
    def predict(self, context, model_input: pd.DataFrame, params=None):  # type: ignore[no-untyped-def]
        return self.served.predict(model_input, params or {})


mlflow.models.set_model(PackagedModel())
