"""Train the model on a corpus made by corpus.py, for a fixed time.

    python train.py --corpus DIR --out DIR --minutes 20

Everything follows the clock: the learning rate warms up, stays, and falls to zero at the deadline; rows are 1024
tokens long, later 2048, at the end 8192, always the same number of tokens a step; in the last part of the training
the forward pass sees the weights as the GGUF file will hold them (Q4_K, Q6_K), so that quantizing costs little.
Matrices are trained with Muon, everything else with AdamW. Writes log.jsonl and checkpoint-*.pt (parts of at most
15 MB, which convert.py takes together), and in at-35 and at-83 the checkpoints of those per cents of the time.
"""
import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import convert
import model
import quantize

MIX = (0.60, 0.22, 0.18)                                  # share of rows: code, fill-in-the-middle, chat
KEEP = (0.35, 0.83)                                       # parts of the time whose checkpoints are kept for a mean
LENGTHS = ((0.0, 1024), (0.55, 2048), (0.85, 8192))       # from this part of the time on, rows of this length


class Data:
    """All tokens on the device, and where rows may start."""

    def __init__(self, folder, device):
        self.tokens = torch.from_numpy(np.load(Path(folder) / "tokens.npy").view(np.int16)).to(device)
        index = {k: torch.from_numpy(v).to(device) for k, v in np.load(Path(folder) / "index.npz").items()}
        self.starts, self.length = (index["code"], index["fim"], index["chat"]), index["code_length"]
        self.weight = (self.length.double() * index["code_weight"].double()).cumsum(0)
        self.mix = torch.tensor(MIX, device=device)
        valid = np.load(Path(folder) / "valid.npz")
        self.valid = {k: torch.from_numpy(v.view(np.int16)).to(device) for k, v in valid.items() if len(v) > 2000}
        self.device = device

    def rows(self, n, length):
        """[n, length + 2]: code from a file's start or from inside it, the other kinds from an example's start."""
        rand = lambda: torch.rand(n, device=self.device, dtype=torch.float64)
        f = torch.searchsorted(self.weight, rand() * self.weight[-1]).clamp(max=len(self.weight) - 1)
        inside = (rand() * self.length[f]).long() * (rand() < 0.6)
        start = [self.starts[0][f] + inside]
        start += [s[(rand() * len(s)).long()] for s in self.starts[1:]]
        kind = torch.multinomial(self.mix, n, replacement=True)
        start = torch.stack(start).gather(0, kind[None])[0].clamp(max=len(self.tokens) - length - 3)
        return self.tokens[start[:, None] + torch.arange(length + 2, device=self.device)].long()

    def windows(self, kind, n, length):
        """Up to n consecutive windows of a held-out stream: ([n, length + 2], how many are fresh)."""
        t = self.valid[kind]
        fresh = max(1, min(n, (len(t) - 2) // length))
        start = torch.arange(n, device=self.device) % fresh * length
        return t[start[:, None] + torch.arange(length + 2, device=self.device)].long(), fresh


# ------------------------------------------------------------------ optimizer

def orthogonal(g, steps=5):
    """The nearest (semi-)orthogonal matrices to g [n, r, c], roughly: Newton-Schulz iteration of Muon."""
    x = g.bfloat16() if g.is_cuda else g
    flip = x.shape[1] > x.shape[2]
    x = x.mT if flip else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if flip else x


class Muon:
    """Momentum, then an orthogonalised step; scaled so that AdamW's learning rates fit (factor 0.2 sqrt(size))."""

    def __init__(self, named, momentum=0.95, decay=0.1):
        self.momentum, self.decay, self.groups = momentum, decay, {}
        for name, p in named:
            pieces = self.pieces(name, p)
            for k, view in enumerate(pieces(p.data)):
                self.groups.setdefault(tuple(view.shape), []).append((p, pieces, k, view))
        self.state = {s: torch.zeros(len(g), *s, device=g[0][3].device) for s, g in self.groups.items()}

    @staticmethod
    def pieces(name, p):
        """How to see a parameter as separate matrices."""
        if name.endswith("in_proj_qkv.weight"):
            quarter = p.shape[0] // 4
            return lambda t: t.split([quarter, quarter, 2 * quarter])
        if name.endswith("gate_up_proj"):
            return lambda t: t.view(-1, t.shape[1] // 2, t.shape[2]).unbind(0)
        return lambda t: t.unbind(0) if t.dim() == 3 else (t,)

    @torch.no_grad()
    def step(self, lr):
        for shape, group in self.groups.items():
            grad = torch.stack([pieces(p.grad)[k] for p, pieces, k, _ in group])
            held = self.state[shape]
            held.lerp_(grad, 1 - self.momentum)
            step = orthogonal(grad.lerp_(held, self.momentum)).float()
            views = [view for *_, view in group]
            torch._foreach_mul_(views, 1 - lr * self.decay)
            torch._foreach_add_(views, list(step.unbind(0)), alpha=-lr * 0.2 * max(shape) ** 0.5)


def split_parameters(net, mtp):
    """(matrices for Muon, the rest), both named as in the checkpoint."""
    named = [(n, p) for n, p in net.named_parameters()] + [("mtp." + n, p) for n, p in mtp.named_parameters()]
    small = ("in_proj_a", "in_proj_b", "conv1d", "embed_tokens", "mlp.gate.weight", "shared_expert_gate")
    big = [(n, p) for n, p in named if p.dim() >= 2 and not any(s in n for s in small)]
    names = {n for n, _ in big}
    return big, [(n, p) for n, p in named if n not in names]


class Rounder:
    """Keeps `trainee.rounded` filled with the weights as the file would hold them."""

    def __init__(self, trainee, named, cfg, compiled):
        by_name, self.trainee, self.parts = dict(named), trainee, {}
        self.columns = convert.tiled(cfg, cfg.linear_value_head_dim).to(next(iter(by_name.values())).device)
        done = set()
        for file_name, name, change in convert.mapping(cfg):
            kind = convert.kind_of(file_name)
            if kind in ("Q4_K", "Q6_K") and name not in done:
                self.parts.setdefault(kind, []).append((by_name[name], change == "v-columns"))
                done.add(name)
        self.fake = {k: (lambda w, k=k: quantize.fake(w, k)) for k in self.parts}
        if compiled:
            self.fake = {k: torch.compile(f, dynamic=False) for k, f in self.fake.items()}

    @torch.no_grad()
    def update(self):
        for kind, parts in self.parts.items():
            rows = [(p[:, self.columns] if turned else p).reshape(-1, 256) for p, turned in parts]
            values = self.fake[kind](torch.cat(rows)).split([len(r) for r in rows])
            for (p, turned), v in zip(parts, values):
                v = v.view(p.shape)
                if turned:
                    v = v[:, torch.argsort(self.columns)]
                self.trainee.rounded[id(p)] = v.contiguous()


# ------------------------------------------------------------------- training

def rate(done):
    """Learning rate factor at this part of the time: short warm-up, constant, then linear to zero."""
    return min(1.0, done / 0.01 + 0.02, (1 - done) / 0.6)


def evaluate(trainee, data, tokens, length=1024):
    """Mean loss of the next token and of the one after, for each held-out stream."""
    out = {}
    for kind in data.valid:
        if len(data.valid[kind]) < length + 2:
            continue
        rows, fresh = data.windows(kind, tokens // length, length)
        n = fresh * (rows.shape[1] - 2)
        first, second, *_ = trainee.losses(rows)
        out[kind] = [round(first[:n].mean().item(), 4), round(second[:n].mean().item(), 4)]
    return out


def save(folder, named, size, limit=15_000_000):
    """Parameters as float16 (small ones float32) in parts."""
    folder.mkdir(exist_ok=True)
    part, used, k = {"size": size}, 0, 0
    for name, p in named:
        t = p.detach().cpu()
        t = t.half() if t.dim() > 1 and t.numel() > 65536 else t
        if used + t.numel() * t.element_size() > limit:
            torch.save(part, folder / f"checkpoint-{k}.pt")
            part, used, k = {}, 0, k + 1
        part[name] = t
        used += t.numel() * t.element_size()
    torch.save(part, folder / f"checkpoint-{k}.pt")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--corpus", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--minutes", type=float, default=20)
    ap.add_argument("--size", default="default", choices=model.SIZES)
    ap.add_argument("--tokens", type=int, default=65536, help="tokens a step")
    ap.add_argument("--longest", type=int, default=8192, help="limit of the rows' length")
    ap.add_argument("--lr", type=float, default=2.5e-3, help="peak learning rate of the matrices")
    ap.add_argument("--lr-rest", type=float, default=2e-3, help="peak learning rate of embedding, norms and the like")
    ap.add_argument("--round-from", type=float, default=0.75, help="part of the time after which weights are rounded")
    ap.add_argument("--mtp", type=float, default=0.2, help="weight of the multi-token-prediction loss")
    ap.add_argument("--resume", nargs="*", help="parts of a checkpoint to start from")
    ap.add_argument("--compile", action="store_true")
    ap.add_argument("--fla", action="store_true", help="use flash-linear-attention's kernels")
    ap.add_argument("--save-every", type=float, default=150, help="seconds")
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = ap.parse_args()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    log = open(out / "log.jsonl", "a")

    def say(**entry):
        print(json.dumps(entry), file=log, flush=True)
        print(" ".join(f"{k}={v}" for k, v in entry.items()), flush=True)

    cfg = model.config(args.size)
    net, mtp = model.reference(cfg).to(args.device), model.Mtp(cfg).to(args.device)
    big, rest = split_parameters(net, mtp)
    named = big + rest
    if args.resume:
        state = {}
        for part in args.resume:
            state.update(torch.load(part, map_location=args.device))
        for name, p in named:
            p.data.copy_(state[name])
    say(parameters=sum(p.numel() for _, p in named), device=args.device)
    half = torch.bfloat16 if args.device == "cuda" else torch.float32
    trainee = model.Trainee(net, mtp, half, args.compile, args.fla)
    muon = Muon(big)
    adam = torch.optim.AdamW([p for _, p in rest], lr=args.lr_rest, betas=(0.9, 0.95), weight_decay=0.0,
                             fused=args.device == "cuda")
    rounder = Rounder(trainee, named, cfg, args.compile)
    data = Data(args.corpus, args.device)
    say(tokens=len(data.tokens), examples=[len(s) for s in data.starts])

    def step(factor, length):
        first, second, balance, z = trainee.losses(data.rows(args.tokens // length, length))
        loss = first.mean() + args.mtp * second.mean() + 0.01 * balance + 1e-5 * z
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in rest], 1.0)
        muon.step(args.lr * factor)
        adam.param_groups[0]["lr"] = args.lr_rest * factor
        adam.step()
        for _, p in named:
            p.grad = None
        return torch.stack([first.detach().mean(), second.detach().mean(), balance.detach()])

    started = time.time()
    step(0.0, min(1024, args.longest))                    # compiles everything before the clock starts
    rounder.update()
    trainee.rounded.clear()
    say(compiled=round(time.time() - started, 1))
    begin, total = time.time(), args.minutes * 60
    count, since, tick, sums, saved, tested, keep = 0, 0, begin, 0.0, begin, begin, list(KEEP)
    while (done := (time.time() - begin) / total) < 1:
        length = min(args.longest, [n for part, n in LENGTHS if done >= part][-1])
        if done >= args.round_from:
            rounder.update()
        sums = sums + step(rate(done), length)
        count, since, now = count + 1, since + 1, time.time()
        if now - tick > min(20, total / 20):
            first, second, balance = (sums / since).tolist()
            now = time.time()
            say(s=round(now - begin), step=count, length=length, lr=round(rate(done), 3), loss=round(first, 4),
                second=round(second, 4), balance=round(balance, 4), rate=round(since * args.tokens / (now - tick)))
            since, sums, tick = 0, 0.0, now
        if now - tested > total / 6:
            say(valid=evaluate(trainee, data, args.tokens, min(1024, args.longest)))
            tested = tick = time.time()
            since, sums = 0, 0.0
        if keep and done >= keep[0]:
            save(out / f"at-{round(100 * keep.pop(0))}", named, args.size)
        if now - saved > args.save_every:
            save(out, named, args.size)
            saved = time.time()
    save(out, named, args.size)
    say(steps=count, seen=count * args.tokens, seconds=round(time.time() - begin, 1))
    for rounded in (True, False):
        (rounder.update if rounded else trainee.rounded.clear)()
        say(rounded=rounded, valid=evaluate(trainee, data, args.tokens, min(1024, args.longest)))
    for length in (4096, 8192, 32768):
        if length <= args.longest * 4:
            say(length=length, valid=evaluate(trainee, data, args.tokens, length))
    (out / "finished").touch()


if __name__ == "__main__":
    main()
