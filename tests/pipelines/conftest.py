"""Makes the makers beside this file importable: tests are collected in importlib mode, without packages."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def evaluation(tmp_path, monkeypatch, capsys):
    """``evaluation(jobs, grid, cluster, *always)`` gives ``call(*arguments)``: status, the JSON document or None, and what was printed."""
    from pipelines import evaluate as command

    def prepare(jobs, grid, cluster, *always):
        monkeypatch.chdir(tmp_path)
        jobs.to_parquet("jobs.parquet")
        grid.to_parquet("grid.parquet")
        (tmp_path / "cluster.yaml").write_text(cluster)
        always = ("jobs=jobs.parquet", "grid=grid.parquet", "cluster=cluster.yaml", *always)

        def call(*arguments):
            out = tmp_path / "out.json"
            out.unlink(missing_ok=True)
            monkeypatch.setattr(sys, "argv", ["evaluate", *always, *arguments, "out=out.json", "progress=false"])
            with pytest.raises(SystemExit) as ended:
                command.main()
            return ended.value.code, json.loads(out.read_text()) if out.exists() else None, capsys.readouterr()

        return call

    return prepare
