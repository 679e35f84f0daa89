#!/usr/bin/env python3
"""Makes the tiny models of this folder and what they have to give, with their multi-token-prediction block.

    make_tiny.py FOLDER

`hybrid` has delta and gated attention layers (qwen35), `attention` plain attention in every layer (qwen3), `experts` is `hybrid` with
experts (qwen35moe). Weights are random. The expected values come from a forward pass in float64, written plainly from the papers' formulas (see lib/backend/op.h), so that nothing is
shared with what is tested. Layout of the expect files: see tests/oracle/oracle.c. Needs numpy.
"""
import struct, sys
import numpy as np

F32, F16, I32 = 0, 1, 26
HIDDEN, WIDTH, HEADS, KV_HEADS, SIZE, VOCABULARY, EPSILON = 64, 96, 4, 2, 32, 320, 1e-6
KEY_HEADS, VALUE_HEADS, STATE, TAPS = 2, 4, 32, 4
EXPERTS, USED, EXPERT_WIDTH = 8, 2, 32
ROPE_BASE = 10000.0
LAYERS, INTERVAL = 4, 2  # every second layer of the hybrid one is attention

# ---- writing GGUF (specification: docs/gguf.md of ggml) ----

def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data

class Header:
    def __init__(self):
        self.count, self.data = 0, b""
    def add(self, key, kind, value):
        self.count, self.data = self.count + 1, self.data + string(key) + struct.pack("<I", kind) + value
    def u32(self, key, value): self.add(key, 4, struct.pack("<I", value))
    def f32(self, key, value): self.add(key, 6, struct.pack("<f", value))
    def text(self, key, value): self.add(key, 8, string(value))
    def texts(self, key, values): self.add(key, 9, struct.pack("<IQ", 8, len(values)) + b"".join(map(string, values)))
    def i32s(self, key, values): self.add(key, 9, struct.pack("<IQ", 5, len(values)) + np.asarray(values, "<i4").tobytes())

def write(path, header, tensors):
    kinds = {np.dtype("<f4"): F32, np.dtype("<f2"): F16, np.dtype("<i4"): I32}
    infos, data = b"", b""
    for name, values in tensors.items():
        dims = values.shape[::-1]
        infos += string(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims)
        infos += struct.pack("<IQ", kinds[values.dtype], len(data))
        data += values.tobytes()
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), header.count) + header.data + infos
    with open(path, "wb") as file:
        file.write(head + bytes(-len(head) % 32) + data)

def byte_characters():
    """GPT-2's visible character of each byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in visible]
    return [chr(b) if b in visible else chr(256 + others.index(b)) for b in range(256)]

def add_tokenizer(header, pre):
    words = ["he", "ll", "hell"]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
    unused = VOCABULARY - 256 - len(words) - len(special)
    header.text("tokenizer.ggml.model", "gpt2")
    header.text("tokenizer.ggml.pre", pre)
    header.texts("tokenizer.ggml.tokens", byte_characters() + words + [f"<unused{i}>" for i in range(unused)] + special)
    header.i32s("tokenizer.ggml.token_type", [1] * (256 + len(words)) + [5] * unused + [3] * 3 + [4] * 4)
    header.texts("tokenizer.ggml.merges", ["h e", "l l", "he ll"])
    header.u32("tokenizer.ggml.eos_token_id", VOCABULARY - 5)
    header.u32("tokenizer.ggml.padding_token_id", VOCABULARY - 7)

# ---- weights ----

def make_weights(random, hybrid, experts):
    w = {}
    matrix = lambda rows, columns: (random.standard_normal((rows, columns)) / columns ** 0.5).astype("<f2")
    vector = lambda size, mean=1.0: (mean + 0.2 * random.standard_normal(size)).astype("<f4")
    w["token_embd.weight"], w["output.weight"], w["output_norm.weight"] = matrix(VOCABULARY, HIDDEN), matrix(VOCABULARY, HIDDEN), vector(HIDDEN)
    for i in range(LAYERS + 1):
        b = f"blk.{i}."
        w[b + "attn_norm.weight"] = vector(HIDDEN)
        if hybrid and i < LAYERS and (i + 1) % INTERVAL:
            keys, values = KEY_HEADS * STATE, VALUE_HEADS * STATE
            w[b + "attn_qkv.weight"], w[b + "attn_gate.weight"] = matrix(2 * keys + values, HIDDEN), matrix(values, HIDDEN)
            w[b + "ssm_conv1d.weight"] = vector((2 * keys + values, TAPS), 0.3)
            w[b + "ssm_beta.weight"], w[b + "ssm_alpha.weight"] = matrix(VALUE_HEADS, HIDDEN), matrix(VALUE_HEADS, HIDDEN)
            w[b + "ssm_dt.bias"], w[b + "ssm_a"] = vector(VALUE_HEADS, 0.5), vector(VALUE_HEADS, -0.7)
            w[b + "ssm_norm.weight"], w[b + "ssm_out.weight"] = vector(STATE), matrix(HIDDEN, values)
        else:
            w[b + "attn_q.weight"] = matrix(HEADS * SIZE * (2 if hybrid else 1), HIDDEN)
            w[b + "attn_k.weight"], w[b + "attn_v.weight"] = matrix(KV_HEADS * SIZE, HIDDEN), matrix(KV_HEADS * SIZE, HIDDEN)
            w[b + "attn_output.weight"] = matrix(HIDDEN, HEADS * SIZE)
            w[b + "attn_q_norm.weight"], w[b + "attn_k_norm.weight"] = vector(SIZE), vector(SIZE)
        w[b + ("post_attention_norm.weight" if hybrid else "ffn_norm.weight")] = vector(HIDDEN)
        if experts:
            w[b + "ffn_gate_inp.weight"], w[b + "ffn_gate_inp_shexp.weight"] = vector((EXPERTS, HIDDEN), 0), vector(HIDDEN, 0)
            for name, rows, columns in ("gate", EXPERT_WIDTH, HIDDEN), ("up", EXPERT_WIDTH, HIDDEN), ("down", HIDDEN, EXPERT_WIDTH):
                w[b + f"ffn_{name}_exps.weight"] = np.stack([matrix(rows, columns) for _ in range(EXPERTS)])
                w[b + f"ffn_{name}_shexp.weight"] = matrix(rows, columns)
            continue
        w[b + "ffn_gate.weight"], w[b + "ffn_up.weight"], w[b + "ffn_down.weight"] = matrix(WIDTH, HIDDEN), matrix(WIDTH, HIDDEN), matrix(HIDDEN, WIDTH)
    b = f"blk.{LAYERS}.nextn."
    w[b + "eh_proj.weight"] = matrix(HIDDEN, 2 * HIDDEN)
    for name in "enorm", "hnorm", "shared_head_norm":
        w[b + name + ".weight"] = vector(HIDDEN)
    return w

# ---- the forward pass over a whole prompt, in float64: x is [tokens][HIDDEN] ----

def rms(x, weight): return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * weight
def sigmoid(x): return 1 / (1 + np.exp(-x))
def silu(x): return x * sigmoid(x)

def rotate(x, rotary):
    """x [tokens][heads][SIZE]; frequencies and angles in float32, as the reference implementations have them."""
    half = rotary // 2
    frequency = (1 / np.float32(ROPE_BASE) ** (np.arange(half, dtype=np.float32) * 2 / rotary)).astype(np.float32)
    angle = (np.arange(len(x), dtype=np.float32)[:, None] * frequency).astype(np.float64)[:, None, :]
    a, b = x[..., :half], x[..., half:rotary]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle), x[..., rotary:]], -1)

def attention(w, x, gated, rotary):
    tokens = len(x)
    query = (x @ w["attn_q.weight"].T).reshape(tokens, HEADS, -1)
    gate, query = query[..., SIZE:], query[..., :SIZE]
    key, value = ((x @ w[n].T).reshape(tokens, KV_HEADS, SIZE) for n in ("attn_k.weight", "attn_v.weight"))
    query, key = rotate(rms(query, w["attn_q_norm.weight"]), rotary), rotate(rms(key, w["attn_k_norm.weight"]), rotary)
    key, value = (np.repeat(t, HEADS // KV_HEADS, 1) for t in (key, value))
    scores = np.einsum("thd,shd->hts", query, key) / SIZE ** 0.5
    scores = np.where(np.tril(np.ones((tokens, tokens), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = np.einsum("hts,shd->thd", weights / weights.sum(-1, keepdims=True), value)
    return (out * sigmoid(gate) if gated else out).reshape(tokens, -1) @ w["attn_output.weight"].T

def delta(w, x):
    tokens, keys = len(x), KEY_HEADS * STATE
    columns = np.concatenate([np.zeros((TAPS - 1, 2 * keys + VALUE_HEADS * STATE)), x @ w["attn_qkv.weight"].T])
    mixed = silu(sum(columns[i:i + tokens] * w["ssm_conv1d.weight"][:, i] for i in range(TAPS)))
    query, key, value = (t.reshape(tokens, -1, STATE) for t in np.split(mixed, [keys, 2 * keys], 1))
    unit = lambda t: t / np.sqrt((t * t).sum(-1, keepdims=True) + 1e-6)
    query, key = unit(query) / STATE ** 0.5, unit(key)
    beta = sigmoid(x @ w["ssm_beta.weight"].T)
    decay = np.exp(w["ssm_a"] * np.log1p(np.exp(x @ w["ssm_alpha.weight"].T + w["ssm_dt.bias"])))
    out = np.zeros((tokens, VALUE_HEADS, STATE))
    for h in range(VALUE_HEADS):
        state = np.zeros((STATE, STATE))
        for t in range(tokens):
            k, q = key[t, h % KEY_HEADS], query[t, h % KEY_HEADS]
            state = state * decay[t, h]
            state = state + np.outer(k, beta[t, h] * (value[t, h] - state.T @ k))
            out[t, h] = state.T @ q
    gate = silu(x @ w["attn_gate.weight"].T).reshape(out.shape)
    return (rms(out, w["ssm_norm.weight"]) * gate).reshape(tokens, -1) @ w["ssm_out.weight"].T

def feed_forward(w, x, kind=""):
    return (silu(x @ w[f"ffn_gate{kind}.weight"].T) * (x @ w[f"ffn_up{kind}.weight"].T)) @ w[f"ffn_down{kind}.weight"].T

def mixture(w, x):
    scores = np.exp(x @ w["ffn_gate_inp.weight"].T)
    out = sigmoid(x @ w["ffn_gate_inp_shexp.weight"])[:, None] * feed_forward(w, x, "_shexp")
    for t, row in enumerate(scores):
        chosen = np.argsort(-row, kind="stable")[:USED]
        for e in chosen:
            own = {name: values[e] for name, values in w.items() if "_exps." in name}
            out[t] += row[e] / row[chosen].sum() * feed_forward(own, x[t], "_exps")
    return out

def block(w, x, i, hybrid):
    w = {name.split(".", 2)[2]: values for name, values in w.items() if name.startswith(f"blk.{i}.")}
    h = rms(x, w["attn_norm.weight"])
    x = x + (delta(w, h) if "ssm_a" in w else attention(w, h, hybrid, SIZE // 4 if hybrid else SIZE))
    h = rms(x, w.get("ffn_norm.weight", w.get("post_attention_norm.weight")))
    return x + (mixture(w, h) if "ffn_gate_inp.weight" in w else feed_forward(w, h))

def forward(w, tokens, hybrid):
    """Hidden states after the final norm, and logits."""
    x = w["token_embd.weight"][tokens]
    for i in range(LAYERS):
        x = block(w, x, i, hybrid)
    hidden = rms(x, w["output_norm.weight"])
    return hidden, hidden @ w["output.weight"].T

def draft(w, tokens, hidden, hybrid):
    """Row r: logits of the token after tokens[r + 1], from hidden[r] and tokens[r + 1]."""
    n = f"blk.{LAYERS}.nextn."
    joined = np.concatenate([rms(w["token_embd.weight"][tokens[1:]], w[n + "enorm.weight"]), rms(hidden[:-1], w[n + "hnorm.weight"])], 1)
    x = block(w, joined @ w[n + "eh_proj.weight"].T, LAYERS, hybrid)
    return rms(x, w[n + "shared_head_norm.weight"]) @ w["output.weight"].T

def expected(w, random, hybrid):
    w = {name: values.astype(np.float64) for name, values in w.items()}
    short, long = random.integers(0, 256, 9), random.integers(0, 256, 150)
    greedy = list(short)
    for _ in range(12):
        greedy.append(int(forward(w, np.array(greedy), hybrid)[1][-1].argmax()))
    hidden, logits = forward(w, long, hybrid)
    rows, mtp_rows = [0, 1, 63, 64, 65, 100, 127, 128, 149], [0, 1, 2, 31, 63, 64, 65, 130, 148]
    i4, f4 = (lambda x: np.asarray(x, "<i4")), (lambda x: np.asarray(x, "<f4"))
    return {"short.tokens": i4(short), "short.logits": f4(forward(w, short, hybrid)[1]), "short.greedy": i4(greedy[len(short):]),
            "long.tokens": i4(long), "long.rows": i4(rows), "long.logits": f4(logits[rows]),
            "mtp.rows": i4(mtp_rows), "mtp.logits": f4(draft(w, long, hidden, hybrid)[mtp_rows])}

def make(folder, name, arch, seed):
    hybrid, experts = arch.startswith("qwen35"), arch == "qwen35moe"
    random = np.random.default_rng(seed)
    header = Header()
    header.text("general.architecture", arch)
    header.text("general.name", f"tiny {name}")
    for key, value in dict(block_count=LAYERS + 1, nextn_predict_layers=1, context_length=1024, embedding_length=HIDDEN,
                           feed_forward_length=WIDTH).items():
        header.u32(f"{arch}.{key}", value)
    for key, value in dict(head_count=HEADS, head_count_kv=KV_HEADS, key_length=SIZE, value_length=SIZE).items():
        header.u32(f"{arch}.attention.{key}", value)
    header.f32(f"{arch}.attention.layer_norm_rms_epsilon", EPSILON)
    header.f32(f"{arch}.rope.freq_base", ROPE_BASE)
    if hybrid:
        header.u32(f"{arch}.rope.dimension_count", SIZE // 4)
        header.u32(f"{arch}.full_attention_interval", INTERVAL)
        for key, value in dict(conv_kernel=TAPS, state_size=STATE, group_count=KEY_HEADS, time_step_rank=VALUE_HEADS,
                               inner_size=VALUE_HEADS * STATE).items():
            header.u32(f"{arch}.ssm.{key}", value)
    if experts:
        for key, value in dict(expert_count=EXPERTS, expert_used_count=USED, expert_feed_forward_length=EXPERT_WIDTH,
                               expert_shared_feed_forward_length=EXPERT_WIDTH).items():
            header.u32(f"{arch}.{key}", value)
    add_tokenizer(header, "qwen35" if hybrid else "qwen2")
    weights = make_weights(random, hybrid, experts)
    write(f"{folder}/{name}.gguf", header, weights)
    expect = Header()
    expect.text("general.architecture", "expect")
    write(f"{folder}/{name}.expect.gguf", expect, expected(weights, random, hybrid))

if __name__ == "__main__":
    make(sys.argv[1], "hybrid", "qwen35", 1)
    make(sys.argv[1], "attention", "qwen3", 2)
    make(sys.argv[1], "experts", "qwen35moe", 3)
