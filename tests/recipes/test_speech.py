"""Reading words in Speech Commands' layout, and their coefficients against a slow twin."""

import math

import numpy as np
import pytest
from scipy.io import wavfile

from recipes.common.download import DataError
from recipes.common.speech import HOP, SAMPLES, WINDOW, hertz, load, mel, mfcc
from tests.recipes.spoken import write_words


def literal(wave):
    """The coefficients of one wave, frame by frame and band by band."""
    padded = [0.0] * (WINDOW // 2) + list(wave) + [0.0] * (WINDOW // 2)
    edges = [float(hertz(mel(8000.0) * i / 65)) for i in range(66)]
    result = []
    for start in range(0, SAMPLES + 1, HOP):
        window = [0.5 - 0.5 * math.cos(2 * math.pi * n / WINDOW) for n in range(WINDOW)]
        power = np.abs(np.fft.rfft([a * w for a, w in zip(padded[start : start + WINDOW], window, strict=True)])) ** 2
        bands = []
        for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
            weights = [
                max(min((40 * k - low) / (centre - low), (high - 40 * k) / (high - centre)), 0) for k in range(201)
            ]
            bands.append(math.log(max(float(power @ weights), 1e-6)))
        result.append(
            [
                math.sqrt((1 if k == 0 else 2) / 64)
                * sum(b * math.cos(math.pi * k * (2 * n + 1) / 128) for n, b in enumerate(bands))
                for k in range(40)
            ]
        )
    return np.array(result).T


def test_coefficients_are_those_of_the_definition():
    wave = np.sin(np.arange(SAMPLES) * 0.2).astype(np.float32) * np.linspace(0, 1, SAMPLES, dtype=np.float32)
    found = mfcc(wave[None])
    assert found.shape == (1, 40, 81)
    np.testing.assert_allclose(found[0], literal(wave), atol=2e-3)


def test_words_are_split_by_the_lists(tmp_path):
    write_words(tmp_path, words=("yes", "no"), each=6)
    train, test = load(tmp_path)
    assert train.names == ("no", "yes")
    assert (len(train), len(test)) == (6, 4)  # of each word two are for testing and one for validation
    assert train.labels.bincount().tolist() == [3, 3]
    assert train.coefficients.shape == (6, 1, 40, 81)


def test_what_is_no_word_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"holds no testing_list.txt"):
        load(tmp_path)
    write_words(tmp_path, words=("yes",), each=4)
    wavfile.write(tmp_path / "yes" / "z_nohash_0.wav", 8000, np.zeros(10, np.int16))
    with pytest.raises(DataError, match=r"z_nohash_0.wav must be 16-bit mono at 16000 Hz, got int16 \[10\] at 8000 Hz"):
        load(tmp_path)
