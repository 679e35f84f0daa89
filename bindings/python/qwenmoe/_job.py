"""Jobs: work under way in the library's own threads. They can be waited for, awaited, cancelled and watched."""
from __future__ import annotations

import asyncio
import ctypes
import select
import time
from collections import deque
from typing import (TYPE_CHECKING, Any, Callable, Deque, Dict, Generator, Generic, List, NamedTuple, Optional, Set, Tuple,
                    TypeVar)

from . import _api
from ._errors import CancelledError, Error
from ._library import Handle, Library, Owned, is_ending

if TYPE_CHECKING:
    from ._options import Callbacks

Result = TypeVar("Result")

# Those of qm_job_number.
NUMBERS = ("tokens_total", "tokens_prefilled", "tokens_reused", "tokens_dropped", "tokens_generated", "tokens_thought",
           "seconds_prefill", "seconds_decode", "seconds_first")


class Job(Handle, Generic[Result]):
    """Work under way. `job.wait()` or `await job` gives its result; Ctrl-C while waiting, or the end of the task that awaits it,
    cancels it. `fileno()` is readable once it has ended (and, of an answer, while there is text to read), for any event loop."""

    def __init__(self, lib: Library, owned: Owned, finish: Optional[Callable[[Owned], Any]], keep: Any = None,
                 callbacks: Optional[Callbacks] = None) -> None:
        super().__init__()
        self._lib = lib
        self._owned = owned
        self._finish = finish        # what the result is, when it has ended well
        self._keep = keep            # what must not be collected while it runs
        self._callbacks = callbacks
        self._asked_to_stop = False
        self._ended = False
        self._result: Any = None
        self._error: Optional[BaseException] = None
        self._numbers: Dict[str, float] = {}
        self._sleepers: Dict[int, Set[asyncio.Future[None]]] = {}  # of event loops, by descriptor

    # ---- what it does now ----

    @property
    def running(self) -> bool:
        """Whether it is still under way."""
        return not self._ended and self._look()

    def fileno(self) -> int:
        """The descriptor to watch: only for poll, select and their like. It changes when an answer's prompt has been read."""
        return int(self._lib.qm_job_descriptor(self._handle))

    def cancel(self) -> None:
        """Asks it to end soon, from any thread. What was computed stays in the session."""
        with self._lock:
            self._asked_to_stop = True
            if not self._ended and self._owned is not None:
                self._lib.qm_job_cancel(self._owned)

    @property
    def numbers(self) -> Dict[str, float]:
        """Its numbers up to now: "tokens_total" (to prefill), "tokens_prefilled", "tokens_reused", "tokens_dropped" (by option
        context_full), "tokens_generated", "tokens_thought", and in seconds "seconds_prefill", "seconds_decode",
        "seconds_first" (submission to first token). Of a chat, the prompt's and the answer's together."""
        with self._lock:
            return self._numbers if self._ended else self._count(self._handle)

    def _count(self, owned: Owned) -> Dict[str, float]:
        value = ctypes.c_double()
        numbers = {}
        for name in NUMBERS:
            self._lib.check(self._lib.qm_job_number(owned, name.encode(), ctypes.byref(value)))
            numbers[name] = value.value
        return numbers

    # ---- its end ----

    def _look(self) -> bool:
        """Takes what it has to show. False: it has ended, and its result or error is there."""
        with self._lock:
            if self._ended:
                return False
            owned = self._handle
            state = self._lib.qm_job_poll(owned)
            error = self._lib.error(state) if state < 0 else None
            self._take(owned)  # after the question: the last text is there when it has ended
            if state == _api.QM_JOB_RUNNING:
                return True
            try:
                if error is None and self._goes_on(owned):
                    return True
            except Error as problem:
                error = problem
            self._numbers = self._count(owned)
            self._error = error
            if isinstance(error, CancelledError) and self._callbacks:
                self._error = self._callbacks.take_failure() or error
            try:
                self._end(owned)
            except Error as problem:
                self._error = self._error or problem
            self._ended = True
            self._owned = self._keep = None
            return False

    def _take(self, owned: Owned) -> None:
        pass

    def _goes_on(self, owned: Owned) -> bool:
        return False

    def _end(self, owned: Owned) -> None:
        if self._error is None and self._finish:
            self._result = self._finish(owned)

    def _outcome(self) -> Result:
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[no-any-return]

    def close(self) -> None:
        """Cancels it if it runs, and waits for its end."""
        if not self._ended and self._owned is not None:
            self.cancel()
            self._sleep_until_end()

    def __del__(self) -> None:
        # An answer that nobody listens to any more is not computed further.
        if not getattr(self, "_ended", True) and self._owned is not None and self._owned._as_parameter_ and not is_ending():
            self.close()

    # ---- waiting in a thread ----

    def _sleep(self, until: Optional[float] = None) -> None:
        """Until there is something to see; a signal's handler is called at once. TimeoutError after time.monotonic() `until`."""
        owned = self._handle  # held, so that the descriptor stays open
        poller = select.poll()
        poller.register(self._lib.qm_job_descriptor(owned), select.POLLIN)
        if not poller.poll(None if until is None else max(0.0, until - time.monotonic()) * 1000) and until is not None:
            raise TimeoutError("the job is still running")

    def _sleep_until_end(self) -> None:
        while self._look():
            self._sleep()

    def _sleep_or_cancel(self, until: Optional[float] = None) -> None:
        try:
            self._sleep(until)
        except TimeoutError:
            raise
        except BaseException:  # Ctrl-C
            self.cancel()
            self._sleep_until_end()
            raise

    def wait(self, timeout: Optional[float] = None) -> Result:
        """Its result, or its error raised. After `timeout` seconds: TimeoutError, and it runs on."""
        until = None if timeout is None else time.monotonic() + timeout
        while self._look():
            self._sleep_or_cancel(until)
        return self._outcome()

    # ---- waiting in an event loop ----

    def _wake(self, descriptor: int) -> None:
        for sleeper in self._sleepers.get(descriptor, ()):
            if not sleeper.done():
                sleeper.set_result(None)

    async def _doze(self) -> None:
        """Until there is something to see, as _sleep."""
        owned = self._handle
        descriptor = self._lib.qm_job_descriptor(owned)
        loop = asyncio.get_running_loop()
        sleeper: asyncio.Future[None] = loop.create_future()
        sleepers = self._sleepers.setdefault(descriptor, set())
        sleepers.add(sleeper)
        loop.add_reader(descriptor, self._wake, descriptor)
        try:
            await sleeper
        finally:
            sleepers.discard(sleeper)
            if not sleepers:
                loop.remove_reader(descriptor)
                self._sleepers.pop(descriptor, None)

    async def _doze_or_cancel(self) -> None:
        try:
            await self._doze()
        except asyncio.CancelledError:
            self.cancel()
            while self._look():
                await self._doze()
            raise

    async def _wait(self) -> Result:
        while self._look():
            await self._doze_or_cancel()
        return self._outcome()

    def __await__(self) -> Generator[Any, None, Result]:
        return self._wait().__await__()


class Piece(str):
    """A piece of generated text: whole code points, of one kind."""

    #: "answer", "thought" (text inside the thoughts) or "tool" (the raw text of tool calls).
    kind: str

    def __new__(cls, text: str, kind: str) -> "Piece":
        piece = super().__new__(cls, text)
        piece.kind = kind
        return piece


_KINDS = {_api.QM_PIECE_ANSWER: "answer", _api.QM_PIECE_THOUGHT: "thought", _api.QM_PIECE_TOOL: "tool"}


class TokenLogprob(NamedTuple):
    """A token of an answer with its log probability (natural), and the most likely tokens at its place with theirs, highest
    first; by the model alone, before any option of sampling."""

    token: int
    logprob: float
    top: List[Tuple[int, float]]


Answer = TypeVar("Answer", bound="Generation")


class Generation(Job[Any]):
    """Text under way: an iterator of its pieces, for `for` and for `async for`. It is computed whether it is listened to or not,
    until it ends, is cancelled or closed, or nothing refers to it any more.

    `wait()` and `await` give the generation itself, ended.
    """

    def __init__(self, lib: Library, owned: Owned, keep: Any, callbacks: Optional[Callbacks], settle: Callable[[], None],
                 top: int, then: Optional[Callable[[], Owned]] = None) -> None:
        super().__init__(lib, owned, None, keep, callbacks)
        self._settle = settle                   # puts the session's settings back
        self._top = top                         # option logprobs
        self._then = then                       # what follows when the prompt has been read
        self._before: Dict[str, float] = {}     # numbers of the prompt's job
        self._pieces: Deque[Piece] = deque()
        self._buffer = ctypes.create_string_buffer(4096)
        self._text = b""
        self._tokens: List[int] = []
        self._logprobs: List[TokenLogprob] = []
        self._reason = ""

    def _take(self, owned: Owned) -> None:
        kind = ctypes.c_int32()
        while True:
            length = self._lib.qm_job_read(owned, self._buffer, len(self._buffer), ctypes.byref(kind))
            if length <= 0:
                return
            self._pieces.append(Piece(self._buffer.raw[:length].decode(), _KINDS.get(kind.value, "answer")))

    def _goes_on(self, owned: Owned) -> bool:
        if self._then is None or self._asked_to_stop:
            return False
        then, self._then = self._then, None
        before = self._count(owned)
        self._owned = then()
        self._before = before
        return True

    def _count(self, owned: Owned) -> Dict[str, float]:
        return {name: value + self._before.get(name, 0.0) for name, value in super()._count(owned).items()}

    def _end(self, owned: Owned) -> None:
        self._text = self._lib.text(self._lib.qm_job_text, owned, size=4096)
        self._tokens = read_tokens(self._lib, owned)
        if self._top >= 0:
            self._logprobs = self._read_logprobs(owned)
        self._reason = self._lib.qm_job_finish(owned).decode() or "cancelled"
        if isinstance(self._error, CancelledError):
            self._error = None  # no failure for who listens: `finish` tells
        self._settle()

    def _read_logprobs(self, owned: Owned) -> List[TokenLogprob]:
        count, top = len(self._tokens), self._top
        own = (ctypes.c_float * count)()
        ids = (ctypes.c_int32 * (count * top))()
        theirs = (ctypes.c_float * (count * top))()
        self._lib.check(self._lib.qm_job_logprobs(owned, 0, own, ids, theirs, count))
        rows = [slice(i * top, (i + 1) * top) for i in range(count)]
        return [TokenLogprob(token, logprob, list(zip(ids[row], theirs[row])))
                for token, logprob, row in zip(self._tokens, own, rows)]

    def _outcome(self) -> Any:
        super()._outcome()
        return self

    def wait(self: Answer, timeout: Optional[float] = None) -> Answer:
        """Itself, ended; or its error raised. After `timeout` seconds: TimeoutError, and it runs on."""
        return super().wait(timeout)  # type: ignore[no-any-return]

    def __await__(self: Answer) -> Generator[Any, None, Answer]:
        return super().__await__()

    # ---- reading ----

    def _piece(self) -> Optional[Piece]:
        try:
            return self._pieces.popleft()
        except IndexError:
            return None

    def __iter__(self) -> "Generation":
        return self

    def __next__(self) -> Piece:
        while True:
            runs = self._look()
            piece = self._piece()
            if piece is not None:
                return piece
            if not runs:
                self._outcome()
                raise StopIteration
            self._sleep_or_cancel()

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> Piece:
        while True:
            runs = self._look()
            piece = self._piece()
            if piece is not None:
                return piece
            if not runs:
                self._outcome()
                raise StopAsyncIteration
            await self._doze_or_cancel()

    def end_thinking(self) -> None:
        """Ends the thinking of a running answer at the next token: the model goes on with its answer. From any thread."""
        with self._lock:
            if not self._ended:
                self._lib.check(self._lib.qm_job_end_thinking(self._handle))

    @property
    def text(self) -> str:
        """All text generated, with its marks ("<think>", "<|im_end|>"). Waits for the end."""
        self.wait()
        return self._text.decode("utf-8", "replace")

    @property
    def tokens(self) -> List[int]:
        """The ids of all tokens generated. Waits for the end."""
        self.wait()
        return self._tokens

    @property
    def logprobs(self) -> List[TokenLogprob]:
        """Log probabilities of the tokens, if option logprobs is not -1. Waits for the end."""
        self.wait()
        return self._logprobs

    @property
    def finish(self) -> str:
        """Why it ended: "end" (of the model's turn), "stop" (a stop string), "length" (option answer_tokens), "context" (full),
        "cancelled", "error"; "" while it runs. Does not wait."""
        self._look()
        return self._reason


def read_tokens(lib: Library, owned: Owned) -> List[int]:
    """The tokens of a job that has ended."""
    count = lib.check(lib.qm_job_tokens(owned, None, 0))
    tokens = (ctypes.c_int32 * count)()
    lib.check(lib.qm_job_tokens(owned, tokens, count))
    return list(tokens)
