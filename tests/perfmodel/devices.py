"""Models that insist on running on the meta device, or on a device with values."""

from torch import nn

from adapt.perfmodel import operations


class Only(nn.Module):
    """A wrapper that runs its module on one kind of device, "meta" or "real", and fails on the other.

    It has its parameters in `module`, as AveragedModel has, so that their names are those of the bare module.
    """

    def __init__(self, device, module):
        super().__init__()
        self.device, self.module = device, module

    def forward(self, *inputs, **keywords):
        require(self.device, next(self.module.parameters()))
        return self.module(*inputs, **keywords)


def require(device, tensor):
    if tensor.is_meta != (device == "meta"):
        raise AssertionError(f"the {device} device was not enough")
    return tensor


def operations_on_meta(model, *inputs, **keywords):
    return operations(Only("meta", model), *inputs, **keywords)
