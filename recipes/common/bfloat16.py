"""A network whose products are computed in bfloat16."""

import torch
from torch import Tensor, nn


class Bfloat16(nn.Module):
    """Runs a network under bfloat16 autocast, in training alone or always, and returns float32.

    Args:
        network: what to run.
        always: whether evaluation runs so too.
    """

    def __init__(self, network: nn.Module, *, always: bool) -> None:
        super().__init__()
        self.network, self.always = network, always

    def forward(self, x: Tensor) -> Tensor:
        """What the network returns, in float32."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.training or self.always):
            result: Tensor = self.network(x)
        return result.float()
