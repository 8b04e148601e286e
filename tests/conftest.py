"""What every test may count on: one thread, no network, an empty home, and draws that can be repeated."""

import os
import tempfile

# Before anything imports torch, and for the processes that tests start: the workers are the parallelism.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.draws import draws

torch.set_num_threads(1)

_slow = [HealthCheck.too_slow, HealthCheck.data_too_large]  # drawing a network takes its time
settings.register_profile(
    "test", max_examples=draws(), deadline=None, derandomize=True, print_blob=True, suppress_health_check=_slow
)
# The soak draws anew every time and remembers what failed.
settings.register_profile("soak", max_examples=draws(), deadline=None, print_blob=True, suppress_health_check=_slow)
settings.load_profile("soak" if os.environ.get("NARROWS_SOAK") == "1" else "test")

_home = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Point all caches at an empty folder before a test module imports what reads these variables only once."""
    home = config.stash[_home] = tempfile.TemporaryDirectory(prefix="narrows-home-")
    os.environ["HOME"] = home.name
    os.environ["XDG_CACHE_HOME"] = f"{home.name}/.cache"
    os.environ.pop("NARROWS_CACHE", None)
    os.environ["HF_HOME"] = f"{home.name}/.cache/huggingface"
    os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove that folder."""
    config.stash[_home].cleanup()
