import torch
from hypothesis import settings

# The first example of a property pays for imports and compilation, and the machines that run this are shared.
settings.register_profile("adapt", deadline=None)
settings.load_profile("adapt")

# Networks of a few weights: more threads would only wait for each other.
torch.set_num_threads(1)
