#!/usr/bin/env python3
"""Writes a GGUF file with the geometry of a published Qwen model and random weights, for measuring speed.

    random_model.py GEOMETRY OUT.gguf [--quant TYPE] [--layers N] [--header-only]

Speed and memory depend on shapes and number formats, not on what the weights say; the text such a model writes is noise.
Geometries: 35b-a3b (Qwen3.5-35B-A3B), 27b (Qwen3.5-27B), mini (the same kind of model for two CPU cores).
TYPE: q4_k_s (the default: Q4_K, with Q5_K for the down projections of the first eighth of the layers and Q6_K for the output),
or q8_0, q6_k, iq4_xs, bf16, f16 for all matrices. Sizes are those of each model's config.json; names and order of dimensions those
of the GGUF specification. Needs numpy.
"""
import argparse
import struct
import sys

import numpy

F32, F16, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_XS, BF16 = 0, 1, 8, 12, 13, 14, 23, 30
BLOCKS = {F32: (1, 4), F16: (1, 2), Q8_0: (32, 34), Q4_K: (256, 144), Q5_K: (256, 176), Q6_K: (256, 210), IQ4_XS: (256, 136), BF16: (1, 2)}
QUANTS = {"q4_k_s": Q4_K, "q8_0": Q8_0, "q6_k": Q6_K, "iq4_xs": IQ4_XS, "bf16": BF16, "f16": F16}
# Half floats of a block: (byte, value), chosen so that the weights have a deviation of about 0.02.
SCALES = {Q8_0: [(0, 2.7e-4)], Q4_K: [(0, 1.3e-4), (2, 1e-3)], Q5_K: [(0, 6.4e-5), (2, 1e-3)], Q6_K: [(208, 1.5e-5)], IQ4_XS: [(0, 1.6e-5)]}

GEOMETRIES = {
    "35b-a3b": dict(architecture="qwen35moe", width=2048, layers=40, heads=16, kv_heads=2, key_heads=16, value_heads=32,
                    experts=256, used=8, inner=512, shared=512, vocabulary=248320),
    "27b": dict(architecture="qwen35", width=5120, layers=64, heads=24, kv_heads=4, key_heads=16, value_heads=48,
                experts=0, used=0, inner=17408, shared=0, vocabulary=248320),
    "mini": dict(architecture="qwen35moe", width=1024, layers=8, heads=8, kv_heads=2, key_heads=8, value_heads=16,
                 experts=64, used=8, inner=512, shared=512, vocabulary=32768),
}
HEAD, STATE, TAPS = 256, 128, 4
POOL = 1 << 25  # bytes of random blocks of each type, used over and over from different places


def text(s):
    data = s.encode()
    return struct.pack("<Q", len(data)) + data


class Header:
    """Metadata of the file, in the order of the calls."""

    def __init__(self):
        self.count, self.data = 0, bytearray()

    def add(self, key, kind, payload):
        self.count += 1
        self.data += text(key) + struct.pack("<I", kind) + payload

    def number(self, key, value):
        self.add(key, 4, struct.pack("<I", value))

    def real(self, key, value):
        self.add(key, 6, struct.pack("<f", value))

    def text(self, key, value):
        self.add(key, 8, text(value))

    def texts(self, key, values):
        self.add(key, 9, struct.pack("<IQ", 8, len(values)) + b"".join(map(text, values)))

    def numbers(self, key, values):
        self.add(key, 9, struct.pack("<IQ", 5, len(values)) + numpy.asarray(values, "<i4").tobytes())


def tensors(g, quant):
    """(name, dimensions, type, value of all elements or None for random ones) of every tensor."""
    mixed, main = quant == "q4_k_s", QUANTS[quant]
    width, inner, layers = g["width"], g["inner"], g["layers"]
    keys, values = g["key_heads"] * STATE, g["value_heads"] * STATE
    yield "token_embd.weight", (width, g["vocabulary"]), main, None
    yield "output.weight", (width, g["vocabulary"]), Q6_K if mixed else main, None
    yield "output_norm.weight", (width,), F32, 1
    for i in range(layers):
        name = f"blk.{i}."
        down = Q5_K if mixed and i < layers // 8 else main
        yield name + "attn_norm.weight", (width,), F32, 1
        yield name + "post_attention_norm.weight", (width,), F32, 1
        if (i + 1) % 4:
            yield name + "attn_qkv.weight", (width, 2 * keys + values), main, None
            yield name + "attn_gate.weight", (width, values), main, None
            yield name + "ssm_conv1d.weight", (TAPS, 2 * keys + values), F32, None
            yield name + "ssm_dt.bias", (g["value_heads"],), F32, 0.5
            yield name + "ssm_a", (g["value_heads"],), F32, -0.5
            yield name + "ssm_beta.weight", (width, g["value_heads"]), main, None
            yield name + "ssm_alpha.weight", (width, g["value_heads"]), main, None
            yield name + "ssm_norm.weight", (STATE,), F32, 1
            yield name + "ssm_out.weight", (values, width), main, None
        else:
            yield name + "attn_q.weight", (width, 2 * HEAD * g["heads"]), main, None
            yield name + "attn_k.weight", (width, HEAD * g["kv_heads"]), main, None
            yield name + "attn_v.weight", (width, HEAD * g["kv_heads"]), Q5_K if mixed and i < 8 else main, None
            yield name + "attn_output.weight", (HEAD * g["heads"], width), main, None
            yield name + "attn_q_norm.weight", (HEAD,), F32, 1
            yield name + "attn_k_norm.weight", (HEAD,), F32, 1
        if g["experts"]:
            yield name + "ffn_gate_inp.weight", (width, g["experts"]), F32, None
            yield name + "ffn_gate_inp_shexp.weight", (width,), F32, None
            for part in ("gate", "up"):
                yield name + f"ffn_{part}_exps.weight", (width, inner, g["experts"]), main, None
                yield name + f"ffn_{part}_shexp.weight", (width, g["shared"]), main, None
            yield name + "ffn_down_exps.weight", (inner, width, g["experts"]), down, None
            yield name + "ffn_down_shexp.weight", (g["shared"], width), down, None
        else:
            for part in ("gate", "up"):
                yield name + f"ffn_{part}.weight", (width, inner), main, None
            yield name + "ffn_down.weight", (inner, width), down, None


def metadata(name, g):
    header, a = Header(), g["architecture"]
    header.text("general.architecture", a)
    header.text("general.name", f"random {name}")
    for key, value in (
            ("block_count", g["layers"]), ("context_length", 262144), ("embedding_length", g["width"]),
            ("attention.head_count", g["heads"]), ("attention.head_count_kv", g["kv_heads"]), ("attention.key_length", HEAD),
            ("attention.value_length", HEAD), ("rope.dimension_count", HEAD // 4), ("ssm.conv_kernel", TAPS), ("ssm.state_size", STATE),
            ("ssm.group_count", g["key_heads"]), ("ssm.time_step_rank", g["value_heads"]), ("ssm.inner_size", g["value_heads"] * STATE),
            ("full_attention_interval", 4)):
        header.number(f"{a}.{key}", value)
    header.real(f"{a}.attention.layer_norm_rms_epsilon", 1e-6)
    header.real(f"{a}.rope.freq_base", 1e7)
    header.numbers(f"{a}.rope.dimension_sections", [11, 11, 10, 0])
    if g["experts"]:
        for key, value in (("expert_count", g["experts"]), ("expert_used_count", g["used"]), ("expert_feed_forward_length", g["inner"]),
                           ("expert_shared_feed_forward_length", g["shared"])):
            header.number(f"{a}.{key}", value)
    else:
        header.number(f"{a}.feed_forward_length", g["inner"])
    # The vocabulary: the 256 bytes as byte-level BPE writes them, fillers, and the marks that chats need.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    filler = g["vocabulary"] - 256 - len(marks)
    header.text("tokenizer.ggml.model", "gpt2")
    header.text("tokenizer.ggml.pre", "qwen35")
    header.texts("tokenizer.ggml.tokens", [letters[b] for b in range(256)] + [f"<unused{i}>" for i in range(filler)] + marks)
    header.numbers("tokenizer.ggml.token_type", [1] * 256 + [5] * filler + [3] * len(marks))
    header.texts("tokenizer.ggml.merges", ["t h", "th e"])
    header.number("tokenizer.ggml.eos_token_id", g["vocabulary"] - 3)
    header.number("tokenizer.ggml.padding_token_id", g["vocabulary"] - 5)
    return header


def random_blocks(kind, random):
    block, size = BLOCKS[kind]
    count = POOL // size
    if kind in (F32, F16, BF16):
        values = (random.standard_normal(count) * 0.02).astype("<f4")
        return (values if kind == F32 else values.astype("<f2") if kind == F16 else (values.view("<u4") >> 16).astype("<u2")).tobytes()
    blocks = random.integers(0, 256, (count, size), dtype=numpy.uint8)
    for at, value in SCALES[kind]:
        blocks[:, at:at + 2] = numpy.frombuffer(numpy.float16(value).tobytes(), numpy.uint8)
    return blocks.tobytes()


def write_tensor(out, size, kind, value, pools, random):
    block = BLOCKS[kind][1]
    if value is not None:
        out.write(numpy.full(size // 4, value, "<f4").tobytes())
        return
    if kind not in pools:
        pools[kind] = memoryview(random_blocks(kind, random))
    pool = pools[kind]
    while size:
        start = int(random.integers(0, len(pool) // block // 2)) * block
        piece = pool[start:start + min(size, (len(pool) - start) // block * block)]
        out.write(piece)
        size -= len(piece)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("geometry", choices=GEOMETRIES)
    parser.add_argument("out")
    parser.add_argument("--quant", choices=QUANTS, default="q4_k_s")
    parser.add_argument("--layers", type=int, help="cut the model to so many layers")
    parser.add_argument("--header-only", action="store_true", help="a file with a hole instead of weights: for `qwenmoe info`")
    options = parser.parse_args()
    geometry = dict(GEOMETRIES[options.geometry])
    if options.layers:
        geometry["layers"] = options.layers
    header, random, entries, offset = metadata(options.geometry, geometry), numpy.random.default_rng(1), [], 0
    for name, dimensions, kind, value in tensors(geometry, options.quant):
        if dimensions[0] % BLOCKS[kind][0]:
            kind = Q8_0 if dimensions[0] % 32 == 0 else F16
        size = int(numpy.prod(dimensions)) // BLOCKS[kind][0] * BLOCKS[kind][1]
        entries.append((name, dimensions, kind, value, offset, size))
        offset += (size + 31) // 32 * 32
    with open(options.out, "wb", buffering=0) as out:
        table = b"".join(text(name) + struct.pack(f"<I{len(d)}QIQ", len(d), *d, kind, at) for name, d, kind, _, at, _ in entries)
        head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), header.count) + bytes(header.data) + table
        out.write(head + bytes(-len(head) % 32))
        if options.header_only:
            out.truncate(len(head) + -len(head) % 32 + offset)
            entries = []
        pools = {}
        for number, (_, _, kind, value, _, size) in enumerate(entries):
            write_tensor(out, size, kind, value, pools, random)
            out.write(bytes(-size % 32))
            if sys.stderr.isatty():
                print(f"\r{options.out}: {100 * (number + 1) // len(entries)} %", end="", file=sys.stderr)
    print(f"{options.out}: {options.geometry}, {options.quant}, {(len(head) + offset) / 1e9:.2f} GB", file=sys.stderr)


if __name__ == "__main__":
    main()
