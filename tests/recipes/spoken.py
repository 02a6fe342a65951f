"""Synthetic words in the folder layout of Speech Commands: a rising or falling tone for each word."""

import numpy as np
from scipy.io import wavfile

from recipes.common.speech import RATE, SAMPLES


def write_words(folder, *, words, each):
    """Write `each` files of each word, of 0.8 seconds: the first two for testing, the third for validation."""
    listed = {"testing": [], "validation": []}
    for place, word in enumerate(words):
        (folder / word).mkdir()
        for i in range(each):
            generator = np.random.default_rng((place, i))
            time = np.arange(int(0.8 * SAMPLES)) / RATE
            pitch = 300 + 500 * place + (400 if place % 2 else -100) * time + generator.uniform(-30, 30)
            wave = np.sin(2 * np.pi * np.cumsum(pitch) / RATE) + 0.1 * generator.standard_normal(len(time))
            name = f"{i:08x}_nohash_0.wav"
            wavfile.write(folder / word / name, RATE, (wave * 10_000).astype(np.int16))
            if i < 3:
                listed["testing" if i < 2 else "validation"].append(f"{word}/{name}")
    (folder / "_background_noise_").mkdir(exist_ok=True)
    for name, lines in listed.items():
        (folder / f"{name}_list.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
