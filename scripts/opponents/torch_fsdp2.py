#!/usr/bin/env python3
"""The opponent of `tessera-bench zero`: the same slice under PyTorch's FSDP2 (fully_shard), on several GPUs.

One process a GPU (started here), bf16 compute over fp32 parameters, gradients reduced in fp32, fused AdamW. Modes: `full`
reshards after the forward pass (ZeRO-3), `grad` keeps the gathered parameters until the backward pass is over (about
ZeRO-2). Writes a JSON list of {slice, mode, gpus, compiled, tokens_per_s, step_ms, peak_memory_bytes}; the best of three timed
blocks counts.
"""
import argparse
import json
import os
import socket
import sys
import time

import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import torch_slice

MODES = ("grad", "full")


def build(name, mode, compiled):
    layers, width, heads, kv_heads, ffn_width, batch, tokens = torch_slice.SLICES[name]
    model = torch_slice.Slice(layers, width, heads, kv_heads, ffn_width).cuda()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.layers:
        if compiled:
            layer.compile()
        fully_shard(layer, mp_policy=policy, reshard_after_forward=mode == "full")
    fully_shard(model, mp_policy=policy, reshard_after_forward=mode == "full")
    half = width // heads // 2
    angles = torch.outer(torch.arange(tokens, dtype=torch.float64),
                         10000.0 ** (-torch.arange(half, dtype=torch.float64) / half))
    rotation = tuple(t.to(device="cuda", dtype=torch.bfloat16) for t in (angles.cos(), angles.sin()))
    return model, rotation, (batch, tokens, width)


def measure(name, mode, compiled, blocks, steps, warmup):
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    model, (cosine, sine), shape = build(name, mode, compiled)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x = torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    outer = torch.randn_like(x) * 1e-3

    def step():
        model(x, cosine, sine).backward(outer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        x.grad = None

    for _ in range(warmup):
        step()
    torch.cuda.reset_peak_memory_stats()
    best = float("inf")
    for _ in range(blocks):
        torch.cuda.synchronize()
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - begin) / steps)
    slowest = torch.tensor([best], device="cuda", dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    seconds = slowest.item()
    return {"slice": name, "mode": mode, "compiled": compiled, "gpus": dist.get_world_size(),
            "tokens_per_s": dist.get_world_size() * shape[0] * shape[1] / seconds, "step_ms": seconds * 1e3,
            "peak_memory_bytes": torch.cuda.max_memory_allocated()}


def worker(rank, arguments, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=arguments.gpus, device_id=torch.device("cuda", rank))
    torch.set_float32_matmul_precision("high")
    results = []
    for compiled in (False, True) if not arguments.eager_only else (False,):
        for mode in arguments.mode or MODES:
            result = measure(arguments.slice, mode, compiled, arguments.blocks, arguments.steps, arguments.warmup)
            results.append(result)
            if rank == 0:
                print(f"FSDP2 {mode:5} {'compiled' if compiled else 'eager':8} {result['tokens_per_s']:12.0f} tokens/s "
                      f"{result['step_ms']:9.2f} ms {result['peak_memory_bytes'] / 1e9:8.2f} GB", flush=True)
                if arguments.json:
                    with open(arguments.json, "w") as file:
                        json.dump(results, file, indent=2)
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the results there")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--slice", default="8b-L2-d4096", choices=torch_slice.SLICES)
    parser.add_argument("--mode", action="append", choices=MODES, help="only these")
    parser.add_argument("--eager-only", action="store_true", help="without torch.compile")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=5)
    arguments = parser.parse_args()
    if torch.cuda.device_count() < arguments.gpus:
        sys.exit(f"torch_fsdp2.py: {arguments.gpus} GPUs are wanted and {torch.cuda.device_count()} are here")
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(worker, args=(arguments, port), nprocs=arguments.gpus)


if __name__ == "__main__":
    main()
