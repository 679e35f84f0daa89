"""A model whose answers are known: a GGUF file in which the next token depends on the last one alone, as a table says.

The geometry is qwen3's, with one layer whose output projections are zero, so the last hidden state is the last token's embedding e(t),
of values +1 and -1. The output matrix has the row  sum over the pairs (t, next) of  e(t) * weight / width,  so `next` gets the
logit `weight` after t, and every other token only the small products of embeddings that are nearly orthogonal. Whole texts are single
tokens, beside the 256 bytes and the marks of chats; a prompt's last byte, or in a chat the newline that opens the answer, chooses what
comes. A bias of the first token in a request chooses among several.
"""
import array
import random
import struct

WIDTH, HEAD, INNER = 256, 32, 32
SURE, LIKELY, POSSIBLE = 60.0, 40.0, 20.0  # logits; a bias of 30 makes a possible token likelier than a likely one

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>",
         "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>"]
END = "<|im_end|>"

# Scripts: what follows what.
HELLO = ["Hello", ", wörld", "! €"]
THOUGHTS = ["Let me think.", " Yes."]
CALL = ["<tool_call>", "\n<function=get_weather>\n", "<parameter=city>\nPa", "ris", "\n</parameter>\n<parameter=days>", "\n3",
        "\n</parameter>\n</function>\n", "</tool_call>"]
TWO_CALLS = ["I look.\n\n<tool_call>\n<function=get_time>\n<parameter=zone>\nUTC\n</parameter>\n</function>\n</tool",
             "_call>\n<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>"]
MARKDOWN = ["## Title\n\nSome **bold** and `code` <b>not bold</b>.\n\n- one\n- two\n\n```python\nprint(1 < 2)\n```\n"]
FOREVER = "la "
BITS = ["0 ", "1 "]


def links():
    """(token, next, logit)"""
    def chain(*texts):
        return [(a, b, SURE) for a, b in zip(texts, texts[1:])]
    yield from [("\n", HELLO[0], LIKELY), ("\n", THOUGHTS[0], POSSIBLE), ("\n", CALL[0], POSSIBLE), ("\n", TWO_CALLS[0], POSSIBLE),
                ("\n", FOREVER, POSSIBLE), ("\n", MARKDOWN[0], POSSIBLE), ("H", HELLO[0], SURE), ("L", FOREVER, SURE),
                (FOREVER, FOREVER, SURE), ("<|fim_middle|>", HELLO[0], SURE)]
    yield from chain(*HELLO, END)
    yield from chain(*THOUGHTS, "</think>", HELLO[0])
    yield from chain(*CALL, END)
    yield from chain(*TWO_CALLS, END)
    yield from chain(*MARKDOWN, END)
    for last in ["D", *BITS]:
        yield from [(last, bit, SURE) for bit in BITS]


def byte_letters():
    """How byte-level BPE writes each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def vocabulary():
    """Texts by id, as bytes."""
    texts = [bytes([b]) for b in range(256)] + [m.encode() for m in MARKS]
    for pair in links():
        for text in pair[:2]:
            if text.encode() not in texts:
                texts.append(text.encode())
    return texts


TEXTS = vocabulary()


def token(text):
    return TEXTS.index(text.encode())


def bias(text):
    """A request's logit_bias with which an answer starts with this token."""
    return {str(token(text)): 30}


class File:
    def __init__(self):
        self.keys, self.tensors = [], []

    @staticmethod
    def text(s):
        data = s if isinstance(s, bytes) else s.encode()
        return struct.pack("<Q", len(data)) + data

    def key(self, name, kind, payload):
        self.keys.append(self.text(name) + struct.pack("<I", kind) + payload)

    def number(self, name, value):
        self.key(name, 4, struct.pack("<I", value))

    def real(self, name, value):
        self.key(name, 6, struct.pack("<f", value))

    def texts(self, name, values):
        self.key(name, 9, struct.pack("<IQ", 8, len(values)) + b"".join(map(self.text, values)))

    def numbers(self, name, values):
        self.key(name, 9, struct.pack("<IQ", 5, len(values)) + struct.pack(f"<{len(values)}i", *values))

    def write(self, path):
        table, data = b"", b""
        for name, dimensions, values in self.tensors:
            data += bytes(-len(data) % 32)
            table += self.text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, 0, len(data))
            data += array.array("f", values).tobytes()
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys)) + b"".join(self.keys) + table
        with open(path, "wb") as out:
            out.write(head + bytes(-len(head) % 32) + data)


def write_model(path):
    chance, file, count = random.Random(1), File(), len(TEXTS)
    rows = [[chance.choice((-1.0, 1.0)) for _ in range(WIDTH)] for _ in range(count)]
    output = [[0.0] * WIDTH for _ in range(count)]
    for last, following, weight in links():
        for i, value in enumerate(rows[token(last)]):
            output[token(following)][i] += value * weight / WIDTH
    letters = byte_letters()
    file.key("general.architecture", 8, file.text("qwen3"))
    file.key("general.name", 8, file.text("scripted"))
    for name, value in (("block_count", 1), ("context_length", 262144), ("embedding_length", WIDTH), ("feed_forward_length", INNER),
                        ("attention.head_count", 2), ("attention.head_count_kv", 1), ("attention.key_length", HEAD),
                        ("attention.value_length", HEAD)):
        file.number("qwen3." + name, value)
    file.real("qwen3.attention.layer_norm_rms_epsilon", 1e-6)
    file.real("qwen3.rope.freq_base", 1e6)
    file.key("tokenizer.ggml.model", 8, file.text("gpt2"))
    file.key("tokenizer.ggml.pre", 8, file.text("qwen2"))
    file.texts("tokenizer.ggml.tokens",
               [t.decode() if 256 <= i < 256 + len(MARKS) else "".join(letters[b] for b in t) for i, t in enumerate(TEXTS)])
    # Kinds: 1 normal, 3 control (not shown), 4 known to users.
    shown = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    file.numbers("tokenizer.ggml.token_type",
                 [1 if not 256 <= i < 256 + len(MARKS) else 4 if t.decode() in shown else 3 for i, t in enumerate(TEXTS)])
    file.texts("tokenizer.ggml.merges", [])
    file.number("tokenizer.ggml.eos_token_id", token(END))
    ones, zeros = [1.0], [0.0]
    file.tensors = [
        ("token_embd.weight", (WIDTH, count), [v for row in rows for v in row]),
        ("output.weight", (WIDTH, count), [v for row in output for v in row]),
        ("output_norm.weight", (WIDTH,), ones * WIDTH),
        ("blk.0.attn_norm.weight", (WIDTH,), ones * WIDTH),
        ("blk.0.ffn_norm.weight", (WIDTH,), ones * WIDTH),
        ("blk.0.attn_q.weight", (WIDTH, 2 * HEAD), zeros * (WIDTH * 2 * HEAD)),
        ("blk.0.attn_k.weight", (WIDTH, HEAD), zeros * (WIDTH * HEAD)),
        ("blk.0.attn_v.weight", (WIDTH, HEAD), zeros * (WIDTH * HEAD)),
        ("blk.0.attn_output.weight", (2 * HEAD, WIDTH), zeros * (2 * HEAD * WIDTH)),
        ("blk.0.attn_q_norm.weight", (HEAD,), ones * HEAD),
        ("blk.0.attn_k_norm.weight", (HEAD,), ones * HEAD),
        ("blk.0.ffn_gate.weight", (WIDTH, INNER), zeros * (WIDTH * INNER)),
        ("blk.0.ffn_up.weight", (WIDTH, INNER), zeros * (WIDTH * INNER)),
        ("blk.0.ffn_down.weight", (INNER, WIDTH), zeros * (INNER * WIDTH)),
    ]
    file.write(path)


if __name__ == "__main__":
    import sys
    write_model(sys.argv[1])
