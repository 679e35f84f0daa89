"""The delta rule's fast kernels, from the package flash-linear-attention.

One of its kernels, the part of the backward pass that stays within a chunk of 64 tokens, refuses to run on Hopper
GPUs with Triton 3.4 to 3.7.0, whose code for it is wrong. Everything in that part is a batch of small matrix
products, so `within_chunks` does it with those.
"""
import importlib

import torch


def _products(q, k, v, g, h, dh, do, dv, scale):
    """All arguments [chunks, heads, ...]; g: running log2 decay inside the chunk. Returns dq, dk, dw, dg."""
    half = v.dtype
    g, last = g.float(), g[..., -1:].float()
    rise, fall = torch.exp2(g)[..., None], torch.exp2(last - g)[..., None]
    mask = torch.ones(q.shape[-2], q.shape[-2], device=q.device, dtype=torch.bool).tril()
    decay = torch.exp2(torch.where(mask, g[..., :, None] - g[..., None, :], float("-inf")))
    ds = ((do @ v.mT).float() * decay * scale).to(half)
    dk0 = (v @ dh.to(half).mT).float() * fall
    dq = (do @ h.to(half).mT).float() * rise * scale + (ds @ k).float()
    dk = dk0 + (ds.mT @ q).float()
    dw = -(dv.to(half) @ h.to(half).mT)
    q, k = q.float(), k.float()
    at_end = (h.float() * dh.float()).sum((-1, -2))[..., None] * torch.exp2(last) + (dk0 * k).sum((-1, -2))[..., None]
    dg = (dq * q).sum(-1) - (dk * k).sum(-1)
    dg = torch.cat([dg[..., :-1], dg[..., -1:] + at_end], -1)
    return dq.to(half), dk.to(half), dw, dg


def _chunked(x, size):
    """[B, T, heads, ...] -> [B * T / size, heads, size, ...]"""
    return x.reshape(-1, size, *x.shape[2:]).transpose(1, 2)


def within_chunks(q, k, v, do, h, dh, w=None, g=None, dv=None, scale=None, chunk_size=64, products=_products, **unused):
    B, T, kh, d = k.shape
    vh = v.shape[2]
    wide = [x.repeat_interleave(vh // kh, 2) for x in (q, k)]
    parts = [_chunked(x, chunk_size) for x in (*wide, v, g)]
    states = [x.reshape(-1, *x.shape[2:]) for x in (h, dh)]
    dq, dk, dw, dg = products(*parts, *states, _chunked(do, chunk_size), _chunked(dv, chunk_size), scale)
    dq, dk, dw, dg = (x.transpose(1, 2).reshape(B, T, *x.shape[1:2], *x.shape[3:]) for x in (dq, dk, dw, dg))
    dq, dk = (x.view(B, T, kh, vh // kh, d).sum(3) for x in (dq, dk))
    return dq, dk, dw, dg


def kernels(compiled=True):
    """flash-linear-attention's `chunk_gated_delta_rule`, with the part above replaced."""
    module = importlib.import_module("fla.ops.gated_delta_rule.chunk")
    products = torch.compile(_products, dynamic=False) if compiled else _products
    module.chunk_bwd_dqkwg = lambda **given: within_chunks(**given, products=products)
    return module.chunk_gated_delta_rule
