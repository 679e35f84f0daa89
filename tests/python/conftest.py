"""What the tests of bindings/python share. The library is the one that QWENMOE_LIBRARY names."""
import math
import signal
import struct
from pathlib import Path

import numpy
import pytest

import qwenmoe

TOP = Path(__file__).resolve().parents[2]
TINY = TOP / "tests/data/oracle/qwen35moe.gguf"  # random weights, float: answers are noise, but quick
DEFAULT = TOP / "examples/model/qwenmoe-py.gguf"

#: An answer that goes on until the context is full.
ENDLESS = {"ignore_end": True, "answer_tokens": 0, "temperature": 0}


# A process started in the background of a script ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny():
    return qwenmoe.Model(TINY, threads=1)


@pytest.fixture(scope="session")
def model():
    return qwenmoe.Model(DEFAULT)


@pytest.fixture
def session(tiny):
    with tiny.session() as made:
        yield made


def read_gguf(path):
    """The tensors of a GGUF file of F32, F16 and I32 tensors and no metadata but numbers and texts, by name."""
    data = memoryview(path.read_bytes())
    position = 0

    def take(form):
        nonlocal position
        values = struct.unpack_from("<" + form, data, position)
        position += struct.calcsize("<" + form)
        return values[0]

    def text():
        nonlocal position
        length = take("Q")
        position += length
        return bytes(data[position - length:position]).decode()

    assert bytes(data[:4]) == b"GGUF" and data[4] == 3
    position = 8
    tensors, pairs = take("Q"), take("Q")
    scalars = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
    for _ in range(pairs):
        text()
        kind = take("I")
        text() if kind == 8 else take(scalars[kind])
    infos = []
    for _ in range(tensors):
        name = text()
        sizes = [take("Q") for _ in range(take("I"))]
        infos.append((name, sizes, take("I"), take("Q")))
    start = (position + 31) // 32 * 32
    found = {}
    for name, sizes, kind, offset in infos:
        found[name] = numpy.frombuffer(data, {0: "<f4", 1: "<f2", 26: "<i4"}[kind], math.prod(sizes), start + offset)
    return found
