"""Spoken words in the folder layout of Speech Commands (Warden 2018), as mel-frequency cepstral coefficients.

    folder/yes/0a7c2a8d_nohash_0.wav        a second of 16 kHz mono for each word and speaker
    folder/validation_list.txt, testing_list.txt        lines such as yes/0a7c2a8d_nohash_0.wav

What neither list names is for training; folders whose names begin with an underscore, such as _background_noise_, are
left out. The archive is http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz, 2.3 GB.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.io import wavfile
from torch import Tensor

from recipes.common.download import DataError

RATE, SAMPLES = 16_000, 16_000
WINDOW, HOP = 400, 200
"""Samples of a frame, and from one frame to the next: 81 frames in a second."""
BANDS, COEFFICIENTS = 64, 40
LOUDNESS = 1e-6
"""Power below which a band counts as silent."""


@dataclass(frozen=True)
class Words:
    """Spoken words.

    Args:
        coefficients: float32 [words, 1, COEFFICIENTS, 81].
        labels: int64 [words], places in `names`.
        names: the words in alphabetical order.
    """

    coefficients: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def load(folder: Path) -> tuple[Words, Words]:
    """Return the words to train on and those to test on. The validation list is left out of both.

    Raises:
        DataError: there is no testing list, a file is missing, or one is no 16 kHz mono WAV file.
    """
    if not (folder / "testing_list.txt").is_file():
        raise DataError(f"{folder} holds no testing_list.txt: unpack Speech Commands there ({__doc__})")
    testing, validation = (_listed(folder / f"{name}_list.txt") for name in ("testing", "validation"))
    names = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("_")))
    files = sorted(f"{name}/{path.name}" for name in names for path in (folder / name).glob("*.wav"))
    training = [file for file in files if file not in testing and file not in validation]
    return tuple(_words(folder, part, names) for part in (training, sorted(testing)))  # type: ignore[return-value]


def mfcc(waves: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mel-frequency cepstral coefficients of a second of sound.

    Frames of 25 ms every 12.5 ms under a Hann window, their power in 64 triangular bands that are evenly spaced in mel,
    its logarithm, and the first 40 coefficients of the orthonormal cosine transform over the bands.

    Args:
        waves: −1 to 1, [words, SAMPLES].

    Returns:
        float32 [words, COEFFICIENTS, 81].
    """
    padded = np.pad(waves, ((0, 0), (WINDOW // 2, WINDOW // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1)[:, ::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW + 1)[:-1])) ** 2
    bands = np.log(np.maximum(power @ mel_bands().T, LOUDNESS))
    return dct(bands, norm="ortho")[..., :COEFFICIENTS].transpose(0, 2, 1).astype(np.float32)


def mel_bands() -> NDArray[np.float64]:
    """Return the weights of each frequency in each band, triangles over neighbouring centres; [BANDS, WINDOW/2 + 1]."""
    frequencies = np.fft.rfftfreq(WINDOW, 1 / RATE)
    edges = hertz(np.linspace(0, mel(RATE / 2), BANDS + 2))
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - lower) / (centre - lower), (upper - frequencies) / (upper - centre)
    return np.maximum(np.minimum(rising, falling), 0)


def mel(frequency: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the pitch that a frequency in hertz is heard as: 2595·log₁₀(1 + f/700)."""
    return np.asarray(2595 * np.log10(1 + np.asarray(frequency) / 700))


def hertz(pitch: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inverse of `mel`."""
    return np.asarray(700 * (10 ** (pitch / 2595) - 1))


def _listed(path: Path) -> set[str]:
    return set(path.read_text(encoding="utf-8").split()) if path.is_file() else set()


def _words(folder: Path, files: list[str], names: tuple[str, ...]) -> Words:
    parts = [mfcc(np.stack([_wave(folder / file) for file in files[i : i + 256]])) for i in range(0, len(files), 256)]
    if not parts:
        raise DataError(f"{folder} holds no word to train on, or none to test on")
    labels = [names.index(file.split("/")[0]) for file in files]
    return Words(torch.from_numpy(np.concatenate(parts))[:, None], torch.tensor(labels), names)


def _wave(path: Path) -> NDArray[np.float32]:
    """A second of sound, −1 to 1; what is shorter is filled up with silence."""
    try:
        rate, wave = wavfile.read(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a WAV file: {error}") from error
    if rate != RATE or wave.ndim != 1 or wave.dtype != np.int16:
        raise DataError(f"{path} must be 16-bit mono at {RATE} Hz, got {wave.dtype} {list(wave.shape)} at {rate} Hz")
    wave = wave[:SAMPLES].astype(np.float32) / 2**15
    return np.pad(wave, (0, SAMPLES - len(wave)))
