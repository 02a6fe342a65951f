"""The lines that docs/integrations.md shows for each host, to be run in it."""

import re
from pathlib import Path
from typing import Any

import torch

import adapt

_PAGE = (Path(adapt.__file__).parent.parent / "docs" / "integrations.md").read_text(encoding="utf-8")
LINES = dict(re.findall(r'^```python title="(.+?)"\n(.*?)^```', _PAGE, re.DOTALL | re.MULTILINE))


def run(host: str, **names: Any) -> dict[str, Any]:
    """Run the host's lines with these names defined; return all names after them."""
    namespace = {"torch": torch, "adapt": adapt, **names}
    exec(LINES[host], namespace)
    return namespace
