"""Chat: answers with their parts."""
from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

from ._job import Generation
from ._library import Library, Owned

if TYPE_CHECKING:
    from ._model import Model
    from ._options import Callbacks

#: {"role": "system" | "user" | "assistant" | "tool", "content": ...} and what else OpenAI's chat API has in messages.
Message = Mapping[str, Any]
#: {"type": "function", "function": {"name", "description", "parameters": JSON schema}}
Tool = Mapping[str, Any]


class ToolCall(NamedTuple):
    """A tool that the model wants called."""

    name: str
    arguments: Dict[str, Any]


class Parts(NamedTuple):
    """An answer taken apart."""

    #: None: it has none.
    thoughts: Optional[str]
    answer: str
    tool_calls: List[ToolCall]
    #: "complete"; "partial": it ends in the middle; "malformed": what can't be read as a tool call stays in `answer`.
    status: str

    def message(self) -> Dict[str, Any]:
        """As an assistant message, to append to the messages for the next turn."""
        message: Dict[str, Any] = {"role": "assistant", "content": self.answer}
        if self.thoughts is not None:
            message["reasoning_content"] = self.thoughts
        if self.tool_calls:
            message["tool_calls"] = [{"type": "function", "function": call._asdict()} for call in self.tool_calls]
        return message


def parse(lib: Library, model: Owned, text: bytes, tools: Optional[bytes], thinking: bool) -> Parts:
    """qm_chat_parse."""
    parts = json.loads(lib.text(lib.qm_chat_parse, model, text, len(text), tools, -1, int(thinking), size=len(text) + 256))
    calls = [ToolCall(call["name"], call["arguments"]) for call in parts["tool_calls"]]
    return Parts(parts["reasoning_content"], parts["content"], calls, parts["status"])


def dump(value: Any) -> bytes:
    """JSON for the library."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


class Reply(Generation):
    """A chat answer under way: an iterator of its pieces, and at its end the parts: thoughts, answer and tool calls. Asking for a
    part waits for the end."""

    def __init__(self, lib: Library, owned: Owned, keep: Any, callbacks: Optional[Callbacks], settle: Callable[[], None],
                 top: int, then: Callable[[], Owned], model: Model, tools: Optional[bytes], thinking: bool) -> None:
        super().__init__(lib, owned, keep, callbacks, settle, top, then)
        self._model = model._handle
        self._tools = tools
        self._thinking = thinking
        self._parts: Optional[Parts] = None

    @property
    def parts(self) -> Parts:
        """Thoughts, answer, tool calls and status. Waits for the end."""
        self.wait()
        with self._lock:
            if self._parts is None:
                self._parts = parse(self._lib, self._model, self._text, self._tools, self._thinking)
            return self._parts

    @property
    def thoughts(self) -> Optional[str]:
        """The text of its thoughts, None if it has none. Waits for the end."""
        return self.parts.thoughts

    @property
    def answer(self) -> str:
        """The text of the answer, without thoughts and tool calls. Waits for the end."""
        return self.parts.answer

    @property
    def tool_calls(self) -> List[ToolCall]:
        """The tools that it wants called, in order. Waits for the end."""
        return self.parts.tool_calls

    @property
    def status(self) -> str:
        """"complete"; "partial": it ends in the middle; "malformed": what can't be read as a tool call stays in `answer`."""
        return self.parts.status

    def message(self) -> Dict[str, Any]:
        """The answer as an assistant message, to append to the messages for the next turn. Waits for the end."""
        return self.parts.message()


def messages_text(messages: Sequence[Message], tools: Optional[Sequence[Tool]]) -> Any:
    """Messages and tools as the library takes them."""
    return dump(list(messages)), None if tools is None else dump(list(tools))
