"""Write a trained checkpoint as GGUF, and read such a file back into the reference class.

    python convert.py RUN/at-35 RUN/at-83 RUN --weights 1 1 2 --tokenizer tokenizer.json --chat-template FILE \
        --out MODEL.gguf

Takes folders with the parts of a checkpoint; of several checkpoints of one training it writes the weighted mean, which
does better on new text than the last one where the corpus is small for the number of passes.

The file's conventions differ from transformers' in these points: norms are stored as 1 + w, `ssm_a` is -exp(A_log),
and value heads are stored in tiled order (value head h is served by key head h % key_heads, where transformers has
h // (value_heads / key_heads)).
"""
import argparse
import json
import re
from pathlib import Path

import gguf
import numpy as np
import torch

import model
import quantize
import vocab

ARCH = "qwen35moe"
Q4 = re.compile(r"attn_(qkv|gate|q|k|v|output)\.|ssm_out|ffn_(gate|up|down)_(exps|shexp)|eh_proj")


def kind_of(name):
    """The format a tensor is stored in."""
    if name == "token_embd.weight":
        return "Q6_K"
    if re.search(r"ssm_(alpha|beta)\.", name):
        return "F16"
    return "Q4_K" if Q4.search(name) else "F32"


def tiled(cfg, width=1):
    """Indices that bring the rows of value heads (`width` rows each) from grouped into tiled order."""
    kh, vh = cfg.linear_num_key_heads, cfg.linear_num_value_heads
    heads = torch.tensor([(h % kh) * (vh // kh) + h // kh for h in range(vh)])
    return (heads[:, None] * width + torch.arange(width)).flatten()


def _block(prefix, blk, cfg, full):
    """(file's name, state-dict name, change) of one block's tensors; a change is '+1', 'a', 'conv', 'v...' or ''."""
    yield f"{blk}.attn_norm.weight", f"{prefix}.input_layernorm.weight", "+1"
    yield f"{blk}.post_attention_norm.weight", f"{prefix}.post_attention_layernorm.weight", "+1"
    if full:
        for a, b in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("output", "o_proj")):
            yield f"{blk}.attn_{a}.weight", f"{prefix}.self_attn.{b}.weight", ""
        for a in "qk":
            yield f"{blk}.attn_{a}_norm.weight", f"{prefix}.self_attn.{a}_norm.weight", "+1"
    else:
        p = f"{prefix}.linear_attn"
        yield f"{blk}.attn_qkv.weight", f"{p}.in_proj_qkv.weight", "v-tail"
        yield f"{blk}.attn_gate.weight", f"{p}.in_proj_z.weight", "v-rows"
        yield f"{blk}.ssm_beta.weight", f"{p}.in_proj_b.weight", "v-heads"
        yield f"{blk}.ssm_alpha.weight", f"{p}.in_proj_a.weight", "v-heads"
        yield f"{blk}.ssm_conv1d.weight", f"{p}.conv1d.weight", "conv"
        yield f"{blk}.ssm_dt.bias", f"{p}.dt_bias", "v-heads"
        yield f"{blk}.ssm_a", f"{p}.A_log", "a"
        yield f"{blk}.ssm_norm.weight", f"{p}.norm.weight", ""
        yield f"{blk}.ssm_out.weight", f"{p}.out_proj.weight", "v-columns"
    m = f"{prefix}.mlp"
    yield f"{blk}.ffn_gate_inp.weight", f"{m}.gate.weight", ""
    yield f"{blk}.ffn_gate_exps.weight", f"{m}.experts.gate_up_proj", "first"
    yield f"{blk}.ffn_up_exps.weight", f"{m}.experts.gate_up_proj", "second"
    yield f"{blk}.ffn_down_exps.weight", f"{m}.experts.down_proj", ""
    yield f"{blk}.ffn_gate_inp_shexp.weight", f"{m}.shared_expert_gate.weight", "flat"
    for a in ("gate", "up", "down"):
        yield f"{blk}.ffn_{a}_shexp.weight", f"{m}.shared_expert.{a}_proj.weight", ""


def mapping(cfg, mtp=True):
    """All tensors of the file; state-dict names of the MTP block start with 'mtp.'."""
    yield "token_embd.weight", "model.embed_tokens.weight", ""
    if not cfg.tie_word_embeddings:
        yield "output.weight", "lm_head.weight", ""
    yield "output_norm.weight", "model.norm.weight", "+1"
    for i, kind in enumerate(cfg.layer_types):
        yield from _block(f"model.layers.{i}", f"blk.{i}", cfg, kind == "full_attention")
    if mtp:
        blk = f"blk.{cfg.num_hidden_layers}"
        yield from _block("mtp.layer", blk, cfg, True)
        yield f"{blk}.nextn.eh_proj.weight", "mtp.eh_proj.weight", ""
        for a, b in (("enorm", "enorm"), ("hnorm", "hnorm"), ("shared_head_norm", "norm")):
            yield f"{blk}.nextn.{a}.weight", f"mtp.{b}.weight", "+1"


def to_file(x, change, cfg):
    """A parameter as the file holds it."""
    x, d = x.detach().float().cpu(), cfg.linear_value_head_dim
    if change == "+1":
        return x + 1
    if change == "a":
        return -x.exp()[tiled(cfg)]
    if change == "v-heads":
        return x[tiled(cfg)]
    if change == "v-rows":
        return x[tiled(cfg, d)]
    if change == "v-columns":
        return x[:, tiled(cfg, d)]
    if change in ("v-tail", "conv"):
        x = x.squeeze(1) if change == "conv" else x
        keys = 2 * cfg.linear_num_key_heads * cfg.linear_key_head_dim
        return torch.cat([x[:keys], x[keys:][tiled(cfg, d)]])
    if change in ("first", "second"):
        return x.chunk(2, 1)[change == "second"]
    return x.flatten() if change == "flat" else x


def from_file(x, change, cfg):
    """The inverse of `to_file`."""
    back, d = torch.argsort, cfg.linear_value_head_dim
    if change == "+1":
        return x - 1
    if change == "a":
        return (-x)[back(tiled(cfg))].log()
    if change == "v-heads":
        return x[back(tiled(cfg))]
    if change == "v-rows":
        return x[back(tiled(cfg, d))]
    if change == "v-columns":
        return x[:, back(tiled(cfg, d))]
    if change in ("v-tail", "conv"):
        keys = 2 * cfg.linear_num_key_heads * cfg.linear_key_head_dim
        x = torch.cat([x[:keys], x[keys:][back(tiled(cfg, d))]])
        return x[:, None] if change == "conv" else x
    return x[None] if change == "flat" else x


# ------------------------------------------------------------------- writing

def metadata(out, cfg, name):
    put, u32 = out.add_key_value, gguf.GGUFValueType.UINT32
    out.add_type("model")
    out.add_name(name)
    out.add_author("the libqwenmoe authors")
    out.add_license("apache-2.0")
    out.add_size_label("25M")
    out.add_description("A small mixture-of-experts model that continues, fills in and answers with Python code")
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    out.add_quantization_version(2)
    rotated = cfg.head_dim // 4
    numbers = {
        "block_count": cfg.num_hidden_layers + 1, "context_length": model.CONTEXT, "embedding_length": cfg.hidden_size,
        "attention.head_count": cfg.num_attention_heads, "attention.head_count_kv": cfg.num_key_value_heads,
        "attention.key_length": cfg.head_dim, "attention.value_length": cfg.head_dim,
        "feed_forward_length": cfg.moe_intermediate_size, "expert_count": cfg.num_experts,
        "expert_used_count": cfg.num_experts_per_tok, "expert_feed_forward_length": cfg.moe_intermediate_size,
        "expert_shared_feed_forward_length": cfg.shared_expert_intermediate_size, "rope.dimension_count": rotated,
        "ssm.conv_kernel": cfg.linear_conv_kernel_dim, "ssm.state_size": cfg.linear_value_head_dim,
        "ssm.group_count": cfg.linear_num_key_heads, "ssm.time_step_rank": cfg.linear_num_value_heads,
        "ssm.inner_size": cfg.linear_num_value_heads * cfg.linear_value_head_dim,
        "full_attention_interval": cfg.full_attention_interval, "nextn_predict_layers": 1, "vocab_size": cfg.vocab_size,
    }
    for key, value in numbers.items():
        put(f"{ARCH}.{key}", value, u32)
    out.add_float32(f"{ARCH}.attention.layer_norm_rms_epsilon", cfg.rms_norm_eps)
    out.add_float32(f"{ARCH}.rope.freq_base", float(cfg.rope_parameters["rope_theta"]))
    out.add_array(f"{ARCH}.rope.dimension_sections", [*cfg.rope_parameters["mrope_section"], 0])


def vocabulary(out, path, template):
    data = json.loads(Path(path).read_text())
    added = {t["content"]: t["id"] for t in data["added_tokens"]}
    ids = {**data["model"]["vocab"], **added}
    tokens = sorted(ids, key=ids.get)
    assert [ids[t] for t in tokens] == list(range(len(tokens))), "ids must be dense"
    types = []
    for t in tokens:
        if t not in added:
            types.append(1)
        else:
            types.append(5 if t.startswith("[UNUSED") else 4 if t in vocab.USER_DEFINED else 3)
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen35")
    out.add_token_list(tokens)
    out.add_token_types(types)
    out.add_token_merges(merges)
    out.add_eos_token_id(added["<|im_end|>"])
    out.add_pad_token_id(added["<|endoftext|>"])
    out.add_bos_token_id(added["<|endoftext|>"])
    out.add_add_bos_token(False)
    if template:
        out.add_chat_template(Path(template).read_text())


def write(path, cfg, state, tokenizer, template, name):
    """state: the reference class's state dict plus 'mtp.*'."""
    out = gguf.GGUFWriter(str(path), ARCH)
    metadata(out, cfg, name)
    vocabulary(out, tokenizer, template)
    for file_name, name, change in mapping(cfg):
        kind = kind_of(file_name)
        data = quantize.pack(to_file(state[name], change, cfg), kind)
        raw = None if kind in ("F32", "F16") else gguf.GGMLQuantizationType[kind]
        out.add_tensor(file_name, data, raw_dtype=raw)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


# ------------------------------------------------------------------- reading

def read_config(reader):
    get = lambda key: reader.fields[f"{ARCH}.{key}"].contents()
    has = f"{ARCH}.nextn_predict_layers" in reader.fields
    layers = get("block_count") - (get("nextn_predict_layers") if has else 0)
    interval = get("full_attention_interval")
    sections = get("rope.dimension_sections")[:3]
    cfg = model.Qwen3_5MoeTextConfig(
        vocab_size=int(next(t for t in reader.tensors if t.name == "token_embd.weight").shape[1]),
        hidden_size=get("embedding_length"), num_hidden_layers=layers, num_attention_heads=get("attention.head_count"),
        num_key_value_heads=get("attention.head_count_kv"), head_dim=get("attention.key_length"),
        linear_num_key_heads=get("ssm.group_count"), linear_num_value_heads=get("ssm.time_step_rank"),
        linear_key_head_dim=get("ssm.state_size"), linear_value_head_dim=get("ssm.state_size"),
        num_experts=get("expert_count"), num_experts_per_tok=get("expert_used_count"),
        moe_intermediate_size=get("expert_feed_forward_length"),
        shared_expert_intermediate_size=get("expert_shared_feed_forward_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"), max_position_embeddings=get("context_length"),
        tie_word_embeddings=not any(t.name == "output.weight" for t in reader.tensors),
        layer_types=["full_attention" if (i + 1) % interval == 0 else "linear_attention" for i in range(layers)],
        rope_parameters=dict(rope_type="default", rope_theta=get("rope.freq_base"), mrope_interleaved=True,
                             partial_rotary_factor=get("rope.dimension_count") / get("attention.key_length"),
                             mrope_section=sections))
    cfg.full_attention_interval = interval
    return cfg, has


def load(path, attention="sdpa"):
    """(reference model, MTP block or None) in float32 with the file's weights dequantized."""
    reader = gguf.GGUFReader(str(path))
    cfg, has_mtp = read_config(reader)
    values = {t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)) for t in reader.tensors}
    net, mtp = model.reference(cfg, attention), model.Mtp(cfg) if has_mtp else None
    state = {}
    for file_name, name, change in mapping(cfg, has_mtp):
        x = from_file(values[file_name], change, cfg)
        if change == "second":
            x = torch.cat([state[name], x], 1)
        state[name] = x
    inner = {n[4:]: state.pop(n) for n in list(state) if n.startswith("mtp.")}
    if cfg.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    net.load_state_dict(state)
    if has_mtp:
        mtp.load_state_dict(inner)
        mtp.eval()
    return net.eval(), mtp


def read_checkpoint(folder):
    state = {}
    for part in sorted(Path(folder).glob("checkpoint-*.pt")):
        state.update(torch.load(part, map_location="cpu"))
    return state


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("checkpoint", nargs="+", help="folders with checkpoint-*.pt of train.py")
    ap.add_argument("--weights", type=float, nargs="+", help="one for each checkpoint (default: equal)")
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--chat-template", help="file with the chat template, stored as it is")
    ap.add_argument("--name", default="qwenmoe-py")
    ap.add_argument("--out", required=True)
    args = ap.parse_args()
    weights = args.weights or [1.0] * len(args.checkpoint)
    assert len(weights) == len(args.checkpoint), "one weight for each checkpoint"
    parts = [read_checkpoint(folder) for folder in args.checkpoint]
    cfg = model.config([p.pop("size") for p in parts][0])
    state = {name: sum(w * p[name].float() for w, p in zip(weights, parts)) / sum(weights) for name in parts[0]}
    write(args.out, cfg, state, args.tokenizer, args.chat_template, args.name)
    print(args.out, Path(args.out).stat().st_size, "bytes")


if __name__ == "__main__":
    main()
