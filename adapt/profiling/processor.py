"""Name the present processor."""

import platform
from pathlib import Path


def processor() -> str:
    """Return the processor's model and, if known, its widest vector instructions."""
    model, flags = platform.processor() or platform.machine(), ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            model = value.strip() if key.strip() == "model name" else model
            flags = value if key.strip() == "flags" else flags
    except OSError:
        pass
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else ""
    return f"{model}, {vectors}" if vectors else model
