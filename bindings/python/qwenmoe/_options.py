"""Options as keywords. Their names, types, ranges, defaults and help are the library's own table: there is no list here."""
from __future__ import annotations

import inspect
import json
import logging
import operator
import os
import textwrap
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, SupportsFloat, SupportsIndex, Tuple, Union

from . import _api
from ._errors import OptionError
from ._library import Library, Owned, Path, c_path, c_text, library as open_library

#: What an option may be given as; None sets its default again.
Value = Union[None, bool, int, float, str, "os.PathLike[str]", List[Any], Tuple[Any, ...], Mapping[Any, Any]]
#: Called with a level (10 debug, 20 info, 30 warning, as in `logging`) and a line, from any thread.
Log = Union[Callable[[int, str], Any], logging.Logger]
#: Called with the stage ("load": bytes, "prefill" and "drop": tokens), how much is done and of how much. True, or an exception,
#: cancels.
Progress = Callable[[str, int, int], Optional[bool]]

MODEL, SESSION, SAMPLING = "model", "session", "sampling"
_WHERE = {MODEL: "when a model is loaded", SESSION: "when a model is loaded or a session is made"}


class Option(NamedTuple):
    """A row of the library's table of options."""

    name: str     #: "top-k"
    keyword: str  #: "top_k", as it is given in Python
    type: str     #: "int", "float", "bool", "choice" or "text"
    range: str    #: "0..1024" for numbers, "f32|f16" for choices, "" for others
    default: str  #: as text
    scope: str    #: "model", "session" or "sampling"
    help: str

    def describe(self) -> str:
        """"top_k: int 0..1000000, default 20: ..."."""
        kind = " ".join(part for part in (self.type if self.type != "choice" else "", self.range) if part)
        return f"{self.keyword}: {kind}, default {self.default or 'empty'}: {self.help}"


def options(scope: Optional[str] = None, *, library: Optional[Path] = None) -> List[Option]:
    """The table of options, or the part of it with one scope: "model", "session" or "sampling"."""
    lib = open_library(library)
    rows = []
    for index in range(lib.qm_option_count()):
        columns = ("name", "type", "range", "default", "scope", "help")
        name, kind, limits, default, where, words = (getattr(lib, "qm_option_" + column)(index).decode() for column in columns)
        rows.append(Option(name, name.replace("-", "_"), kind, limits, default, where, words))
    return [row for row in rows if scope in (None, row.scope)]


def _describe_wrong(option: Option, value: object) -> TypeError:
    return TypeError(f"option {option.keyword} cannot be of type {type(value).__name__}; {option.describe()}")


def to_text(option: Option, value: Value) -> Optional[str]:
    """A Python value as the library takes it."""
    if value is None or isinstance(value, str):
        return value
    if option.type == "bool" and value in (False, True):
        return str(int(value))
    if option.type == "int" and isinstance(value, SupportsIndex) and not isinstance(value, bool):
        return str(operator.index(value))
    if option.type == "float" and isinstance(value, (SupportsFloat, SupportsIndex)) and not isinstance(value, bool):
        return repr(float(value))
    if option.type == "text" and isinstance(value, os.PathLike):
        return os.fspath(value)
    if option.name == "logit-bias" and isinstance(value, Mapping):
        return ",".join(f"{token}:{bias}" for token, bias in value.items())  # 198:-2.5,1234:-inf
    if option.type == "text" and isinstance(value, (list, tuple, Mapping)):
        return json.dumps(value, ensure_ascii=False)  # stop, json-schema, tools
    raise _describe_wrong(option, value)


def from_text(option: Option, text: str) -> Union[bool, int, float, str]:
    """A value as the library says it, in Python."""
    if option.type == "bool":
        return text == "1"
    return int(text) if option.type == "int" else float(text) if option.type == "float" else text


class Table:
    """The options of one library, by keyword."""

    def __init__(self, lib: Library) -> None:
        self.lib = lib
        self.rows = {row.keyword: row for row in options(library=lib.path)}

    def texts(self, keywords: Mapping[str, Value], scopes: Iterable[str]) -> Dict[str, Optional[bytes]]:
        """Names and values for the library; what is none of these scopes is refused. Unknown names pass, for the library to say
        which is nearest."""
        found: Dict[str, Optional[bytes]] = {}
        for keyword, value in keywords.items():
            row = self.rows.get(keyword.replace("-", "_"))
            if row is not None and row.scope not in scopes:
                raise OptionError(f"option {row.keyword} is set {_WHERE[row.scope]}: {row.help}")
            text = str(value) if row is None else to_text(row, value)
            found[row.name if row else keyword.replace("_", "-")] = None if text is None else c_text(text)
        return found

    def find(self, name: str) -> Option:
        """An option by its keyword or name."""
        row = self.rows.get(name.replace("-", "_"))
        if row is None:
            raise OptionError(f"there is no option {name}; qwenmoe.options() lists them")
        return row


_tables: Dict[str, Table] = {}


def table(lib: Library) -> Table:
    if lib.path not in _tables:
        _tables[lib.path] = Table(lib)
    return _tables[lib.path]


class Callbacks:
    """Log and progress of a model, as C calls them. Lives as long as anything that is made from the model."""

    def __init__(self, log: Optional[Log], progress: Optional[Progress]) -> None:
        self.failure: Optional[BaseException] = None  # what `progress` raised
        say = log.log if isinstance(log, logging.Logger) else log
        self.log = _api.qm_log_callback(
            lambda level, line, _: say and say(10 * (level + 1), line.decode("utf-8", "replace"))) if say else None
        self.progress = _api.qm_progress_callback(self._progress) if progress else None
        self._watch = progress

    def _progress(self, stage: bytes, done: int, total: int, _: object) -> int:
        try:
            return 1 if self._watch and self._watch(stage.decode(), done, total) else 0
        except BaseException as failure:  # goes on in the thread that waits for the job
            self.failure = failure
            return 1

    def take_failure(self) -> Optional[BaseException]:
        failure, self.failure = self.failure, None
        return failure


def make_options(lib: Library, keywords: Mapping[str, Value], scopes: Iterable[str], callbacks: Optional[Callbacks] = None,
                 base: Optional[Owned] = None) -> Owned:
    """qm_options with these settings, on top of others or of the defaults."""
    made = lib.make(_api.qm_options, lib.qm_options_copy, base) if base else lib.make(_api.qm_options, lib.qm_options_new)
    for name, value in table(lib).texts(keywords, scopes).items():
        lib.check(lib.qm_options_set(made, name.encode(), value))
    if callbacks and callbacks.log:
        lib.check(lib.qm_options_set_log(made, callbacks.log, None))
    if callbacks and callbacks.progress:
        lib.check(lib.qm_options_set_progress(made, callbacks.progress, None))
    return made


def document(function: Any, scopes: Iterable[str], lib: Library) -> None:
    """Puts the options of these scopes into a function's or class's help and signature, in the place of its **options."""
    rows = [row for row in table(lib).rows.values() if row.scope in scopes]
    signature = inspect.signature(function)
    kept = [parameter for parameter in signature.parameters.values() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    kept += [inspect.Parameter(row.keyword, inspect.Parameter.KEYWORD_ONLY, annotation=row.type,
                               default=from_text(row, row.default)) for row in rows if row.keyword not in signature.parameters]
    function.__signature__ = signature.replace(parameters=kept)
    lines = [textwrap.fill(row.describe(), 120, initial_indent="    ", subsequent_indent="        ", break_on_hyphens=False)
             for row in rows]
    function.__doc__ = inspect.cleandoc(function.__doc__ or "") + "\n\nOptions:\n" + "\n".join(lines) + "\n"


def plan(path: Path, *, library: Optional[Path] = None, **options: Value) -> Dict[str, Any]:
    """What loading a file would take, from its header alone: bytes by part, and whether and why it does not fit. Takes the
    options of a model."""
    return dict(json.loads(_plan(path, "json", library, options)))


def plan_table(path: Path, *, library: Optional[Path] = None, **options: Value) -> str:
    """The same as a table to read."""
    return _plan(path, "table", library, options)


def _plan(path: Path, form: str, library: Optional[Path], keywords: Mapping[str, Value]) -> str:
    lib = open_library(library)
    made = make_options(lib, keywords, (MODEL, SESSION, SAMPLING))
    return lib.text(lib.qm_plan, c_path(path), made, form.encode(), size=4096).decode()
