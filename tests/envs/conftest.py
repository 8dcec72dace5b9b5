"""Fixtures of the simulator's tests."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def worlds():
    """The module ``kernel_worlds`` beside this file, by path: another distribution installs a top-level package named tests."""
    path = Path(__file__).with_name("kernel_worlds.py")
    spec = importlib.util.spec_from_file_location("kernel_worlds", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def agent_world(worlds):
    """A few small windows for the agent."""
    return worlds.random_world(7, count=40, windows=3)
