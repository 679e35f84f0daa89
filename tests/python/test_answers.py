"""Answers: pieces, chat, settings of one answer, cancelling, Ctrl-C, event loops, threads, growth, the end of the process."""
import asyncio
import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time

import numpy
import pytest

import qwenmoe
from qwenmoe import _library

from conftest import DEFAULT, ENDLESS, TINY

PROMPT = "def fibonacci(n):\n"
MESSAGES = [{"role": "user", "content": "Write a function that reverses a string."}]


# ---- pieces ----

def test_pieces_are_the_text(model):
    with model.session(temperature=0, answer_tokens=40) as session:
        answer = session.generate(PROMPT)
        pieces = list(answer)
        assert len(pieces) > 5 and {piece.kind for piece in pieces} == {"answer"}
        assert "".join(pieces) == answer.text == model.detokenize(answer.tokens)
        assert (answer.finish, len(answer.tokens)) == ("length", 40)
        assert session.tokens == model.tokenize(PROMPT) + answer.tokens
        assert answer.numbers["tokens_generated"] == 40 and answer.numbers["seconds_decode"] > 0
        assert answer.numbers["tokens_prefilled"] == len(model.tokenize(PROMPT))
        assert list(answer) == [] and not answer.running and answer.wait() is answer
        # A prompt is continued as it stands, whatever form it comes in.
        with model.session(temperature=0, answer_tokens=40) as other:
            other.prefill(model.tokenize(PROMPT))
            assert other.generate().text == answer.text


def test_stop_and_seed(model):
    with model.session(temperature=1, seed=5, answer_tokens=20, ignore_end=True) as session:
        whole = session.generate(PROMPT).text
        session.rewind(0)
        assert session.generate(PROMPT, seed=5).text == whole
        session.rewind(0)
        answer = session.generate(PROMPT, seed=5, stop=whole[10:14])
        assert "".join(answer) == whole[:whole.index(whole[10:14])] and answer.finish == "stop"


def test_options_of_one_answer(session):
    before = {row.keyword: session.get(row.keyword) for row in qwenmoe.options("sampling")}
    answer = session.generate([1], temperature=0, answer_tokens=3, ignore_end=True, stop=["zzz"])
    assert len(answer.tokens) == 3
    assert {name: session.get(name) for name in before} == before
    session.generate([1], **ENDLESS)  # nobody keeps it: cancelled
    assert {name: session.get(name) for name in before} == before
    with pytest.raises(qwenmoe.OptionError):
        session.generate([1], temperature=0, top_k=-5)
    with pytest.raises(qwenmoe.ArgumentError):
        session.generate([-1], temperature=0)
    assert {name: session.get(name) for name in before} == before
    # One that ended unseen gives its settings back before the next begins.
    unseen = session.generate([1], temperature=0, answer_tokens=1, ignore_end=True)
    select.select([unseen], [], [])
    while session._lib.qm_job_poll(unseen._handle) == 1:
        pass
    assert len(session.generate([1], answer_tokens=2, ignore_end=True).tokens) == 2
    assert {name: session.get(name) for name in before} == before


# ---- chat ----

def test_chat(model):
    with model.session(temperature=0, answer_tokens=60) as session:
        reply = session.chat(MESSAGES, thinking=True)
        pieces = list(reply)
        thoughts = "".join(piece for piece in pieces if piece.kind == "thought")
        answer = "".join(piece for piece in pieces if piece.kind == "answer")
        assert thoughts.strip() == (reply.thoughts or "").strip() and thoughts
        assert answer.strip() == reply.answer.strip()
        assert reply.parts == model.chat_parse(reply.text, thinking=True)
        assert session.tokens == model.tokenize(model.chat_format(MESSAGES, thinking=True), "all") + reply.tokens
        # The next turn computes only what is new.
        again = session.chat([*MESSAGES, reply.message(), {"role": "user", "content": "Again."}], thinking=False, answer_tokens=5)
        assert again.wait() is again
        assert again.numbers["tokens_reused"] > 0
        assert again.numbers["tokens_reused"] + again.numbers["tokens_prefilled"] == session.length - len(again.tokens)
        assert again.status in ("complete", "partial") and again.thoughts is None


def test_chat_refuses(model):
    with model.session(context=64, answer_tokens=8) as session:
        with pytest.raises(qwenmoe.TextError, match="Unexpected message role"):
            session.chat([*MESSAGES, {"role": "clown", "content": ""}])
        with pytest.raises(TypeError):
            session.chat([{"role": "user", "content": object()}])
        with pytest.raises(qwenmoe.ContextError, match="64"):
            session.chat([{"role": "user", "content": "word " * 100}])
        assert session.length == 0 and session.get("answer_tokens") == 8


def test_end_thinking(model):
    with model.session(temperature=0, ignore_end=True, answer_tokens=120) as session:
        reply = session.chat(MESSAGES, thinking=True)
        first = next(reply)
        reply.end_thinking()
        assert first.kind == "thought" and "answer" in {piece.kind for piece in reply}
        assert reply.numbers["tokens_thought"] < 120


TOOLS = [{"type": "function", "function": {"name": "add", "strict": True, "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}}}]


def test_constrained(model):
    # Whatever the model would like to say, it has to say it so.
    with model.session(temperature=0, answer_tokens=80) as session:
        reply = session.chat(MESSAGES, thinking=False, json_schema={"enum": [["no", 7]]})
        assert json.loads(reply.answer) == ["no", 7] and reply.finish == "end"
        reply = session.chat(MESSAGES, thinking=False, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
        assert [call.name for call in reply.tool_calls] == ["add"] and type(reply.tool_calls[0].arguments["a"]) is int
        assert session.get("tools") == session.get("json_schema") == ""
        with pytest.raises(qwenmoe.OptionError):
            session.chat(MESSAGES, json_schema={"type": "song"})


def test_logprobs(model):
    with model.session(temperature=0, answer_tokens=6, ignore_end=True) as session:
        rows = session.prefill_rows(model.tokenize(PROMPT), [len(model.tokenize(PROMPT)) - 1])[0].astype("f8")
        logprobs = rows - rows.max() - numpy.log(numpy.exp(rows - rows.max()).sum())
        answer = session.generate(logprobs=3)
        assert [one.token for one in answer.logprobs] == answer.tokens
        first = answer.logprobs[0]
        order = numpy.argsort(-logprobs, kind="stable")[:3]
        assert [token for token, _ in first.top] == order.tolist() and first.token == order[0]
        assert numpy.allclose([value for _, value in first.top], logprobs[order], atol=1e-4)
        assert abs(first.logprob - logprobs.max()) < 1e-4
        assert session.generate(logprobs=0).logprobs[5].top == [] and session.generate().logprobs == []


# ---- cancelling ----

def test_cancel_from_another_thread(session):
    answer = session.generate([1], **ENDLESS)
    threading.Timer(0.05, answer.cancel).start()
    for _ in answer:
        pass
    assert answer.finish == "cancelled" and len(answer.tokens) < session.context - 1
    assert session.length == 1 + len(answer.tokens)
    job = session.submit_prefill([5] * (session.context - session.length))
    job.cancel()
    with pytest.raises(qwenmoe.CancelledError):
        job.wait()


def test_forgotten_answers_stop(session):
    for piece in session.generate([1], **ENDLESS):
        break
    del piece
    assert 0 < session.length < session.context
    session.prefill([1])  # not busy


def test_timeout(session):
    answer = session.generate([1], **ENDLESS)
    with pytest.raises(TimeoutError):
        answer.wait(0.01)
    assert answer.running
    answer.cancel()
    assert answer.wait().finish == "cancelled"


@pytest.mark.parametrize("how", ["for", "wait"])
def test_control_c(session, how):
    answer = session.generate([1], **ENDLESS)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        if how == "wait":
            answer.wait()
        for _ in answer:
            pass
        time.sleep(60)
    timer.join()
    answer.close()
    assert answer.finish == "cancelled" and 0 < session.length < session.context
    session.prefill([1])


def test_control_c_while_loading_and_reading():
    # Progress is told by the threads that compute: the signal comes in the middle.
    seen = []

    def interrupt(stage, done, total):
        if stage not in seen:
            seen.append(stage)
            os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        qwenmoe.Model(DEFAULT, read_ahead=True, progress=interrupt)
        time.sleep(60)
    seen.append("load")
    with qwenmoe.Model(DEFAULT, progress=interrupt) as model, model.session() as session:
        with pytest.raises(KeyboardInterrupt):
            session.prefill([5] * 8000)
            time.sleep(60)
        assert session.length < 8000
        session.prefill([1])


# ---- event loops ----

def test_async(model):
    async def listen(session, prompt):
        return "".join([piece async for piece in session.generate(prompt, temperature=0, answer_tokens=30)])

    async def main():
        loaded = await qwenmoe.Model.submit(TINY)
        first, second = model.session(), model.session()
        turns = 0

        async def count():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)
        counter = asyncio.ensure_future(count())
        both = await asyncio.gather(listen(first, "import os"), listen(second, "import sys"))
        counter.cancel()
        assert turns > 10, "the loop stood still"
        reply = await first.chat(MESSAGES, answer_tokens=5)
        assert reply.finish == "length" and reply.parts.status == "partial"
        assert await second.submit_sync([1, 2]) == 0
        assert await loaded.submit_tokenize("def f") == loaded.tokenize("def f")
        await second.submit_rewind(1)
        assert second.tokens == [1]
        with pytest.raises(qwenmoe.ContextError):
            await second.submit_prefill([1] * 10000)
        return both

    both = asyncio.run(main())
    with model.session(temperature=0, answer_tokens=30) as session:
        assert [session.generate("import os").text, session.sync([]) * "" + session.generate("import sys").text] == both


def test_two_tasks_await_one_job(tiny):
    async def main():
        answer = tiny.session().generate([1], temperature=0, answer_tokens=200, ignore_end=True)

        async def wait():
            return (await answer).text
        texts = await asyncio.gather(wait(), wait(), wait())
        assert len(set(texts)) == 1 and len(answer.tokens) == 200
    asyncio.run(main())


@pytest.mark.parametrize("kind", ["for", "await"])
def test_async_cancelling(tiny, kind):
    async def main():
        session = tiny.session()
        answer = session.generate([1], **ENDLESS)

        async def listen():
            if kind == "await":
                await answer
            async for _ in answer:
                pass
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(listen(), 0.05)
        assert answer.finish == "cancelled"
        await session.submit_prefill([1])  # not busy
        # A loop that is left early
        async for _ in session.generate([1], **ENDLESS):
            break
        await session.submit_prefill([1])
    asyncio.run(main())


def test_descriptor(session):
    answer = session.generate([1, 2, 3], temperature=0, answer_tokens=20, ignore_end=True)
    poller = select.poll()
    poller.register(answer, select.POLLIN)
    while answer.running:
        assert poller.poll()
    assert len(answer.tokens) == 20


# ---- threads ----

def test_sessions_in_threads(tiny):
    def run(number, results):
        with tiny.session(temperature=0, answer_tokens=30, ignore_end=True) as session:
            results[number] = [session.generate([number % 4, turn]).tokens for turn in range(3)]
    results = {}
    threads = [threading.Thread(target=run, args=(number, results)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(results[number] == results[number + 4] for number in range(4)) and results[0] != results[1]


def test_one_session_in_threads(session):
    errors = []

    def run():
        for turn in range(50):
            try:
                session.prefill([turn])
                session.generate([1], answer_tokens=2, ignore_end=True).wait()
                session.logits().sum()
                session.rewind(0)
                session.set(seed=turn)
            except (qwenmoe.BusyError, qwenmoe.StateError, qwenmoe.ArgumentError):
                pass
            except BaseException as error:
                errors.append(error)
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_closed_under_a_waiting_thread():
    for what in ("model", "session", "answer"):
        model = qwenmoe.Model(TINY)
        session = model.session()
        answer = session.generate([1], **ENDLESS)
        heard = []
        thread = threading.Thread(target=lambda: heard.extend(answer))
        thread.start()
        {"model": model, "session": session, "answer": answer}[what].close()
        if what == "model":
            answer.cancel()  # which lives on without the handle of its model
        thread.join()
        assert answer.finish == "cancelled"
        session.close()


# ---- nothing grows, nothing is left ----

def test_long_run_without_growth(tiny):
    def turn():
        with tiny.session(seed=1) as session:
            for _ in session.generate("def f(", answer_tokens=4, ignore_end=True):
                pass
            view = session.logits()
            with session.fork() as fork:
                fork.chat(MESSAGES, answer_tokens=2).answer
            session.prefill([1])
            session.rewind(1)
            session.get("stop")
            with pytest.raises(qwenmoe.ArgumentError):
                session.prefill([-1])
            return float(view[0])

    def now():
        gc.collect()
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * resource.getpagesize()
        return len(_library._alive), len(os.listdir("/proc/self/fd")), threading.active_count(), resident
    for _ in range(30):
        turn()
    before = now()
    for _ in range(150):
        turn()
    after = now()
    assert after[:3] == before[:3]
    assert after[3] - before[3] < 4 << 20, "bytes"


def run(program, *arguments, code=0):
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=60, text=True)
    assert done.returncode == code, done.stdout
    return done.stdout


def test_end_of_the_process_in_the_middle():
    program = """
import sys, qwenmoe
model = qwenmoe.Model(sys.argv[1], log=lambda level, line: None, progress=lambda *step: None)
session = model.session(ignore_end=True, answer_tokens=0)
answer = session.generate("x")
prefill = model.session().submit_prefill([5] * 8000)
next(answer)
print("bye", end="")
"""
    assert run(program, DEFAULT) == "bye"


def test_forked_child():
    program = """
import os, sys, warnings, qwenmoe
warnings.simplefilter("ignore")  # newer Pythons warn of any fork with threads
model = qwenmoe.Model(sys.argv[1])
session = model.session(temperature=0, answer_tokens=5, ignore_end=True)
child = os.fork()
if child == 0:
    for call in (session.generate, lambda: model.vocabulary):
        try:
            call()
        except ValueError as error:
            assert "fork" in str(error)
        else:
            sys.exit(1)
    del session
    del model
    model = qwenmoe.Model(sys.argv[1])
    sys.exit(3 if len(model.session(answer_tokens=5, ignore_end=True).generate([1]).tokens) == 5 else 4)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
assert len(session.generate([1]).tokens) == 5
"""
    assert run(program, TINY) == ""


def test_no_library():
    program = "import qwenmoe; qwenmoe.Model('x')"
    environment = {**os.environ, "QWENMOE_LIBRARY": "/none/libqwenmoe.so"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "LibraryError: cannot open /none/libqwenmoe.so" in done.stderr.splitlines()[-1]
