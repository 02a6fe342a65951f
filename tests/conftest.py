import gc
import os
import tempfile
from pathlib import Path

# Processes that compile at the same time need folders of their own for what they compile; set before numba is imported.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["NUMBA_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"adapt-tests-numba-{os.getuid()}" / worker)

import pytest
import torch
from hypothesis import settings

# The first example of a property pays for imports and compilation, and the machines that run this are shared.
settings.register_profile("adapt", deadline=None)
settings.load_profile("adapt")

# Networks of a few weights: more threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _imported_modules_are_no_garbage():
    """With torch and Lightning loaded, looking through all objects takes a second, and dozens of tests do so."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
