import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """One thread, also after a recipe that was given --threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
