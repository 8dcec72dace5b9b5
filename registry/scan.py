"""Is there anything in this folder that runs code when it is read?"""

from __future__ import annotations

import logging
import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO

# What forecasters, the agent and MLflow write; anything else is refused rather than guessed at.
ALLOWED_SUFFIXES = frozenset(
    {".json", ".jsonl", ".safetensors", ".txt", ".md", ".png", ".svg", ".parquet", ".csv", ".onnx", ".yaml", ".yml"}
)
ALLOWED_NAMES = frozenset({"MLmodel", "served_model.py", "registered_model_meta"})
_EXECUTING = frozenset({"PROTO", "GLOBAL", "STACK_GLOBAL", "REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "FRAME"})


def scan_folder(folder: Path) -> list[str]:
    """Findings, one line each: pickles (by opcodes, whatever the name), archives, links, and file kinds that are not allowed."""
    findings: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            findings.append(f"{name}: a symbolic link")
        elif path.is_file():
            if path.suffix not in ALLOWED_SUFFIXES and path.name not in ALLOWED_NAMES:
                findings.append(f"{name}: file kind '{path.suffix or path.name}' is not allowed")
            if is_pickle(path):
                findings.append(f"{name}: contains a pickle")
            elif zipfile.is_zipfile(path):
                findings.append(f"{name}: is an archive")
    return findings


def is_pickle(path: Path) -> bool:
    """Whether the bytes are a pickle of any protocol: its opcodes parse up to STOP and one of them frames or executes."""
    with path.open("rb") as handle:
        head = handle.read(2)
        if len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
            return True
        handle.seek(0)
        return _executes(handle)


def _executes(handle: BinaryIO) -> bool:
    seen = False
    try:
        for opcode, _, _ in pickletools.genops(handle):
            seen = seen or opcode.name in _EXECUTING
    except Exception:  # genops raises whatever the bytes lead it to: not a pickle
        return False
    return seen


def deep_scan(folder: Path) -> list[str]:
    """Findings of :func:`scan_folder` and of modelscan (Protect AI): unsafe operators and globals in the formats that it knows.

    What modelscan could not read counts as a finding; what it does not know is judged by :func:`scan_folder` alone.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from modelscan.modelscan import ModelScan

        level = logging.getLogger("modelscan").level
        logging.getLogger("modelscan").setLevel(logging.CRITICAL)
        try:
            found = ModelScan().scan(folder)
        finally:
            logging.getLogger("modelscan").setLevel(level)
    lines = [f"modelscan: {issue.get('source', '')}: {issue.get('severity')} {issue.get('description')}" for issue in found["issues"]]
    lines += [f"modelscan: {error.get('source', '')}: {error.get('description') or error.get('message')}" for error in found["errors"]]
    return scan_folder(folder) + lines
