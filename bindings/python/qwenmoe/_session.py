"""Sessions: one conversation each, its tokens, keys and values, recurrent state and sampler."""
from __future__ import annotations

import ctypes
import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, TypeVar, Union

from . import _api
from ._arrays import Tokens, float_array, int_array
from ._chat import Message, Reply, Tool, messages_text
from ._errors import StateError
from ._job import Generation, Job
from ._library import Handle, Owned, Path, c_path
from ._options import SAMPLING, SESSION, Value, from_text, make_options, table

if TYPE_CHECKING:
    from ._arrays import Floats
    from ._model import Model

Answer = TypeVar("Answer", bound=Generation)


class Session(Handle):
    """A conversation on a model. Calls from several threads take turns; while a job of it runs, others are a BusyError.

    model  what computes
    """

    def __init__(self, model: Model, **options: Value) -> None:
        lib = model._lib
        made = make_options(lib, options, (SESSION, SAMPLING), base=model._options)
        self._begin(model, lib.make(_api.qm_session, lib.qm_session_new, model._handle, made, keep=model._callbacks))

    def _begin(self, model: Model, owned: Owned) -> None:
        super().__init__()
        self._lib = model._lib
        self._owned = owned
        #: The model that it was made from.
        self.model = model
        self._last: Callable[[], Optional[Job[Any]]] = lambda: None  # its last job, if anyone still has it
        self._views: List[weakref.ref[Any]] = []                     # what `logits` gave since its state changed

    def fork(self) -> "Session":
        """A second session in the same state: tokens, logits, settings, random state. The two share the memory of what they
        have in common; nothing is copied."""
        self._settle_last()
        with self._lock:
            owned = self._make_fork()
        fork = Session.__new__(Session)
        fork._begin(self.model, owned)
        return fork

    def _make_fork(self) -> Owned:
        return self._lib.make(_api.qm_session, self._lib.qm_session_fork, self._handle, keep=self.model._callbacks)

    def close(self) -> None:
        """Gives its memory back now. A job of it that runs is cancelled."""
        last = self._last()
        if last is not None:
            last.close()
        super().close()

    def __repr__(self) -> str:
        return "<Session: closed>" if self.closed else f"<Session of {self.length} tokens in a context of {self.context}>"

    # ---- settings ----

    def set(self, **options: Value) -> None:
        """Changes options of sampling, for all answers from now on. Setting the seed starts the random sequence again."""
        self._settle_last()
        with self._lock:
            self._change(options)

    def get(self, name: str) -> Union[bool, int, float, str]:
        """The value of an option, by its name or keyword."""
        self._settle_last()
        return self._get(name)

    def _get(self, name: str) -> Union[bool, int, float, str]:
        row = table(self._lib).find(name)
        return from_text(row, self._lib.text(self._lib.qm_session_get, self._handle, row.name.encode()).decode())

    def _change(self, options: Mapping[str, Value]) -> Dict[bytes, bytes]:
        """Sets all or, where one is refused, none; returns what they were. The seed is spent, so it is not among these."""
        lib, owned = self._lib, self._handle
        before: Dict[bytes, bytes] = {}
        for name, value in table(lib).texts(options, (SAMPLING,)).items():
            key = name.encode()
            try:
                old = lib.text(lib.qm_session_get, owned, key)
                lib.check(lib.qm_session_set(owned, key, value))
            except Exception:
                self._put_back(before)
                raise
            if name != "seed":
                before[key] = old
        return before

    def _put_back(self, before: Mapping[bytes, bytes]) -> None:
        with self._lock:
            for name, value in before.items():
                if self._owned is not None:
                    self._lib.qm_session_set(self._owned, name, value)

    # ---- what it holds ----

    @property
    def context(self) -> int:
        """Tokens that it can hold."""
        return self._lib.check(self._lib.qm_session_context(self._handle))

    @property
    def length(self) -> int:
        """Tokens that it holds."""
        return self._lib.check(self._lib.qm_session_length(self._handle))

    @property
    def tokens(self) -> List[int]:
        """The ids that it holds."""
        with self._lock:
            owned, count = self._handle, self.length
            ids = (ctypes.c_int32 * count)()
            self._lib.check(self._lib.qm_session_tokens(owned, ids, count))
            return list(ids)

    def logits(self) -> Floats:
        """Logits after the last token: float32 of shape (vocabulary,), read-only; NumPy's where it is installed, else a
        memoryview.

        They are not copied: the memory is the library's, and the numbers are meant for use before the session's next call; copy
        what you keep. To read them later does no harm (what they lie in is kept for them), but they may be others.
        """
        with self._lock:
            owned = self._handle
            found = self._lib.qm_logits(owned)
            if not found:
                raise StateError(self._lib.qm_error_message().decode("utf-8", "replace"))
            buffer: Any = (ctypes.c_float * self.model.vocabulary).from_address(ctypes.addressof(found.contents))
            buffer.keep = [owned]
            self._views.append(weakref.ref(buffer))
            return float_array(buffer, len(buffer), writable=False)

    def _hold_views(self) -> None:
        """Before the state changes: the memory of logits that someone still has goes with a fork of this session."""
        kept = [buffer for buffer in (view() for view in self._views) if buffer is not None]
        if kept:
            fork = self._make_fork()
            for buffer in kept:
                buffer.keep.append(fork)
        self._views.clear()

    # ---- jobs ----

    def _settle_last(self) -> None:
        # Not with the lock held: a job takes its own lock first, then its session's.
        last = self._last()
        if last is not None:
            last._look()  # puts the settings of an answer that has ended back

    def _submit(self, function: Callable[..., int], *arguments: Any) -> Owned:
        with self._lock:
            owned = self._handle
            self._hold_views()
            return self._lib.make(_api.qm_job, function, owned, *arguments, keep=self.model._callbacks)

    def _job(self, owned: Owned, finish: Optional[Callable[[Owned], Any]] = None) -> "Job[Any]":
        job: Job[Any] = Job(self._lib, owned, finish, self, self.model._callbacks)
        self._last = weakref.ref(job)
        return job

    def prefill(self, tokens: Tokens) -> None:
        """Appends tokens and computes them. ContextError, and nothing is appended, when they do not fit."""
        self.submit_prefill(tokens).wait()

    def submit_prefill(self, tokens: Tokens) -> "Job[None]":
        """The same in the background."""
        self._settle_last()
        ids = int_array(tokens)
        return self._job(self._submit(self._lib.qm_submit_prefill, ids, len(ids)))

    def prefill_rows(self, tokens: Tokens, rows: Iterable[int]) -> Floats:
        """Appends tokens, and gives the logits after some of them: float32 of shape (number of rows, vocabulary). Ctrl-C is heard
        when all are computed.

        rows  indices into `tokens`, ascending
        """
        self._settle_last()
        ids, wanted = int_array(tokens), list(rows)
        indices = (ctypes.c_int64 * len(wanted))(*wanted)
        vocabulary = self.model.vocabulary
        logits = (ctypes.c_float * (len(wanted) * vocabulary))()
        with self._lock:
            owned = self._handle
            self._hold_views()
            self._lib.check(self._lib.qm_prefill_rows(owned, ids, len(ids), indices, len(wanted), logits))
        return float_array(logits, len(wanted), vocabulary)

    def rewind(self, length: int) -> None:
        """Makes it hold its first `length` tokens, exactly; the logits are then those of the last of them."""
        self.submit_rewind(length).wait()

    def submit_rewind(self, length: int) -> "Job[None]":
        """The same in the background."""
        self._settle_last()
        return self._job(self._submit(self._lib.qm_submit_rewind, length))

    def sync(self, tokens: Tokens) -> int:
        """Makes it hold exactly these tokens, computing only those after the longest start that the model still knows from any
        session. Returns how many did not have to be computed."""
        return self.submit_sync(tokens).wait()

    def submit_sync(self, tokens: Tokens) -> "Job[int]":
        """The same in the background."""
        self._settle_last()
        ids, lib = int_array(tokens), self._lib

        def reused(job: Owned) -> int:
            value = ctypes.c_double()
            lib.check(lib.qm_job_number(job, b"tokens_reused", ctypes.byref(value)))
            return int(value.value)
        return self._job(self._submit(lib.qm_submit_sync, ids, len(ids)), reused)

    def save(self, path: Path) -> None:
        """Writes what it holds to a file: tokens, keys and values, states, logits, options of sampling, the random sequence. The
        file takes the place of one of that name only when it is whole."""
        self.submit_save(path).wait()

    def submit_save(self, path: Path) -> "Job[None]":
        """The same in the background."""
        self._settle_last()
        return self._job(self._submit(self._lib.qm_submit_save, c_path(path)))

    def restore(self, path: Path) -> None:
        """Makes it hold what the file does: the same text follows, bit for bit. A file of another model, or with a damaged
        byte, is refused and leaves the session as it was."""
        self.submit_restore(path).wait()

    def submit_restore(self, path: Path) -> "Job[None]":
        """The same in the background."""
        self._settle_last()
        return self._job(self._submit(self._lib.qm_submit_restore, c_path(path)))

    # ---- choosing tokens ----

    def sample(self) -> int:
        """Chooses the next token from the logits by the options of sampling, and does not append it."""
        token = ctypes.c_int32()
        with self._lock:
            self._lib.check(self._lib.qm_sample(self._handle, ctypes.byref(token)))
        return token.value

    def mtp_logits(self, next: int) -> Floats:
        """Logits of the token after `next`, predicted by the multi-token-prediction block: float32 of shape (vocabulary,). For
        models loaded with option mtp."""
        logits = (ctypes.c_float * self.model.vocabulary)()
        with self._lock:
            self._lib.check(self._lib.qm_mtp_logits(self._handle, next, logits))
        return float_array(logits, len(logits))

    # ---- answers ----

    def generate(self, prompt: Union[str, Tokens] = (), *, special: str = "none", **options: Value) -> Generation:
        """Appends the prompt and continues it: an iterator of text, for `for` or `async for`. Options hold for this answer only.

        prompt   text or token ids; none continues what the session holds
        special  which added tokens are recognised in a text: "none", "user" or "all", as in Model.tokenize
        """
        ids = int_array(self.model.tokenize(prompt, special) if isinstance(prompt, str) else prompt)

        def start(settle: Callable[[], None], top: int) -> Generation:
            owned = self._submit(self._lib.qm_submit_generate, ids, len(ids))
            return Generation(self._lib, owned, self, self.model._callbacks, settle, top)
        return self._answer(start, options)

    def chat(self, messages: Sequence[Message], *, tools: Optional[Sequence[Tool]] = None, thinking: Optional[bool] = None,
             **options: Value) -> Reply:
        """Answers messages: an iterator of text, and at its end thoughts, answer and tool calls. Give the whole history each
        time: what the session knows of it is not computed again. Options hold for this answer only.

        messages  {"role", "content", ...} each, as OpenAI's chat API has them; `reply.message()` is the one to append
        tools     descriptions of the tools that the model may call, as OpenAI's chat API has them
        thinking  whether it is to think before it answers; None: as the model's chat format has it
        """
        model, lib = self.model, self._lib
        if tools is not None:
            options = {**options, "tools": list(tools)}  # which keeps tool calls to them
        prompt = model.chat_tokens(messages, tools, thinking)
        opened = model.detokenize(prompt[-2:]) == "<think>\n"
        ids = int_array(prompt)

        def start(settle: Callable[[], None], top: int) -> Reply:
            owned = self._submit(lib.qm_submit_sync, ids, len(ids))
            return Reply(lib, owned, self, model._callbacks, settle, top,
                         lambda: self._submit(lib.qm_submit_generate, None, 0), model, messages_text((), tools)[1], opened)
        return self._answer(start, options)

    def _answer(self, start: Callable[[Callable[[], None], int], Answer], options: Mapping[str, Value]) -> Answer:
        self._settle_last()
        with self._lock:
            before = self._change(options)
            try:
                answer = start(lambda: self._put_back(before), int(self._get("logprobs")))
            except Exception:
                self._put_back(before)
                raise
            self._last = weakref.ref(answer)
            return answer


def decode(sessions: Sequence[Session], tokens: Tokens) -> None:
    """Appends one token to each of several different sessions of one model, computed together. If one of them cannot (busy,
    full), nothing is done."""
    submit_decode(sessions, tokens).wait()


def submit_decode(sessions: Sequence[Session], tokens: Tokens) -> "Job[None]":
    """The same in the background."""
    sessions = list(sessions)
    ids = int_array(tokens)
    if len(ids) != len(sessions) or not sessions:
        raise ValueError(f"{len(sessions)} sessions and {len(ids)} tokens; one each is needed, and at least one")
    for session in sessions:
        session._settle_last()
    with ExitStack() as locks:
        for session in sorted(sessions, key=id):  # always in the same order
            locks.enter_context(session._lock)
        owned = [session._handle for session in sessions]
        for session in sessions:
            session._hold_views()
        handles = (_api.qm_session * len(owned))(*[one._as_parameter_ for one in owned])
        lib, callbacks = sessions[0]._lib, sessions[0].model._callbacks
        job = lib.make(_api.qm_job, lib.qm_submit_decode, handles, ids, len(ids), keep=callbacks)
    made: Job[None] = Job(lib, job, None, sessions, callbacks)
    for session in sessions:
        session._last = weakref.ref(made)
    return made
