import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from benchmarks.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(20_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before, told = faults(), keep_freed_memory()
faults()  # until the heap has grown to what it needs
print(int(told), before, faults())
"""


def test_freed_memory_is_used_again_without_new_pages():
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    told, before, after = map(int, done.stdout.split())
    if not told:
        pytest.skip("the allocator is not glibc's")
    assert after < before / 100
