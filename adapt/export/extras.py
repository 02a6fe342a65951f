"""Packages that only some of the exports need."""

import importlib
from typing import Any


def needs(package: str, extra: str) -> Any:
    """Import a package that an extra of this one brings.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed: pip install 'adapt-precision[{extra}]'") from error
