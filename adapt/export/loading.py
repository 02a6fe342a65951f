"""A captured network out of a packed file, with the architecture of a module."""

import os

from torch import nn

from adapt.export import packed
from adapt.export.exported import Exported
from adapt.export.structure import structured


def load(path: str | os.PathLike[str], module: nn.Module | None = None) -> Exported:
    """Read a packed file that `Exported.save` wrote. Nothing in it is executed.

    The file holds no architecture: code holds that better than a serialised graph, which ties a network to the shape of
    its inputs and to a version of torch. Where the code is not at hand, an ONNX file has both.

    Args:
        path: the file.
        module: an instance of the trained network's class with any weights, in the memory format of the trained one;
            it stays as it is. Without it the result has words, formats and tensors, but `Exported.module()` raises.

    Raises:
        ModuleNotFoundError: safetensors or zstandard are missing: pip install 'adapt-precision[export]'.
        OSError: the file cannot be opened.
        ValueError: it is truncated, damaged, altered, of a later version or no packed file; or it belongs to another
            network than the module.
    """
    contents = packed.read(path)
    exported = Exported(contents.words, contents.formats, contents.tensors, contents.aliases, origin=contents.origin)
    return exported if module is None else structured(exported, module)
