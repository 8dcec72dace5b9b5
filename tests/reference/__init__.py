"""The plain-Python reference of docs/simulator.md; tests load this folder by path as the package ``joulewise_reference``."""

from .model import *  # noqa: F403
from .simulator import Simulator as Simulator
