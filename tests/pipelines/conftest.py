"""Makes ``original_makers`` importable: tests are collected in importlib mode, without packages."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
