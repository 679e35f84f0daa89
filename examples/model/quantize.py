"""Rounding of weights to GGUF's block formats Q4_K, Q6_K and Q8_0.

The search for scales is written with torch, so that training can round the weights in the same way on the GPU
(`fake`); packing into bytes is numpy. A row of 256 values ("super-block") is the unit of the K formats:

    Q4_K  8 sub-blocks of 32:  w = d * sc * q - dmin * m    q in 0..15, sc and m in 0..63, d and dmin float16
    Q6_K 16 sub-blocks of 16:  w = d * sc * (q - 32)        q in 0..63, sc in -128..127, d float16
    Q8_0  1 block of 32:       w = d * q                    q in -127..127, d float16
"""
import numpy as np
import torch

SPREAD = (1.0, 0.95, 0.9, 0.85, 0.8)                      # candidates: the range a sub-block's grid covers, relative


def _half(x):
    return x.to(torch.float16).float()


def _safe(x):
    return torch.where(x == 0, torch.ones_like(x), x)


def round_q4k(w):
    """w [n, 256] -> d [n], dmin [n], sc [n, 8], m [n, 8], q [n, 8, 32]: least squares over a few ranges per sub-block."""
    x = w.float().view(-1, 8, 32)
    low, high = x.amin(-1).clamp(max=0), x.amax(-1).clamp(min=0)
    best = torch.full_like(low, float("inf"))
    scale, offset = torch.zeros_like(low), torch.zeros_like(low)
    sx = x.sum(-1)
    for f in SPREAD:
        s, m = (high - low) * (f / 15), -low * f
        q = ((x + m[..., None]) / _safe(s)[..., None]).round().clamp(0, 15)
        # the best s and m for these q: minimise sum (x - s q + m)^2 with m >= 0
        sq, sqq, sxq = q.sum(-1), (q * q).sum(-1), (x * q).sum(-1)
        det = 32 * sqq - sq * sq
        s1 = torch.where(det > 0, (32 * sxq - sx * sq) / _safe(det), s)
        m1 = torch.where(det > 0, (sq * sxq - sqq * sx) / _safe(det), m)
        alone = torch.where(sqq > 0, sxq / _safe(sqq), s)
        s1, m1 = torch.where(m1 < 0, alone, s1), m1.clamp(min=0)
        err = (x - s1[..., None] * q + m1[..., None]).pow(2).sum(-1)
        better = (err < best) & (s1 > 0)
        best, scale, offset = (torch.where(better, a, b) for a, b in ((err, best), (s1, scale), (m1, offset)))
    d, dmin = _half(scale.amax(-1) / 63), _half(offset.amax(-1) / 63)
    sc = (scale / _safe(d)[:, None]).round().clamp(0, 63)
    m = (offset / _safe(dmin)[:, None]).round().clamp(0, 63)
    step, shift = d[:, None] * sc, dmin[:, None] * m
    q = torch.where(step[..., None] > 0, (x + shift[..., None]) / _safe(step)[..., None], 0).round().clamp(0, 15)
    return d, dmin, sc, m, q


def value_q4k(d, dmin, sc, m, q):
    return ((d[:, None] * sc)[..., None] * q - (dmin[:, None] * m)[..., None]).view(-1, 256)


def round_q6k(w):
    """w [n, 256] -> d [n], sc [n, 16], q [n, 16, 16] (already minus 32)."""
    x = w.float().view(-1, 16, 16)
    big = x.abs().amax(-1)
    peak = torch.gather(x, 2, x.abs().argmax(-1, keepdim=True))[..., 0]
    best, scale = torch.full_like(big, float("inf")), torch.zeros_like(big)
    for f in (32.0, 31.0, 30.0, 29.0):
        s = -peak / f                                     # the largest value lands on -32 / f
        q = (x / _safe(s)[..., None]).round().clamp(-32, 31)
        sqq = (q * q).sum(-1)
        s1 = torch.where(sqq > 0, (x * q).sum(-1) / _safe(sqq), s)
        err = (x - s1[..., None] * q).pow(2).sum(-1)
        better = err < best
        best, scale = torch.where(better, err, best), torch.where(better, s1, scale)
    top = torch.gather(scale, 1, scale.abs().argmax(-1, keepdim=True))[:, 0]
    d = _half(top / -128)
    sc = (scale / _safe(d)[:, None]).round().clamp(-128, 127)
    step = d[:, None] * sc
    q = torch.where(step[..., None] != 0, x / _safe(step)[..., None], 0).round().clamp(-32, 31)
    return d, sc, q


def value_q6k(d, sc, q):
    return ((d[:, None] * sc)[..., None] * q).view(-1, 256)


def round_q8(w):
    x = w.float().view(-1, 32)
    d = _half(x.abs().amax(-1) / 127)
    return d, (x / _safe(d)[:, None]).round().clamp(-127, 127)


def fake(w, kind):
    """w with each value rounded as the format holds it; the same shape."""
    if kind == "Q4_K":
        return value_q4k(*round_q4k(w.reshape(-1, 256))).view_as(w)
    if kind == "Q6_K":
        return value_q6k(*round_q6k(w.reshape(-1, 256))).view_as(w)
    if kind == "Q8_0":
        d, q = round_q8(w)
        return (d[:, None] * q).view_as(w)
    return w.half().float() if kind == "F16" else w


# ------------------------------------------------------------------ packing

def _bytes(x, dtype):
    return x.cpu().numpy().astype(dtype)


def _f16(x):
    return _bytes(x, np.float16).view(np.uint8).reshape(-1, 2)


def pack_q4k(w):
    d, dmin, sc, m, q = round_q4k(w)
    sc, m, q = _bytes(sc, np.uint8), _bytes(m, np.uint8), _bytes(q, np.uint8)
    scales = np.empty((len(sc), 12), np.uint8)            # 6 bits each: low parts in bytes 0-7, the rest spread over 0-11
    scales[:, 0:4] = sc[:, :4] | (sc[:, 4:] >> 4 << 6)
    scales[:, 4:8] = m[:, :4] | (m[:, 4:] >> 4 << 6)
    scales[:, 8:12] = (sc[:, 4:] & 15) | (m[:, 4:] & 15) << 4
    q = q.reshape(-1, 4, 2, 32)
    nibbles = (q[:, :, 0] | q[:, :, 1] << 4).reshape(-1, 128)
    return np.concatenate([_f16(d), _f16(dmin), scales, nibbles], 1)


def pack_q6k(w):
    d, sc, q = round_q6k(w)
    q = (_bytes(q, np.int16) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = q & 15, q >> 4
    ql = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], 2).reshape(-1, 128)
    qh = (high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6).reshape(-1, 64)
    return np.concatenate([ql, qh, _bytes(sc, np.int8).view(np.uint8), _f16(d)], 1)


def pack_q8(w):
    d, q = round_q8(w)
    return np.concatenate([_f16(d), _bytes(q, np.int8).view(np.uint8)], 1)


def pack(w, kind):
    """The bytes of a tensor: uint8 [..., bytes of a row] for block formats, float arrays otherwise."""
    w = w.detach().float().cpu()
    if kind in ("F32", "F16"):
        return w.numpy().astype(np.float32 if kind == "F32" else np.float16)
    block = 32 if kind == "Q8_0" else 256
    rows = {"Q4_K": pack_q4k, "Q6_K": pack_q6k, "Q8_0": pack_q8}[kind](w.reshape(-1, block))
    return np.ascontiguousarray(rows).reshape(*w.shape[:-1], -1)


def check():
    """Packed bytes must mean, to the `gguf` package, what `fake` says; and the error must be small."""
    from gguf import GGMLQuantizationType, quants
    w = torch.randn(64, 512) * torch.rand(64, 1)
    w[3], w[4, :256], w[5] = 0, 0.25, w[5].abs()
    for kind, limit in (("Q4_K", 0.08), ("Q6_K", 0.02), ("Q8_0", 0.008)):
        read = torch.from_numpy(quants.dequantize(pack(w, kind), GGMLQuantizationType[kind]).copy())
        mine = fake(w, kind)
        error = ((mine - w).norm() / w.norm()).item()
        assert torch.equal(read, mine) or (read - mine).abs().max() < 1e-6, kind
        assert error < limit, (kind, error)
        print(f"{kind}: relative error {error:.4f}")


if __name__ == "__main__":
    check()
