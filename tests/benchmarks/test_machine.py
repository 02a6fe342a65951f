import platform
import re

import torch

from benchmarks.machine import describe, slug


def test_the_machine_is_named_by_its_processor_and_never_by_its_host():
    description = describe(torch.device("cpu"), 2)
    name = slug(description)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert name.endswith(f"{description['cores']}-cores-2-threads")
    assert platform.node() not in str(description).split()


def test_a_gpu_names_the_machine_that_has_one():
    description = {"processor": "P", "device": "NVIDIA (R) X 9000", "cores": 4, "threads": 1}
    assert slug(description) == "nvidia-r-x-9000-4-cores-1-threads"


def test_versions_of_all_that_takes_part_are_kept():
    packages = describe(torch.device("cpu"), 1)["packages"]
    assert packages["torch"] == torch.__version__
    assert set(packages) >= {"numpy", "numba", "qtorch", "brevitas"}
