"""``python -m pipelines.make_sample``: write the synthetic sample telemetry."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from envs.cluster_io import load_cluster
from envs.sample.build import FILE_KINDS, build_sample
from envs.sample.settings import SampleSettings
from pipelines.cli import CONF_DIR, build, hydra_command
from telemetry.errors import InputError


def write_files(files: dict[str, bytes], out: Path) -> None:
    """Write all files or none: each is complete in a folder beside ``out`` before the first is moved into place.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
            for name, content in files.items():
                (Path(scratch) / name).write_bytes(content)
            for name in files:
                os.replace(Path(scratch) / name, out / name)
    except OSError as error:
        raise InputError(error.strerror or str(error), where=str(out), remedy="out=DIR, a folder that can be written") from error


@hydra_command("make_sample")
def main(cfg: DictConfig) -> int:
    """Generate the sample and report its size."""
    out = Path(str(cfg.out))
    settings = build(SampleSettings, {key: cfg[key] for key in ("seed", "days", "start")}, "make_sample")
    with tqdm(total=len(FILE_KINDS) + 1, unit="file", desc="sample") as bar:

        def progress(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        files = build_sample(settings, load_cluster("sample", CONF_DIR), progress)
    write_files(files, out)
    for name, content in sorted(files.items()):
        print(f"{len(content):>10,} B  {name}")
    print(f"{sum(map(len, files.values())):>10,} B  in {out}; next: python -m pipelines.ingest")
    return 0


if __name__ == "__main__":
    main()
