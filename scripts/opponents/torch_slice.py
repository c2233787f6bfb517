#!/usr/bin/env python3
"""The opponent of `tessera-bench step`: the same slices in PyTorch.

Forward, backward and a fused AdamW step of a slice of Llama layers, in bf16 autocast over fp32
parameters, eager and through torch.compile. Needs one CUDA GPU. Writes a JSON list of
{slice, mode, tokens_per_s, mfu, step_ms, peak_memory_bytes}; the best of three timed blocks counts.
"""
import argparse
import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional

# name: layers, width, heads, key-value heads, ffn width, sequences, tokens of each
SLICES = {
    "llama1b-L4-d2048": (4, 2048, 32, 8, 8192, 16, 1024),
    "1.5b-L8-d2048": (8, 2048, 16, 16, 5632, 16, 1024),
    "8b-L2-d4096": (2, 4096, 32, 8, 14336, 8, 2048),
    "small-L6-d768": (6, 768, 12, 12, 2048, 32, 1024),
}
MODES = ("eager", "default", "max-autotune-no-cudagraphs")
PEAK_FLOPS = 989e12  # dense bf16, H100 and H200 datasheets


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return functional.rms_norm(x, (x.size(-1),), self.weight.to(x.dtype))


def rotate(x, cosine, sine):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


class Layer(nn.Module):
    def __init__(self, width, heads, kv_heads, ffn_width):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        kv_width = kv_heads * self.head_dim
        self.input_norm, self.post_norm = Norm(width), Norm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, kv_width, bias=False)
        self.value = nn.Linear(width, kv_width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, ffn_width, bias=False)
        self.up = nn.Linear(width, ffn_width, bias=False)
        self.down = nn.Linear(ffn_width, width, bias=False)

    def forward(self, x, cosine, sine):
        batch, tokens, width = x.shape

        def split(y, heads):
            return y.view(batch, tokens, heads, self.head_dim).transpose(1, 2)

        normed = self.input_norm(x)
        query = rotate(split(self.query(normed), self.heads), cosine, sine)
        key = rotate(split(self.key(normed), self.kv_heads), cosine, sine)
        value = split(self.value(normed), self.kv_heads)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        normed = self.post_norm(x)
        return x + self.down(functional.silu(self.gate(normed)) * self.up(normed))


class Slice(nn.Module):
    def __init__(self, layers, *sizes):
        super().__init__()
        self.layers = nn.ModuleList(Layer(*sizes) for _ in range(layers))

    def forward(self, x, cosine, sine):
        for layer in self.layers:
            x = layer(x, cosine, sine)
        return x


def measure(name, mode, blocks=3, steps=10, warmup=5):
    layers, width, heads, kv_heads, ffn_width, batch, tokens = SLICES[name]
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    model = Slice(layers, width, heads, kv_heads, ffn_width).cuda()
    half = width // heads // 2
    angles = torch.outer(torch.arange(tokens, dtype=torch.float64),
                         10000.0 ** (-torch.arange(half, dtype=torch.float64) / half))
    cosine, sine = (t.to(device="cuda", dtype=torch.bfloat16) for t in (angles.cos(), angles.sin()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    run = model if mode == "eager" else torch.compile(model, mode=mode)
    x = torch.randn(batch, tokens, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    outer = torch.randn_like(x) * 1e-3

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            y = run(x, cosine, sine)
        y.backward(outer.to(y.dtype))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        x.grad = None

    for _ in range(warmup):
        step()
    torch.cuda.reset_peak_memory_stats()  # not what compiling took
    best = float("inf")
    for _ in range(blocks):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - begin) / steps)
    parameters = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    operations = 6 * batch * tokens * (parameters + layers * tokens * width)
    return {"slice": name, "mode": mode, "tokens_per_s": batch * tokens / best,
            "mfu": operations / best / PEAK_FLOPS, "step_ms": best * 1e3,
            "peak_memory_bytes": torch.cuda.max_memory_allocated()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the results there")
    parser.add_argument("--slice", action="append", choices=SLICES, help="only these")
    parser.add_argument("--mode", action="append", choices=MODES, help="only these")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch_slice.py: no CUDA GPU here; run it on a machine that has one")
    torch.set_float32_matmul_precision("high")
    results = []
    for mode in arguments.mode or MODES:
        for name in arguments.slice or reversed(SLICES):
            result = measure(name, mode)
            print(f"{mode:28} {name:18} {result['tokens_per_s']:10.0f} tokens/s  "
                  f"MFU {result['mfu'] * 100:.1f} %  {result['step_ms']:.2f} ms  "
                  f"{result['peak_memory_bytes'] / 2**30:.2f} GiB", flush=True)
            results.append(result)
            if arguments.json:  # after every result: max-autotune takes minutes a slice
                with open(arguments.json, "w") as file:
                    json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
