"""Measure a model file with the reference class, and write what other engines can be compared with.

    python oracle.py MODEL.gguf --heldout heldout.txt --expect heldout.expect.gguf
    python oracle.py MODEL.gguf --samples

Everything is float32 on the CPU with the file's weights dequantized. The expectations hold

    short.tokens, short.logits, short.greedy   a short prompt, logits of all its rows, 24 greedy tokens
    long.tokens, long.rows, long.logits        the start of the held-out text, some positions, float16 logits there
    mtp.rows, mtp.logits                       the prediction block's logits for the token after next
"""
import argparse
import json
import math
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, Regex, decoders, models, normalizers, pre_tokenizers

import convert
import model
import vocab

SHORT = "def count_words(text):\n    \"\"\"Count how often each word occurs.\"\"\"\n    counts = {}\n"
PROMPTS = {
    "continue": "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "fim": "<|fim_prefix|>def mean(values):\n    \"\"\"Return the arithmetic mean of a list.\"\"\"\n    total = <|fim_suffix|>\n"
           "    return total / len(values)\n<|fim_middle|>",
    "chat": "<|im_start|>user\nWrite a Python function `count_lines(path)` that returns the number of lines in a file."
            "<|im_end|>\n<|im_start|>assistant\n<think>\n",
    "chat, no thought": "<|im_start|>user\nWrite a Python function that reverses a string.<|im_end|>\n"
                        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
}


def tokenizer(path):
    """The file's own tokenizer as a `tokenizers` object."""
    fields = gguf.GGUFReader(str(path)).fields
    tokens, kinds, merges = (fields[f"tokenizer.ggml.{k}"].contents() for k in ("tokens", "token_type", "merges"))
    ids = {t: i for i, t in enumerate(tokens)}
    tok = Tokenizer(models.BPE({t: i for t, i in ids.items() if kinds[i] == 1}, [tuple(m.split(" ")) for m in merges]))
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(vocab.PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([t for t in tokens if kinds[ids[t]] != 1])
    assert all(tok.token_to_id(t) == i for t, i in ids.items())
    return tok


@torch.no_grad()
def generate(net, tokens, count, stop=(), temperature=0.0, seed=0):
    """Continue tokens by `count`; greedy at temperature 0."""
    draw, out, step, cache = torch.Generator().manual_seed(seed), [], torch.tensor([tokens]), None
    for _ in range(count):
        result = net(step, past_key_values=cache, use_cache=True)
        cache, row = result.past_key_values, result.logits[0, -1]
        if temperature:
            out.append(int(torch.multinomial((row / temperature).softmax(-1), 1, generator=draw)))
        else:
            out.append(int(row.argmax()))
        if out[-1] in stop:
            break
        step = torch.tensor([[out[-1]]])
    return out


@torch.no_grad()
def perplexity(net, mtp, tokens, window):
    """Perplexity over consecutive windows, and how often the prediction block agrees: with the text, with the model."""
    total, n, right, same, m = 0.0, 0, 0, 0, 0
    for start in range(0, len(tokens) - 2, window):
        t = torch.tensor([tokens[start:start + window + 1]])
        if t.shape[1] < 3:
            break
        logits = net(t[:, :-1], use_cache=False).logits[0]
        total += torch.nn.functional.cross_entropy(logits, t[0, 1:], reduction="sum").item()
        n += logits.shape[0]
        ahead = model.mtp_logits(net, mtp, t[:, :-1])[0].argmax(-1)[:-1]
        right += (ahead == t[0, 2:-1]).sum().item()
        same += (ahead == logits[1:-1].argmax(-1)).sum().item()
        m += len(ahead)
    return {"tokens": n, "perplexity": round(math.exp(total / n), 3), "loss": round(total / n, 4),
            "block agrees with the text": round(right / m, 3), "block agrees with the model": round(same / m, 3)}


@torch.no_grad()
def expectations(path, out, net, mtp, tok, text, length=1000, every=23, mtp_rows=12):
    short = tok.encode(SHORT, add_special_tokens=False).ids
    long = tok.encode(text, add_special_tokens=False).ids[:length]
    rows = sorted({*range(7, length, every), 0, 1, 2, 63, 64, 65, length - 1})
    logits = net(torch.tensor([long]), use_cache=False).logits[0]
    ahead = model.mtp_logits(net, mtp, torch.tensor([long]))[0]
    picked = np.linspace(0, len(ahead) - 1, mtp_rows).astype(np.int32)
    w = gguf.GGUFWriter(str(out), "expect")
    w.add_string("expect.model", Path(path).name)
    w.add_string("expect.source", "transformers 5.17.0, float32, the file's weights dequantized")
    w.add_tensor("short.tokens", np.array(short, np.int32))
    w.add_tensor("short.logits", net(torch.tensor([short]), use_cache=False).logits[0].numpy())
    w.add_tensor("short.greedy", np.array(generate(net, short, 24), np.int32))
    w.add_tensor("long.tokens", np.array(long, np.int32))
    w.add_tensor("long.rows", np.array(rows, np.int32))
    w.add_tensor("long.logits", logits[rows].numpy().astype(np.float16))
    w.add_tensor("mtp.rows", picked)
    w.add_tensor("mtp.logits", ahead[picked.tolist()].numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("--heldout", help="text to measure perplexity on")
    ap.add_argument("--window", type=int, default=1024)
    ap.add_argument("--expect", help="write expectations for the held-out text here")
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--samples", action="store_true", help="print some answers")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    net, mtp = convert.load(args.model)
    tok = tokenizer(args.model)
    if args.samples:
        stop = [tok.token_to_id(t) for t in ("<|endoftext|>", "<|im_end|>")]
        for name, prompt in PROMPTS.items():
            for temperature in (0.0, 0.6):
                ids = generate(net, tok.encode(prompt, add_special_tokens=False).ids, 160, stop, temperature)
                print(f"--- {name}, temperature {temperature}\n{tok.decode(ids, skip_special_tokens=False)}", flush=True)
    if args.heldout:
        text = Path(args.heldout).read_text()
        if args.expect:
            expectations(args.model, args.expect, net, mtp, tok, text)
        ids = tok.encode(text, add_special_tokens=False).ids
        print(json.dumps({"bytes": len(text.encode()), **perplexity(net, mtp, ids, args.window)}), flush=True)


if __name__ == "__main__":
    main()
