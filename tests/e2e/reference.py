"""The whole model in plain PyTorch, written without looking at Tessera's: what the swarm must equal.

`Model` is a Llama with Tessera's embedding normalisation. `train_in_order` is ordinary training with gradient
accumulation. `Replay` re-enacts a ledger's schedule, replica by replica, with merges.
"""

import hashlib
import json
import math
import sys
from collections import defaultdict
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

MASK = (1 << 64) - 1
sys.setrecursionlimit(10_000)  # a replay calls itself for each version; the stack holds that many


def mix64(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def permute(index, size, seed):
    bits = (size - 1).bit_length() if size > 1 else 1
    half = (bits + 1) // 2
    keys = [mix64((seed + 0x9E3779B97F4A7C15 * i) & MASK) for i in range(4)]
    while True:
        left, right = index >> half, index & ((1 << half) - 1)
        for key in keys:
            left, right = right, left ^ (mix64(right ^ key) & ((1 << half) - 1))
        index = (left << half) | right
        if index < size:
            return index


class Data:
    """The training split of a dataset folder."""

    def __init__(self, folder, context, seed, batch):
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["token_bytes"] == 2
        self.shards = [np.fromfile(folder / s["file"], dtype=np.uint16, offset=32) for s in manifest["train"]]
        self.context, self.seed, self.batch = context, seed, batch
        self.windows = [(s, w * context) for s, ids in enumerate(self.shards) for w in range((len(ids) - 1) // context)]

    def microbatch(self, number):
        rows = []
        for row in range(self.batch):
            sequence = number * self.batch + row
            turn, place = divmod(sequence, len(self.windows))
            shard, first = self.windows[permute(place, len(self.windows), mix64(self.seed ^ mix64(turn)))]
            rows.append(self.shards[shard][first:first + self.context + 1].astype(np.int64))
        return torch.from_numpy(np.stack(rows))


def stage_layers(config):
    stages, layers = config["pipeline"]["stages"], config["model"]["layers"]
    sizes = [layers // stages + (s < layers % stages) for s in range(stages)]
    starts = np.cumsum([0] + sizes)
    return [range(starts[s], starts[s + 1]) for s in range(stages)]


def layout(config, stage):
    """(name, shape) of a stage's parameters, in the order of its flat vector; boundary kind none."""
    m = config["model"]
    d, f, kv = m["width"], m["ffn_width"], m["kv_heads"] * (m["width"] // m["heads"])
    last = config["pipeline"]["stages"] - 1
    entries = [("model.embed_tokens.weight", (m["vocab"], d))] if stage == 0 else []
    for n in stage_layers(config)[stage]:
        p = f"model.layers.{n}."
        entries += [(p + "input_layernorm.weight", (d,)), (p + "self_attn.q_proj.weight", (d, d)),
                    (p + "self_attn.k_proj.weight", (kv, d)), (p + "self_attn.v_proj.weight", (kv, d)),
                    (p + "self_attn.o_proj.weight", (d, d)), (p + "post_attention_layernorm.weight", (d,)),
                    (p + "mlp.gate_proj.weight", (f, d)), (p + "mlp.up_proj.weight", (f, d)),
                    (p + "mlp.down_proj.weight", (d, f))]
    if stage == last:
        entries += [("model.norm.weight", (d,)), ("lm_head.weight", (m["vocab"], d))]
    return entries


def unflatten(config, stage, values):
    result, at = {}, 0
    for name, shape in layout(config, stage):
        count = math.prod(shape)
        result[name] = values[at:at + count].view(shape)
        at += count
    assert at == values.numel()
    return result


def rms(x, weight=None, eps=1e-5):
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def loss_of(config, p, tokens):
    """Mean cross-entropy of a batch [B, T + 1] under the whole model's parameters."""
    m = config["model"]
    heads, kv, hd = m["heads"], m["kv_heads"], m["width"] // m["heads"]
    x = rms(p["model.embed_tokens.weight"][tokens[:, :-1]])
    b, t, _ = x.shape
    angles = torch.arange(t)[:, None] * (10000.0 ** (-torch.arange(0, hd, 2).float() / hd))
    cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
    for n in range(m["layers"]):
        w = lambda name: p[f"model.layers.{n}.{name}.weight"]
        h = rms(x, w("input_layernorm"))
        q = rotate((h @ w("self_attn.q_proj").T).view(b, t, heads, hd).transpose(1, 2), cos, sin)
        k = rotate((h @ w("self_attn.k_proj").T).view(b, t, kv, hd).transpose(1, 2), cos, sin)
        v = (h @ w("self_attn.v_proj").T).view(b, t, kv, hd).transpose(1, 2)
        k, v = (y.repeat_interleave(heads // kv, 1) for y in (k, v))
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(hd)
        scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), -math.inf)
        x = x + (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, heads * hd) @ w("self_attn.o_proj").T
        h = rms(x, w("post_attention_layernorm"))
        x = x + (F.silu(h @ w("mlp.gate_proj").T) * (h @ w("mlp.up_proj").T)) @ w("mlp.down_proj").T
    logits = rms(x, p["model.norm.weight"]) @ p["lm_head.weight"].T
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def learning_rate(config, step):
    t = config["training"]
    warmup, steps, low = t["warmup_steps"], t["steps"], t.get("min_learning_rate_ratio", 0.1)
    if step < warmup:
        return t["learning_rate"] * (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return t["learning_rate"] * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * share)))


class Optimizer:
    """AdamW of one stage over a flat vector: torch.optim's, with the norm clipped over the stage."""

    def __init__(self, config, stage):
        self.config, self.stage = config, stage
        self.parameters, self.optimizer = None, None

    def step(self, masters, gradient, rate):
        values = unflatten(self.config, self.stage, masters)
        if self.parameters is None:
            self.parameters = {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}
            matrices = [p for p in self.parameters.values() if p.dim() > 1]
            vectors = [p for p in self.parameters.values() if p.dim() == 1]
            self.optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1},
                                                {"params": vectors, "weight_decay": 0.0}],
                                               lr=1.0, betas=(0.9, 0.95), eps=1e-8)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(values[name])
        for name, value in unflatten(self.config, self.stage, gradient).items():
            self.parameters[name].grad = value.clone()
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return torch.cat([p.detach().flatten() for p in self.parameters.values()])

    def moments(self):
        """First and second moments, flat, and the steps behind them; nothing before the first step."""
        if self.parameters is None:
            return None
        states = [self.optimizer.state[p] for p in self.parameters.values()]
        return (torch.cat([s["exp_avg"].flatten() for s in states]), torch.cat([s["exp_avg_sq"].flatten() for s in states]),
                int(states[0]["step"]))

    def take_moments(self, first, second, age):
        """Those of a merge, which every replica with a step behind it takes in place of its own."""
        firsts, seconds = (unflatten(self.config, self.stage, values) for values in (first, second))
        for name, parameter in self.parameters.items():
            state = self.optimizer.state[parameter]
            state["exp_avg"].copy_(firsts[name])
            state["exp_avg_sq"].copy_(seconds[name])
            state["step"].fill_(max(int(state["step"]), age))


def gradients(config, weights, tokens):
    """Loss and each stage's flat gradient for one microbatch under each stage's flat weights."""
    leaves = [w.clone().requires_grad_() for w in weights]
    parameters = {}
    for stage, leaf in enumerate(leaves):
        parameters.update(unflatten(config, stage, leaf))
    loss = loss_of(config, parameters, tokens)
    return loss.item(), torch.autograd.grad(loss, leaves)


def train_in_order(config, data, weights, steps):
    """Ordinary training: every step sums its microbatches in order. Returns losses and the stages' weights."""
    optimizers = [Optimizer(config, s) for s in range(len(weights))]
    losses, per_step = [], config["training"]["microbatches_per_step"]
    for step in range(steps):
        total = [torch.zeros_like(w) for w in weights]
        for number in range(step * per_step, (step + 1) * per_step):
            loss, grads = gradients(config, weights, data.microbatch(number))
            losses.append(loss)
            total = [t + g for t, g in zip(total, grads)]
        rate = learning_rate(config, step)
        weights = [o.step(w, t / per_step, rate) for o, w, t in zip(optimizers, weights, total)]
    return losses, weights


def read_object(out, digest):
    """An object of the blob store, every chunk checked against its name."""
    def blob(name):
        content = (out / "blobs" / name[:2] / name[2:]).read_bytes()
        assert hashlib.blake2b(content, digest_size=32).hexdigest() == name
        return content
    manifest = blob(digest)
    assert manifest[:4] == b"TSO1"
    count = int.from_bytes(manifest[16:20], "little")
    names = [manifest[20 + 32 * i:52 + 32 * i].hex() for i in range(count)]
    return b"".join(blob(name) for name in names)


def initial_weights(out, events, stages):
    """Every stage's values at epoch 0, as its first replica published them."""
    stage_of = {}
    weights = [None] * stages
    for _, kind, event in events:
        if kind == "receipts":
            for receipt in event["receipts"]:
                stage_of[receipt["miner"]] = receipt["stage"]
    for _, kind, event in events:
        if kind == "state_published" and event["epoch"] == 0:
            values = np.frombuffer(read_object(out, event["state"]), dtype=np.float32)
            weights[stage_of[event["miner"]]] = torch.from_numpy(values[:len(values) // 2].copy())
    return weights


class Replay:
    """Recomputes every replica's weights from the ledger's order of events alone."""

    def __init__(self, config, data, initial, events):
        self.config, self.data = config, data
        self.per_step = config["training"]["microbatches_per_step"]
        self.stage_of, self.first_version = {}, {}
        self.base = {(s, 0): w for s, w in enumerate(initial)}
        self.momentum = {(s, 0): torch.zeros_like(w) for s, w in enumerate(initial)}
        self.receipts = {}                       # (microbatch, attempt, stage) -> receipt
        self.known_at = {}                       # the same -> its event's place in the ledger
        self.frozen_at = {}                      # (stage, epoch) -> that of the last commitment to an upload
        self.sums = defaultdict(list)            # (miner, local step) -> receipts in order
        self.applied = {}                        # (miner, version) -> epoch
        self.snapshots = defaultdict(dict)       # (stage, epoch) -> miner -> commit
        self.optimizers = {}
        self.moments = {}                        # (miner, version) -> Optimizer.moments()
        for place, kind, event in events:
            if kind == "receipts":
                for r in event["receipts"]:
                    self.stage_of[r["miner"]] = r["stage"]
                    self.receipts[r["microbatch"], r["attempt"], r["stage"]] = r
                    self.known_at[r["microbatch"], r["attempt"], r["stage"]] = place
                    if r["accumulated"]:
                        self.sums[r["miner"], r["local_step"]].append(r)
        for place, kind, event in events:
            if kind == "state_held":
                applied, miner = event["applied"], event["miner"]
                if applied["epoch"] == 0:
                    self.first_version[miner] = applied["version_after"]
                else:
                    self.applied[miner, applied["version_after"]] = applied["epoch"]
            elif kind == "upload_committed":
                commit = event["commit"]
                merge = self.stage_of[event["miner"]], commit["target"]
                if event["miner"] not in self.snapshots[merge]:
                    self.snapshots[merge][event["miner"]] = commit
                    self.frozen_at[merge] = place
        for miner, stage in self.stage_of.items():
            self.optimizers[miner] = Optimizer(config, stage)

    def last_version(self, miner):
        steps = sum(len(rs) >= self.per_step for (m, _), rs in self.sums.items() if m == miner)
        return self.first_version[miner] + steps + sum(m == miner for m, _ in self.applied)

    @lru_cache(maxsize=None)
    def state(self, miner, version):
        """(masters, local steps done) of a replica at a weight version."""
        stage = self.stage_of[miner]
        if version == self.first_version[miner]:
            return self.base[stage, 0], 0
        masters, steps = self.state(miner, version - 1)
        if (miner, version) in self.applied:
            epoch = self.applied[miner, version]
            new, old = self.base_at(stage, epoch), self.base_at(stage, epoch - 1)
            commit = self.participants(stage, epoch).get(miner)
            reference = self.state(miner, commit["snapshot_version"])[0] if commit else old
            if self.config["merge"].get("optimizer_moments") == "average":
                age = epoch * max(1, self.config["merge"]["min_microbatches"] // self.per_step)
                self.optimizers[miner].take_moments(*self.moments_at(stage, epoch), age)
            self.moments[miner, version] = self.optimizers[miner].moments()
            return new + (masters - reference), steps
        receipts = sorted(self.sums[miner, steps], key=lambda r: r["order"])
        assert [r["order"] for r in receipts] == list(range(self.per_step)), (miner, version, steps)
        total = torch.zeros_like(masters)
        for r in receipts:
            total = total + self.gradient(r["microbatch"], r["attempt"])[1][stage]
        rate = learning_rate(self.config, steps)
        stepped = self.optimizers[miner].step(masters, total / self.per_step, rate)
        self.moments[miner, version] = self.optimizers[miner].moments()
        return stepped, steps + 1

    @lru_cache(maxsize=None)
    def gradient(self, microbatch, attempt):
        weights = []
        for stage in range(self.config["pipeline"]["stages"]):
            r = self.receipts[microbatch, attempt, stage]
            weights.append(self.state(r["miner"], r["weight_version"])[0])
        return gradients(self.config, weights, self.data.microbatch(microbatch))

    def confirmed_at(self, receipt):
        """The place in the ledger by which it and both neighbours' receipts of the same attempt are there."""
        stages = range(max(0, receipt["stage"] - 1), min(self.config["pipeline"]["stages"], receipt["stage"] + 2))
        never = float("inf")
        return max(self.known_at.get((receipt["microbatch"], receipt["attempt"], stage), never) for stage in stages)

    def counts(self, stage, epoch):
        """B_m of each upload: gradients since the miner's last merge and before the snapshot that the receipts of both neighbours
        confirm before all have committed; what is confirmed later has no weight."""
        result = {}
        for miner, commit in self.snapshots[stage, epoch].items():
            since = max([self.participants(stage, e)[miner]["snapshot_step"] for e in range(1, epoch)
                         if miner in self.participants(stage, e)], default=0)
            result[miner] = sum(self.confirmed_at(r) < self.frozen_at[stage, epoch] for (m, step), rs in self.sums.items()
                                if m == miner and since <= step < commit["snapshot_step"] for r in rs)
        return {m: n for m, n in sorted(result.items()) if n > 0}

    @lru_cache(maxsize=None)
    def participants(self, stage, epoch):
        return {m: self.snapshots[stage, epoch][m] for m in self.counts(stage, epoch)}

    @lru_cache(maxsize=None)
    def moments_at(self, stage, epoch):
        """The mean of the participants' first moments, and of the roots of their second ones, squared; no second moment is less
        than the first one's square."""
        counts = self.counts(stage, epoch)
        first = root = 0
        for miner, count in counts.items():
            version = self.snapshots[stage, epoch][miner]["snapshot_version"]
            self.state(miner, version)
            m, v, _ = self.moments[miner, version]
            first = first + (count / sum(counts.values())) * m
            root = root + (count / sum(counts.values())) * v.sqrt()
        return first, torch.maximum(root * root, first * first)

    @lru_cache(maxsize=None)
    def base_at(self, stage, epoch):
        if epoch == 0:
            return self.base[stage, 0]
        old = self.base_at(stage, epoch - 1)
        counts = self.counts(stage, epoch)
        mean = torch.zeros_like(old)
        for miner, count in counts.items():
            snapshot = self.state(miner, self.snapshots[stage, epoch][miner]["snapshot_version"])[0]
            mean = mean + (count / sum(counts.values())) * (old - snapshot)
        merge = self.config["merge"]
        rate, mu = merge.get("outer_learning_rate", 0.7), merge.get("outer_momentum", 0.9)
        momentum = mu * self.momentum[stage, epoch - 1] + mean
        self.momentum[stage, epoch] = momentum
        return old - rate * (mean + mu * momentum)
