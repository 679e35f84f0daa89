"""The model: its size, the reference class, the multi-token-prediction block, and a fast forward pass for training.

`reference()` builds transformers' own Qwen3.5-MoE class; `Mtp` is the block that class lacks, made of its layers.
`Trainee` computes the same losses from the same parameters with fewer and larger operations: all tokens of a batch
are one matrix [N, ...], all experts of a layer are two matrix products, and the pieces between the two operations
that need sequences (attention and the delta rule) can each be compiled on their own, whatever the sequence length.
"""
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as qwen
from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeTextConfig

import delta

SIZES = {
    "default": dict(vocab_size=8192, hidden_size=512, num_hidden_layers=6, full_attention_interval=3,
                    num_attention_heads=8, num_key_value_heads=2, head_dim=64, linear_num_key_heads=4,
                    linear_num_value_heads=8, linear_key_head_dim=64, linear_value_head_dim=64, num_experts=4,
                    num_experts_per_tok=2, moe_intermediate_size=256, shared_expert_intermediate_size=256),
    "tiny": dict(vocab_size=8192, hidden_size=256, num_hidden_layers=3, full_attention_interval=3,
                 num_attention_heads=4, num_key_value_heads=2, head_dim=64, linear_num_key_heads=2,
                 linear_num_value_heads=4, linear_key_head_dim=64, linear_value_head_dim=64, num_experts=4,
                 num_experts_per_tok=2, moe_intermediate_size=256, shared_expert_intermediate_size=256),
}
CONTEXT, ROPE_BASE = 32768, 10000.0


def config(size="default"):
    shape = dict(SIZES[size])
    interval = shape.pop("full_attention_interval")
    layers = shape["num_hidden_layers"]
    half = shape["head_dim"] // 8                         # rotated pairs: a quarter of the head is rotated
    side = half // 3
    cfg = Qwen3_5MoeTextConfig(
        **shape, rms_norm_eps=1e-6, max_position_embeddings=CONTEXT, tie_word_embeddings=True, linear_conv_kernel_dim=4,
        layer_types=["full_attention" if (i + 1) % interval == 0 else "linear_attention" for i in range(layers)],
        rope_parameters=dict(rope_type="default", rope_theta=ROPE_BASE, partial_rotary_factor=0.25,
                             mrope_section=[half - 2 * side, side, side], mrope_interleaved=True))
    cfg.full_attention_interval = interval
    return cfg


def reference(cfg, attention="sdpa"):
    """transformers' class with random weights."""
    cfg._attn_implementation = attention
    cfg._experts_implementation = "eager"
    net = qwen.Qwen3_5MoeForCausalLM(cfg)
    for layer in net.model.layers:                        # decays spread over short and long memories
        if layer.block_type == "linear_attention":
            heads = layer.linear_attn.num_v_heads
            with torch.no_grad():
                layer.linear_attn.A_log.copy_(torch.linspace(1, 16, heads).log())
                step = torch.exp(torch.linspace(-6.9, -2.3, heads))
                layer.linear_attn.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))
    return net


class Mtp(nn.Module):
    """One more attention block that looks two tokens ahead; its embedding and output head are the main model's."""

    def __init__(self, cfg):
        super().__init__()
        h = cfg.hidden_size
        self.enorm, self.hnorm = qwen.Qwen3_5MoeRMSNorm(h), qwen.Qwen3_5MoeRMSNorm(h)
        self.eh_proj = nn.Linear(2 * h, h, bias=False)
        self.layer = qwen.Qwen3_5MoeDecoderLayer(cfg, cfg.layer_types.index("full_attention"))
        self.norm = qwen.Qwen3_5MoeRMSNorm(h)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, hidden, embedded, rotary, mask=None):
        """hidden[i]: the main model's output i after its last norm; embedded[i]: the embedding of token i + 1."""
        u = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], -1))
        return self.norm(self.layer(u, position_embeddings=rotary, attention_mask=mask))


def mtp_logits(net, mtp, tokens):
    """The reference for the block: logits [1, T-1, vocabulary]; row i predicts token i + 2 of `tokens` [1, T]."""
    hidden = net.model(tokens, use_cache=False).last_hidden_state[:, :-1]
    embedded = net.model.embed_tokens(tokens[:, 1:])
    n = hidden.shape[1]
    rotary = net.model.rotary_emb(hidden, torch.arange(n, device=tokens.device).view(1, 1, -1).expand(3, 1, -1))
    return net.lm_head(mtp(hidden, embedded, rotary, None))


# ------------------------------------------------------- the fast forward pass

def _rms(x, w, eps=1e-6):
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (1.0 + w)


def _unit(x):
    x = x.float()
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)


def _rope(x, cos, sin):
    n = cos.shape[-1]
    a, b = x[..., :n], x[..., n:2 * n]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, x[..., 2 * n:]], -1)


def delta_in(x, norm, w_in, conv, a_log, dt_bias, pos, kh, vh, d):
    """[N, hidden] -> queries, keys, values, log decay, beta, gate."""
    y = F.linear(_rms(x, norm).to(w_in.dtype), w_in)
    qkv, z, b, a = y.split([(2 * kh + vh) * d, vh * d, vh, vh], -1)
    mixed = qkv.float() * conv[:, 3]
    for back in (1, 2, 3):
        earlier = F.pad(qkv, (0, 0, back, 0))[:qkv.shape[0]]
        mixed = mixed + torch.where(pos[:, None] >= back, earlier.float(), 0.0) * conv[:, 3 - back]
    mixed = F.silu(mixed)
    q, k, v = mixed.split([kh * d, kh * d, vh * d], -1)
    q, k = (_unit(t.reshape(-1, kh, d)).to(y.dtype) for t in (q, k))
    g = -a_log.exp() * F.softplus(a.float() + dt_bias)
    return q, k, v.reshape(-1, vh, d).to(y.dtype), g, b.float().sigmoid(), z.reshape(-1, vh, d)


def attention_in(x, norm, w_in, q_norm, k_norm, cos, sin, heads, kv, d):
    """[N, hidden] -> queries, keys, values, gate."""
    y = F.linear(_rms(x, norm).to(w_in.dtype), w_in)
    q, k, v = y.split([2 * heads * d, kv * d, kv * d], -1)
    q, gate = q.reshape(-1, heads, 2 * d).chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    q = _rope(_rms(q, q_norm), cos, sin).to(y.dtype)
    k = _rope(_rms(k.reshape(-1, kv, d), k_norm), cos, sin).to(y.dtype)
    return q, k, v.reshape(-1, kv, d), gate


def experts(x, norm, router, w_up, w_down, top):
    """x + the feed-forward of all experts at once, unchosen ones weighted 0; and the load-balancing loss."""
    h, n = _rms(x, norm), router.shape[0] - 1             # the last row of `router` gates the shared expert
    scores = F.linear(h, router)
    p = scores[:, :n].softmax(-1)
    ahead = (p[:, None, :] > p[:, :, None]).sum(-1)
    chosen = (ahead < top).to(p.dtype)
    kept = p * chosen
    weight = torch.cat([kept / kept.sum(-1, keepdim=True), scores[:, n:].sigmoid()], -1)
    y = F.linear(h.to(w_up.dtype), w_up).view(x.shape[0], n + 1, 2, -1)
    act = F.silu(y[:, :, 0].float()) * y[:, :, 1].float() * weight[:, :, None]
    balance = n / top * (chosen.mean(0) * p.mean(0)).sum()
    return x + F.linear(act.to(w_down.dtype).flatten(1), w_down).float(), balance


def delta_out(x, o, z, gnorm, w_out, *ffn):
    o = o.float()
    o = o * torch.rsqrt(o.pow(2).mean(-1, keepdim=True) + 1e-6) * gnorm * F.silu(z.float())
    return experts(x + F.linear(o.to(w_out.dtype).flatten(1), w_out).float(), *ffn)


def attention_out(x, o, gate, w_out, *ffn):
    o = o.float() * gate.float().sigmoid()
    return experts(x + F.linear(o.to(w_out.dtype).flatten(1), w_out).float(), *ffn)


def predict(x, norm, table, target):
    """Mean cross entropy, and the mean square of the log partition."""
    h = _rms(x, norm)
    logits = F.linear(h.to(table.dtype), table).float()
    z = logits.logsumexp(-1)
    loss = z - logits.gather(-1, target[:, None])[:, 0]
    return h, loss, z.pow(2).mean()


def mtp_in(h, embedded, enorm, hnorm, w):
    return F.linear(torch.cat([_rms(embedded, enorm), _rms(h, hnorm)], -1).to(w.dtype), w).float()


class Identity(torch.autograd.Function):
    """Forward: the second argument (a rounded copy); backward: straight to the first."""

    @staticmethod
    def forward(ctx, p, rounded):
        return rounded

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Trainee:
    """The fast forward pass over the parameters of a reference model and its MTP block."""

    def __init__(self, net, mtp, dtype=torch.bfloat16, compiled=False, fla=False):
        self.net, self.mtp, self.dtype = net, mtp, dtype
        self.cfg = net.config
        build = (lambda f: torch.compile(f, dynamic=False)) if compiled else (lambda f: f)
        for f in (delta_in, delta_out, attention_in, attention_out, predict, mtp_in):
            setattr(self, f.__name__, build(f))
        self.rule = qwen.torch_chunk_gated_delta_rule
        self.fla = fla
        if fla:
            self.rule = delta.kernels(compiled)
        self.rounded = {}

    def w(self, p):
        """A weight in the working precision, rounded as the file will hold it where that is wanted."""
        q = self.rounded.get(id(p))
        return (p if q is None else Identity.apply(p, q.view_as(p))).to(self.dtype)

    def _ffn(self, layer):
        m = layer.mlp
        up = torch.cat([self.w(m.experts.gate_up_proj).flatten(0, 1), self.w(m.shared_expert.gate_proj.weight),
                        self.w(m.shared_expert.up_proj.weight)])
        down = torch.cat([*self.w(m.experts.down_proj).unbind(0), self.w(m.shared_expert.down_proj.weight)], 1)
        return (layer.post_attention_layernorm.weight, torch.cat([m.gate.weight, m.shared_expert_gate.weight]), up, down,
                self.cfg.num_experts_per_tok)

    def _delta(self, x, layer, pos, shape):
        a, c = layer.linear_attn, self.cfg
        kh, vh, d = c.linear_num_key_heads, c.linear_num_value_heads, c.linear_value_head_dim
        w_in = torch.cat([self.w(t.weight) for t in (a.in_proj_qkv, a.in_proj_z, a.in_proj_b, a.in_proj_a)])
        q, k, v, g, beta, z = self.delta_in(x, layer.input_layernorm.weight, w_in, a.conv1d.weight.squeeze(1), a.A_log,
                                            a.dt_bias, pos, kh, vh, d)
        q, k, v, g, beta = (t.view(*shape, *t.shape[1:]) for t in (q, k, v, g, beta))
        if not self.fla:
            q, k = (t.repeat_interleave(vh // kh, 2) for t in (q, k))
        o, _ = self.rule(q, k, v, g=g, beta=beta)
        return self.delta_out(x, o.reshape(-1, vh, d), z, a.norm.weight, self.w(a.out_proj.weight), *self._ffn(layer))

    def _attention(self, x, layer, cos, sin, shape):
        a, c = layer.self_attn, self.cfg
        w_in = torch.cat([self.w(t.weight) for t in (a.q_proj, a.k_proj, a.v_proj)])
        q, k, v, gate = self.attention_in(x, layer.input_layernorm.weight, w_in, a.q_norm.weight, a.k_norm.weight, cos, sin,
                                          c.num_attention_heads, c.num_key_value_heads, c.head_dim)
        q, k, v = (t.view(*shape, *t.shape[1:]).transpose(1, 2) for t in (q, k, v))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        o = o.transpose(1, 2).reshape(-1, c.num_attention_heads, c.head_dim)
        return self.attention_out(x, o, gate, self.w(a.o_proj.weight), *self._ffn(layer))

    def losses(self, tokens):
        """tokens [B, T + 2] -> per-token losses of the next token and of the one after [B*T], balance, log-partition."""
        B, T = tokens.shape[0], tokens.shape[1] - 2
        model, pos = self.net.model, torch.arange(T, device=tokens.device).repeat(B)
        angle = pos[:, None].float() * model.rotary_emb.inv_freq.float()
        cos, sin = angle.cos(), angle.sin()
        table = self.w(model.embed_tokens.weight)
        x = F.embedding(tokens[:, :T].reshape(-1), table).float()
        balance = 0.0
        for layer in model.layers:
            if layer.block_type == "linear_attention":
                x, extra = self._delta(x, layer, pos, (B, T))
            else:
                x, extra = self._attention(x, layer, cos, sin, (B, T))
            balance = balance + extra
        h, loss, z = self.predict(x, model.norm.weight, table, tokens[:, 1:T + 1].reshape(-1))
        m = self.mtp
        embedded = F.embedding(tokens[:, 1:T + 1].reshape(-1), table)
        u = self.mtp_in(h, embedded, m.enorm.weight, m.hnorm.weight, self.w(m.eh_proj.weight))
        u, extra = self._attention(u, m.layer, cos, sin, (B, T))
        _, loss2, z2 = self.predict(u, m.norm.weight, table, tokens[:, 2:].reshape(-1))
        return loss, loss2, (balance + extra) / (len(model.layers) + 1), z + z2
