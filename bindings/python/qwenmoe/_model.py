"""Models: the weights of a file, its tokenizer and its chat format."""
from __future__ import annotations

import ctypes
from typing import Callable, List, Mapping, Optional, Sequence

from . import _api
from ._arrays import Tokens, int_array
from ._chat import Message, Parts, Tool, messages_text, parse
from ._job import Job, read_tokens
from ._library import Handle, Owned, Path, c_path, c_text, library as open_library
from ._options import MODEL, SAMPLING, SESSION, Callbacks, Log, Progress, Value, make_options
from ._session import Session

_SPECIAL = {"none": _api.QM_SPECIAL_NONE, "user": _api.QM_SPECIAL_USER, "all": _api.QM_SPECIAL_ALL}


def special_number(special: str) -> int:
    try:
        return _SPECIAL[special]
    except KeyError:
        raise ValueError(f'special is "{special}"; it may be "none", "user" or "all"') from None


class Model(Handle):
    """A model loaded from a GGUF file (of a file in parts, any part). May be used from any number of threads at once.

    path      the file
    library   the file of libqwenmoe, where it is not the usual one
    log       called with a level (as in `logging`) and a line, from any thread; or a logging.Logger
    progress  called with ("load", bytes done, bytes in all), and for its sessions with ("prefill", tokens done, tokens in all) or
              ("drop", tokens dropped, tokens there were). To return True, or to raise, cancels. May come from other threads;
              must not use the same model.

    Sessions of the model take its options of their kind where they are not given their own.
    """

    def __init__(self, path: Path, *, library: Optional[Path] = None, log: Optional[Log] = None,
                 progress: Optional[Progress] = None, **options: Value) -> None:
        self._load(path, library, log, progress, options).wait()

    @classmethod
    def submit(cls, path: Path, *, library: Optional[Path] = None, log: Optional[Log] = None,
               progress: Optional[Progress] = None, **options: Value) -> "Job[Model]":
        """Loads in the background: `model = await Model.submit(path)`, or `job.wait()`. Arguments as of Model."""
        return cls.__new__(cls)._load(path, library, log, progress, options)

    def _load(self, path: Path, library: Optional[Path], log: Optional[Log], progress: Optional[Progress],
              options: Mapping[str, Value]) -> "Job[Model]":
        super().__init__()
        self._lib = lib = open_library(library)
        self._callbacks = Callbacks(log, progress)
        self._options = make_options(lib, options, (MODEL, SESSION, SAMPLING), self._callbacks)
        owned = lib.make(_api.qm_job, lib.qm_submit_load, c_path(path), self._options, keep=self._callbacks)
        return Job(lib, owned, self._take_model, callbacks=self._callbacks)

    def _take_model(self, job: Owned) -> "Model":
        self._owned = self._lib.make(_api.qm_model, self._lib.qm_job_model, job, keep=self._callbacks)
        return self

    def session(self, **options: Value) -> Session:
        """A new session: Session(model, ...)."""
        return Session(self, **options)

    # ---- facts ----

    def number(self, name: str) -> int:
        """A fact that is a number: "layers", "hidden", "vocabulary", "context" (trained length, tokens), "experts",
        "parameters", "file_bytes", "memory_free" (bytes), ..., or any integer key of the file's metadata. qwenmoe.h, at
        qm_model_number, has all."""
        value = ctypes.c_int64()
        self._lib.check(self._lib.qm_model_number(self._handle, c_text(name), ctypes.byref(value)))
        return value.value

    def text(self, name: str) -> str:
        """A fact that is a text: "architecture", "name", "tokenizer", "chat_format", "device", "isa", "file", or any key of the
        file's metadata."""
        return self._lib.text(self._lib.qm_model_text, self._handle, c_text(name)).decode("utf-8", "replace")

    @property
    def vocabulary(self) -> int:
        """Number of token ids, which is the length of a row of logits."""
        return self.number("vocabulary")

    def __repr__(self) -> str:
        return "<Model: closed>" if self.closed else f"<Model {self.text('name')!r}: {self.text('file')}>"

    # ---- tokens ----

    def tokenize(self, text: str, special: str = "none") -> List[int]:
        """Text to token ids. No begin or end token is added.

        special  which added tokens are recognised in the text: "none", the safe choice for text from users; "user", those that
                 the file marks as user defined; "all", control tokens too, for prompts from chat_format
        """
        data = text.encode("utf-8")
        number = special_number(special)
        return self._ids(len(data) // 2 + 8, self._lib.qm_tokenize, data, len(data), number)

    def _ids(self, capacity: int, function: Callable[..., int], *arguments: object) -> List[int]:
        """What a function gives that writes ids into an array of some capacity and returns how many there are."""
        while True:
            tokens = (ctypes.c_int32 * capacity)()
            count = self._lib.check(function(self._handle, *arguments, tokens, capacity))
            if count <= capacity:
                return tokens[:count]
            capacity = count

    def submit_tokenize(self, text: str, special: str = "none") -> "Job[List[int]]":
        """The same in the background, for long texts."""
        data = text.encode("utf-8")
        owned = self._lib.make(_api.qm_job, self._lib.qm_submit_tokenize, self._handle, data, len(data), special_number(special),
                               keep=self._callbacks)
        return Job(self._lib, owned, lambda job: read_tokens(self._lib, job), self)

    def detokenize_bytes(self, tokens: Tokens, skip_special: bool = False) -> bytes:
        """Token ids to text, byte for byte. The bytes may not be whole code points when the tokens are not."""
        ids = int_array(tokens)
        return self._lib.text(self._lib.qm_detokenize, self._handle, ids, len(ids), int(skip_special), size=8 * len(ids) + 16)

    def detokenize(self, tokens: Tokens, skip_special: bool = False) -> str:
        """Token ids to text; what is no whole code point becomes U+FFFD.

        skip_special  leaves control tokens out, but keeps the marks of fill-in-the-middle and of repositories
        """
        return self.detokenize_bytes(tokens, skip_special).decode("utf-8", "replace")

    def token(self, text: str) -> int:
        """The id of the token with exactly this text, "<|im_end|>" for example. ArgumentError when there is none."""
        data = text.encode("utf-8")
        return self._lib.check(self._lib.qm_token_find(self._handle, data, len(data)))

    # ---- chat format ----

    def chat_format(self, messages: Sequence[Message], tools: Optional[Sequence[Tool]] = None, thinking: Optional[bool] = None,
                    opening: bool = True) -> str:
        """Messages to prompt text, as the file's own template would render them. Tokenize it with special="all".

        messages  {"role", "content", ...} each, as OpenAI's chat API has them, with "reasoning_content" and "tool_calls"
        tools     descriptions of the tools that the model may call, as OpenAI's chat API has them
        thinking  whether it is to think before it answers; None: as the template has it
        opening   whether the start of the assistant's turn is appended
        """
        lib = self._lib
        said, offered = messages_text(messages, tools)
        switch = -1 if thinking is None else int(thinking)
        return lib.text(lib.qm_chat_format, self._handle, said, len(said), offered, -1, switch, int(opening),
                        size=2 * len(said) + 1024).decode()

    def chat_tokens(self, messages: Sequence[Message], tools: Optional[Sequence[Tool]] = None, thinking: Optional[bool] = None,
                    opening: bool = True) -> List[int]:
        """The same as token ids. What users and tools say is text and nothing else: a "<|im_end|>" in it ends no turn."""
        said, offered = messages_text(messages, tools)
        switch = -1 if thinking is None else int(thinking)
        return self._ids(len(said) // 2 + 64, self._lib.qm_chat_tokens, said, len(said), offered, -1, switch, int(opening))

    def chat_parse(self, text: str, tools: Optional[Sequence[Tool]] = None, thinking: bool = False) -> Parts:
        """An answer's text back into thoughts, answer and tool calls. Nothing is lost: `status` tells when it ends in the middle,
        or when something can't be read.

        thinking  the text starts inside the thoughts, as after a prompt that opened them
        """
        return parse(self._lib, self._handle, text.encode("utf-8"), messages_text((), tools)[1], thinking)
