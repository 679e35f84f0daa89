"""libqwenmoe in Python: runs Qwen3.5-class language models from GGUF files.

    import qwenmoe

    model = qwenmoe.Model("model.gguf")
    session = model.session(temperature=0.3)
    for piece in session.generate("def fibonacci(n):"):
        print(piece, end="", flush=True)
    print(session.chat([{"role": "user", "content": "Hello!"}]).answer)

Everything that computes can also be awaited or watched: `async for piece in session.generate(...)`, `await session.chat(...)`,
`await Model.submit(path)`, `await session.submit_prefill(tokens)`. Ctrl-C cancels what is waited for.

Options are keywords; help(qwenmoe.Model), help(qwenmoe.Session) and qwenmoe.options() say which there are, from the library's own
table. Only handles and numbers cross to C, by ctypes; qwenmoe.h has the rules in full.
"""
from ._api import QM_VERSION_MAJOR, QM_VERSION_MINOR, QM_VERSION_PATCH
from ._chat import Parts, Reply, ToolCall
from ._errors import (ArgumentError, BusyError, CancelledError, ContextError, DeviceError, Error, FileError, FitError,
                      FormatError, LibraryError, OptionError, OutOfMemoryError, StateError, TextError, UnsupportedError)
from ._job import Generation, Job, Piece, TokenLogprob
from ._library import Library, library
from ._model import Model
from ._options import Option, document, options, plan, plan_table
from ._session import Session, decode, submit_decode

__version__ = f"{QM_VERSION_MAJOR}.{QM_VERSION_MINOR}.{QM_VERSION_PATCH}"

__all__ = [
    "ArgumentError", "BusyError", "CancelledError", "ContextError", "DeviceError", "Error", "FileError", "FitError",
    "FormatError", "Generation", "Job", "Library", "LibraryError", "Model", "Option", "OptionError", "OutOfMemoryError",
    "Parts", "Piece", "Reply", "Session", "StateError", "TextError", "TokenLogprob", "ToolCall", "UnsupportedError", "decode",
    "library", "options", "plan", "plan_table", "submit_decode",
]


def _document() -> None:
    """Help and signatures get the library's options, if there is a library yet."""
    try:
        found = library()
    except LibraryError:
        return  # said when one is needed; the argument `library` may name it
    everything = ("model", "session", "sampling")
    for function, scopes in ((Model, everything), (Model.submit, everything), (plan, everything), (plan_table, everything),
                             (Session, everything[1:]), (Model.session, everything[1:]), (Session.set, everything[2:]),
                             (Session.generate, everything[2:]), (Session.chat, everything[2:])):
        document(getattr(function, "__func__", function), scopes, found)


_document()
