"""Sessions: computing, logits, going back, files, errors, and the order in which things are closed."""
import array
import itertools
import math
import subprocess
import sys

import numpy
import pytest

import qwenmoe

from conftest import DEFAULT, ENDLESS, TINY, TOP, read_gguf

EXPECTED = {name: TOP / f"tests/data/oracle/{name}.expect.gguf" for name in ("qwen35moe", "qwen3moe")}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_logits_of_the_reference(name):
    wanted = read_gguf(EXPECTED[name])
    tokens = wanted["short.tokens"].tolist()
    with qwenmoe.Model(EXPECTED[name].with_name(name + ".gguf"), kv_type="f32") as model, model.session() as session:
        rows = session.prefill_rows(tokens, range(len(tokens)))
        assert rows.shape == (len(tokens), model.vocabulary) and rows.dtype == numpy.float32
        reference = wanted["short.logits"].astype("f4").reshape(rows.shape)
        assert numpy.linalg.norm(rows - reference) / numpy.linalg.norm(reference) < 1e-5
        assert (session.logits() == rows[-1]).all()
        greedy = wanted["short.greedy"].tolist()
        answer = session.generate(temperature=0, answer_tokens=len(greedy), ignore_end=True)
        assert answer.tokens == greedy
        assert session.tokens == tokens + greedy


def test_a_token_at_a_time(session):
    ids = session.model.tokenize("def add(a, b):")
    session.prefill(ids)
    whole = session.logits().copy()
    with session.model.session() as other:
        for one in ids:
            other.prefill([one])
        assert (other.logits() == whole).all()
        assert other.length == len(ids) and other.tokens == ids
        other.set(temperature=0)
        assert other.sample() == whole.argmax()


@pytest.mark.parametrize("form", [list, tuple, iter, lambda ids: array.array("i", ids), lambda ids: numpy.array(ids, "int32"),
                                  lambda ids: numpy.array(ids, "int64"), lambda ids: numpy.array(ids + ids, "int32")[:len(ids)]])
def test_forms_of_tokens(session, form):
    session.prefill(form([5, 6, 7]))
    assert session.tokens == [5, 6, 7]


def test_logits_are_not_copied(session):
    session.prefill([1, 2, 3])
    logits = session.logits()
    assert logits.shape == (session.model.vocabulary,) and logits.dtype == numpy.float32
    assert numpy.shares_memory(logits, session.logits())
    with pytest.raises(ValueError):
        logits[0] = 0
    with pytest.raises(ValueError):
        logits.flags.writeable = True


def test_late_readers_of_logits_do_no_harm():
    model = qwenmoe.Model(TINY)
    session = model.session()
    kept = []
    for token in range(40):  # more than the library keeps memory ready for
        session.prefill([token])
        kept.append((session.logits(), session.logits().copy()))
    session.close()
    model.close()
    for view, copy in kept:
        assert (view == copy).all()


def test_logits_without_numpy():
    program = """
import sys
sys.modules["numpy"] = None
import qwenmoe
with qwenmoe.Model(sys.argv[1]) as model, model.session(temperature=0) as session:
    rows = session.prefill_rows([1, 2, 3], [0, 2])
    logits = session.logits()
    assert isinstance(logits, memoryview) and logits.format == "f" and logits.readonly and logits.shape == (model.vocabulary,)
    assert rows.shape == (2, model.vocabulary) and rows.tolist()[1] == logits.tolist()
    assert session.sample() == max(range(len(logits)), key=logits.__getitem__)
"""
    subprocess.run([sys.executable, "-c", program, TINY], check=True)


def test_fork_rewind_sync(session):
    session.prefill(range(20))
    at_20 = session.logits().copy()
    with session.fork() as fork:
        fork.prefill([30])
        assert session.length == 20 and fork.length == 21
        fork.rewind(20)
        assert (fork.logits() == at_20).all()
    session.prefill([40, 41])
    at_22 = session.logits().copy()
    with session.model.session() as other:
        assert 0 < other.sync(session.tokens) <= 22
        assert (other.logits() == at_22).all()
        other.sync(range(20))
        assert (other.logits() == at_20).all()


def test_fork_goes_on_alike(tiny):
    with tiny.session(seed=3, temperature=1.5) as session:
        session.prefill([1, 2, 3])
        session.generate(answer_tokens=5).wait()
        with session.fork() as fork:
            assert fork.get("temperature") == 1.5
            assert fork.generate(answer_tokens=9).tokens == session.generate(answer_tokens=9).tokens


def test_save_and_restore(tiny, tmp_path):
    path = tmp_path / "sitting"
    with tiny.session(seed=3, temperature=1.5) as session, tiny.session() as other:
        session.generate([1, 2, 3], answer_tokens=5).wait()
        session.save(path)
        logits = session.logits().copy()
        other.restore(str(path))
        assert other.tokens == session.tokens and (other.logits() == logits).all()
        assert other.get("temperature") == 1.5
        assert other.generate(answer_tokens=9).tokens == session.generate(answer_tokens=9).tokens
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(qwenmoe.FormatError):
            other.restore(path)
        with pytest.raises(qwenmoe.FileError, match="none"):
            other.restore(tmp_path / "none")
        with pytest.raises(qwenmoe.FileError):
            other.save(tmp_path / "no" / "folder")


def test_decode_together(tiny):
    sessions = [tiny.session() for _ in range(3)]
    for number, session in enumerate(sessions):
        session.prefill([10 + number, 11])
    qwenmoe.decode(sessions, [7, 8, 9])
    assert [session.tokens for session in sessions] == [[10, 11, 7], [11, 11, 8], [12, 11, 9]]
    with tiny.session() as alone:
        alone.prefill([12, 11, 9])
        assert (alone.logits() == sessions[2].logits()).all()
    with pytest.raises(ValueError, match="3 sessions and 1 token"):
        qwenmoe.decode(sessions, [1])
    with pytest.raises(qwenmoe.ArgumentError):
        qwenmoe.decode([sessions[0], sessions[0]], [1, 1])


def test_multi_token_prediction(tiny):
    with qwenmoe.Model(DEFAULT, mtp=True) as model, model.session() as session:
        session.prefill([1, 2, 3])
        logits = session.mtp_logits(4)
        assert logits.shape == (model.vocabulary,) and numpy.isfinite(logits).all() and logits.std() > 0
        assert session.length == 3
    with tiny.session() as session:
        session.prefill([1])
        with pytest.raises(qwenmoe.StateError, match="multi-token-prediction"):
            session.mtp_logits(4)


# ---- errors ----

def test_errors(tiny, tmp_path):
    with pytest.raises(qwenmoe.FileError, match="none.gguf") as caught:
        qwenmoe.Model(tmp_path / "none.gguf")
    assert isinstance(caught.value, OSError) and isinstance(caught.value, qwenmoe.Error)
    assert (caught.value.code, caught.value.name) == (-3, "QM_ERROR_FILE")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises((qwenmoe.FormatError, qwenmoe.UnsupportedError), match="bad.gguf"):
        qwenmoe.Model(tmp_path / "bad.gguf")
    with pytest.raises(qwenmoe.DeviceError):
        qwenmoe.Model(TINY, device="cuda:99", cuda_library=str(tmp_path / "none.so"))
    with pytest.raises(qwenmoe.FitError, match="bytes"):
        qwenmoe.Model(DEFAULT, device="cpu", memory_limit=1)
    with tiny.session(context=64, answer_tokens=8) as session:
        with pytest.raises(qwenmoe.StateError, match="logits"):
            session.logits()
        with pytest.raises(qwenmoe.StateError):
            session.sample()
        with pytest.raises(qwenmoe.ContextError, match="64"):
            session.prefill(range(65))
        assert session.length == 0
        with pytest.raises(qwenmoe.ArgumentError, match="ascend"):
            session.prefill_rows([1, 2], [1, 0])
        with pytest.raises(qwenmoe.ArgumentError):
            session.rewind(5)


def test_busy(session):
    answer = session.generate([1], **ENDLESS)
    for call in (lambda: session.prefill([1]), session.sample, lambda: session.set(seed=1), session.fork,
                 lambda: session.rewind(0)):
        with pytest.raises(qwenmoe.BusyError):
            call()
    assert answer.running
    answer.close()
    session.prefill([1])


# ---- the order of closing ----

@pytest.mark.parametrize("order", list(itertools.permutations(range(5))))
def test_closed_in_any_order(order):
    model = qwenmoe.Model(TINY)
    session = model.session()
    session.prefill([1, 2, 3])
    fork = session.fork()
    logits = fork.logits()
    job = session.generate(**ENDLESS)
    things = [model, session, fork, job, [logits]]
    for which in order:
        things[which].clear() if which == 4 else things[which].close()
    assert all(thing.closed for thing in things[:4])
    assert math.isfinite(logits.sum())
    for call in (lambda: model.vocabulary, session.logits, fork.sample, session.generate):
        with pytest.raises(ValueError, match="is closed"):
            call()
    assert job.finish == "cancelled"


@pytest.mark.parametrize("order", list(itertools.permutations("model session fork job".split())))
def test_forgotten_in_any_order(order):
    things = {"model": qwenmoe.Model(TINY)}
    things["session"] = things["model"].session()
    things["fork"] = things["session"].fork()
    things["job"] = things["session"].submit_prefill(range(100))
    for name in order:
        things.pop(name)
