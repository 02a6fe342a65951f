"""A table of formats as a JSON file."""

import os
from collections.abc import Mapping
from pathlib import Path

from adapt import files
from adapt.numerics import Format, json_table


def to_json(formats: Mapping[str, Format], path: str | os.PathLike[str]) -> None:
    """Write formats by name as JSON, for other tools; `adapt.formats` reads the file again.

    Args:
        formats: what `adapt.formats` or `controller.formats` returns.
        path: the file. Its folder must exist.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    with files.replacing(Path(path)) as file:
        file.write(json_table.to_json(formats).encode())
