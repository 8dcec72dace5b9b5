"""Airflow (2.9 or newer, 3): watch >> retrain every hour. Copy into the DAG folder; JOULEWISE_HOME names the folder of the installation.

Both tasks resume or leave the champion as it was when they are killed, so that a retry is safe; one run at a time.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

from airflow import DAG

try:
    from airflow.providers.standard.operators.bash import BashOperator
except ImportError:  # Airflow 2
    from airflow.operators.bash import BashOperator

HOME = os.environ.get("JOULEWISE_HOME", "/opt/joulewise")

with DAG(
    dag_id="joulewise_retrain",
    description="Drift is looked for, and models with a reason to be are retrained",
    schedule="5 * * * *",
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),  # noqa: UP017 - Airflow 2 runs on Python 3.10 too
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 1, "retry_delay": timedelta(minutes=5)},
    tags=["joulewise"],
) as dag:
    watch = BashOperator(
        task_id="watch", bash_command=".venv/bin/python -m pipelines.watch", cwd=HOME, execution_timeout=timedelta(minutes=15)
    )
    retrain = BashOperator(
        task_id="retrain",
        bash_command=".venv/bin/python -m pipelines.retrain source=none",
        cwd=HOME,
        execution_timeout=timedelta(hours=6),
        trigger_rule="all_done",  # a watch that failed must not keep open triggers waiting
    )
    watch >> retrain
