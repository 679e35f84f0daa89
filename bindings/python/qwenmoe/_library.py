"""Finding and opening libqwenmoe, and handles of it that are freed by the last reference to them."""
from __future__ import annotations

import atexit
import ctypes
import importlib.resources
import os
import threading
import time
import weakref
from typing import Any, Callable, Dict, Optional, TypeVar, Union

from . import _api
from ._errors import Error, LibraryError, make_error

Path = Union[str, "os.PathLike[str]"]
SONAME = f"libqwenmoe.so.{_api.QM_VERSION_MAJOR}"


class Library:
    """An opened libqwenmoe: every function of qwenmoe.h as an attribute, with the header's types.

    Normally `library()` is what you want; this is there for calls that the package has no word for.
    """

    path: str
    version: str

    def __init__(self, path: Path) -> None:
        self.path = os.fspath(path)
        try:
            opened = ctypes.CDLL(self.path)
        except OSError as problem:
            raise LibraryError(f"cannot open {self.path}: {problem}") from None
        for name, (result, arguments) in _api.FUNCTIONS.items():
            try:
                function = getattr(opened, name)
            except AttributeError:
                raise LibraryError(f"{self.path} has no {name}: it is older than this package, which is for version "
                                   f"{_api.QM_VERSION_MAJOR}.{_api.QM_VERSION_MINOR}") from None
            function.restype = result
            function.argtypes = [kind for _, kind in arguments]
            setattr(self, name, function)
        self.version = self.qm_version().decode()
        if self.qm_version_number() // 1000000 != _api.QM_VERSION_MAJOR:
            raise LibraryError(f"{self.path} is version {self.version}; this package is for {_api.QM_VERSION_MAJOR}.x")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"qwenmoe.h has no {name}")

    def __repr__(self) -> str:
        return f"<libqwenmoe {self.version}: {self.path}>"

    def error(self, code: int) -> Error:
        """The exception for a code, with this thread's last message."""
        return make_error(code, self.qm_error_name(code).decode(), self.qm_error_message().decode("utf-8", "replace"))

    def check(self, code: int) -> int:
        """Raises a negative code as an exception; returns others."""
        if code < 0:
            raise self.error(code)
        return code

    def text(self, function: Callable[..., int], *arguments: Any, size: int = 256) -> bytes:
        """The text that a function of snprintf rules has, asked for with growing buffers."""
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self.check(function(*arguments, buffer, size))
            if length < size:
                return buffer.raw[:length]
            size = length + 1

    def make(self, kind: Any, function: Callable[..., int], *arguments: Any, keep: Any = None) -> "Owned":
        """Calls a function that ends with `qm_x **out` and owns what it makes."""
        pointer = kind()
        self.check(function(*arguments, ctypes.byref(pointer)))
        return Owned(self, pointer, getattr(self, kind.__name__ + "_free"), keep)


class Owned:
    """A handle, freed when the last reference to it goes: so one that a call still uses is never freed under it, in whatever
    order and from whatever thread handles are closed. Passes for the pointer in calls."""

    def __init__(self, lib: Library, pointer: Any, free: Callable[..., None], keep: Any = None) -> None:
        self.lib = lib
        self.keep = keep  # must not go before it
        self._as_parameter_ = pointer
        self._free = free
        _alive.add(self)

    def __del__(self) -> None:
        if self._as_parameter_ and not _ending:
            self._free(ctypes.byref(self._as_parameter_))


_alive: "weakref.WeakSet[Owned]" = weakref.WeakSet()
_ending = False


def is_ending() -> bool:
    """Whether the interpreter is at its end."""
    return _ending


def _end() -> None:
    # Nothing computes while the interpreter takes itself apart: a log or progress callback would find none to run in. The memory
    # goes with the process.
    global _ending
    _ending = True
    for owned in list(_alive):
        if isinstance(owned._as_parameter_, _api.qm_job):
            owned.lib.qm_job_cancel(owned)
            while owned.lib.qm_job_poll(owned) == _api.QM_JOB_RUNNING:
                time.sleep(0.001)


def _forget() -> None:
    # A forked child has none of the threads that compute: whatever its parent had made cannot be used in it, nor freed.
    for owned in list(_alive):
        owned._as_parameter_ = None


atexit.register(_end)
os.register_at_fork(after_in_child=_forget)


Kind = TypeVar("Kind", bound="Handle")


class Handle:
    """What Model, Session and Job have in common: they are context managers, and may be closed in any order."""

    _lib: Library
    _owned: Optional[Owned] = None

    def __init__(self) -> None:
        self._lock = threading.RLock()

    @property
    def _handle(self) -> Owned:
        owned = self._owned
        if owned is None:
            raise ValueError(f"the {type(self).__name__} is closed")
        if not owned._as_parameter_:
            raise ValueError(f"the {type(self).__name__} was made before fork(); make a new one in the child")
        return owned

    @property
    def closed(self) -> bool:
        return self._owned is None

    def close(self) -> None:
        """Gives it back to the library now, not when the last reference goes. What others still need of it lives on."""
        with self._lock:
            self._owned = None

    def __enter__(self: Kind) -> Kind:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _place() -> str:
    """Where the library is when the caller does not say."""
    named = os.environ.get("QWENMOE_LIBRARY")
    if named:
        return named
    folder = importlib.resources.files("qwenmoe")
    if folder.joinpath("library.txt").is_file():  # the package was installed for a library that is there
        return folder.joinpath("library.txt").read_text(encoding="utf-8").strip()
    if folder.joinpath("libqwenmoe.so").is_file():  # it was built into the package
        return str(folder.joinpath("libqwenmoe.so"))
    return SONAME  # where the system looks for libraries


_opened: Dict[str, Library] = {}
_opening = threading.Lock()


def library(path: Optional[Path] = None) -> Library:
    """The library: the one of `path`, else of the environment variable QWENMOE_LIBRARY, else the one that was named or built
    when this package was installed, else the system's. Each is opened once."""
    place = os.fspath(path) if path is not None else _place()
    with _opening:
        if place not in _opened:
            try:
                _opened[place] = Library(place)
            except LibraryError as problem:
                raise LibraryError(f"{problem}. Name the file of an installed one in the environment variable QWENMOE_LIBRARY or "
                                   "the argument `library`; or `pip install ./bindings/python`, which builds one") from None
        return _opened[place]


def c_text(text: Union[str, bytes]) -> bytes:
    """UTF-8 for an argument that ends at its zero byte."""
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    if b"\0" in data:
        raise ValueError("embedded null character")
    return data


def c_path(path: Union[Path, "os.PathLike[bytes]"]) -> bytes:
    """A path as the system has it."""
    return c_text(os.fsencode(path))
