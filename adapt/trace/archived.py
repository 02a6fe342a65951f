"""Base class of a run's records that can be saved to files and states."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from adapt.trace import archive


class Archived(ABC):
    """A record that is saved as arrays and strings, in a versioned layout: see `adapt.trace.archive`."""

    _version: ClassVar[int]
    _unreadable: ClassVar[str]
    """The text of an error about an unreadable file, after the file's name."""

    def state_dict(self) -> dict[str, Any]:
        """Return a copy as plain integers, strings and tensors, which `torch.load(…, weights_only=True)` can read."""
        return archive.to_state(self._content(), version=self._version)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        """Return the record that `state_dict` described, in this version or an earlier one.

        Raises:
            TypeError, ValueError: the state describes something else, or needs a newer release.
        """
        return cls._from_content(archive.from_state(state, version=cls._version))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an npz file without pickles, completely or not at all.

        Raises:
            OSError: the folder does not exist or cannot be written.
        """
        archive.write(Path(path), self._content(), version=self._version)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote, in this version or an earlier one. Nothing in it is trusted or executed.

        Raises:
            OSError: the file cannot be opened.
            ValueError: it is not such a file, is incomplete, or needs a newer release; the message names the file and
                the reason.
        """
        path = Path(path)
        try:
            return cls._from_content(archive.read(path, version=cls._version))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} {cls._unreadable}: {error}") from error

    @abstractmethod
    def _content(self) -> archive.Content: ...

    @classmethod
    @abstractmethod
    def _from_content(cls, content: Mapping[str, Any]) -> Self: ...
