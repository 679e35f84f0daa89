"""Exceptions: one class for each error code of the library, with the library's own message."""
from __future__ import annotations

from typing import Dict, Type

from . import _api


class Error(Exception):
    """What the library refused or could not do. `code` is its number (negative), `name` its name in C ("QM_ERROR_FILE")."""

    code: int = 0
    name: str = "unknown"


class ArgumentError(Error, ValueError):
    """An argument out of its range: a token id, a length, a name that does not exist."""


class OutOfMemoryError(Error, MemoryError):
    """No memory is left; what the call had taken is given back."""


class FileError(Error, OSError):
    """A file cannot be opened, read or written."""


class FormatError(Error, ValueError):
    """A file's content is damaged or contradicts itself."""


class UnsupportedError(Error):
    """Well-formed, but not something that the library runs."""


class OptionError(Error, ValueError):
    """An unknown option, or a value out of its range."""


class ContextError(Error):
    """The session's context is full; the session stays usable as it was."""


class CancelledError(Error):
    """The job was cancelled."""


class BusyError(Error):
    """The session has a job under way."""


class DeviceError(Error):
    """A compute device is missing or failed."""


class FitError(Error, MemoryError):
    """Does not fit the memory; the message gives the sums."""


class TextError(Error, ValueError):
    """Text is not UTF-8, JSON is malformed, or the chat format refuses the messages."""


class StateError(Error):
    """Not possible now, for example logits before any token."""


class LibraryError(Error, OSError):
    """libqwenmoe is not there, cannot be opened, or is too old."""


BY_CODE: Dict[int, Type[Error]] = {
    _api.QM_ERROR_ARGUMENT: ArgumentError,
    _api.QM_ERROR_MEMORY: OutOfMemoryError,
    _api.QM_ERROR_FILE: FileError,
    _api.QM_ERROR_FORMAT: FormatError,
    _api.QM_ERROR_UNSUPPORTED: UnsupportedError,
    _api.QM_ERROR_OPTION: OptionError,
    _api.QM_ERROR_CONTEXT: ContextError,
    _api.QM_ERROR_CANCELLED: CancelledError,
    _api.QM_ERROR_BUSY: BusyError,
    _api.QM_ERROR_DEVICE: DeviceError,
    _api.QM_ERROR_FIT: FitError,
    _api.QM_ERROR_TEXT: TextError,
    _api.QM_ERROR_STATE: StateError,
}


def make_error(code: int, name: str, message: str) -> Error:
    """The exception for a code, of the class that belongs to it."""
    error = BY_CODE.get(code, Error)(message)
    error.code = code
    error.name = name
    return error
