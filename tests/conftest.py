import gc
import itertools
import os
from collections import defaultdict

import numba.core.caching
import pytest
import torch
from hypothesis import settings

from tests.covering import covering

# The first example of a property pays for imports and compilation, and the machines that run this are shared.
settings.register_profile("adapt", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=500)  # --hypothesis-profile=thorough
settings.load_profile("adapt")

# Networks of a few weights: more threads would only wait for each other.
torch.set_num_threads(1)


def _share_what_is_compiled(worker):
    """Give this process file names of its own for what Numba compiles, so that several can fill one cache at once.

    Numba numbers the versions of a function by what its index holds: two processes that read the index at the same
    moment would write different code to one file. That one may overwrite the other's index costs a compilation only.
    """
    numbers = itertools.count(1_000_000 * (worker + 1))
    cache = numba.core.caching.IndexDataCacheFile
    cache._data_name = lambda file, _: file._data_name_pattern.format(number=next(numbers))


if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    _share_what_is_compiled(int(worker.removeprefix("gw")))


def _parameters_of(item):
    """The values of a test's parameters, by their identity; what one `parametrize` gives together is one value."""
    values = {name: id(value) for name, value in item.callspec.params.items()}
    names = [marker.args[0] for marker in item.iter_markers("parametrize")]
    together = [n.replace(" ", "").split(",") if isinstance(n, str) else n for n in names]
    given = {tuple(group): tuple(values.pop(name) for name in group) for group in together}
    return given | {(name,): value for name, value in values.items()}  # of fixtures


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test marked `covering(strength)`, the combinations that hold no further set of values are long."""
    tests = defaultdict(list)
    for item in items:
        if item.get_closest_marker("covering"):
            tests[item.nodeid.partition("[")[0]].append(item)
    for same in tests.values():
        (strength,) = same[0].get_closest_marker("covering").args
        quick = [item for item in same if not item.get_closest_marker("long")]
        kept = set(covering([_parameters_of(item) for item in quick], strength))
        for position, item in enumerate(quick):
            if position not in kept:
                item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True, scope="module")
def _imported_modules_are_no_garbage():
    """With torch and Lightning loaded, looking through all objects takes a second, and hundreds of tests do so.

    Once for each module, because tests import more.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Let go of them in the end: libraries written in C complain about what is left."""
    gc.unfreeze()
