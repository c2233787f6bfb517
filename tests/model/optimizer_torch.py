#!/usr/bin/env python3
"""The optimizers go where torch.optim's go: AdamW, NAdam (decoupled_weight_decay) and Muon with AdamW beside it, over
50 steps with clipping, on matrices and vectors of odd sizes.

Compared is the change of every tensor against torch's: its L2 difference relative to torch's change. The bounds are
those of docs/numerics.md. torch keeps NAdam's product of momenta in fp32, Tessera in double. torch's Muon iterates in bf16 on every device; on the CPU it is also run with its
conversion to bf16 taken out, as Tessera computes in fp32 there.
Exit status 0: within the bounds, 1: not, 77: no torch, or no GPU for --device cuda (ctest counts that as skipped).
"""

import argparse
import os
import subprocess
import sys
import tempfile

try:
    import torch
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

STEPS = 50
MICROBATCHES = 3
# The defaults of a run (docs/configuration.md).
LEARNING_RATE, BETAS, EPSILON, DECAY, CLIP = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0
MOMENTUM_DECAY = 0.004
MUON_RATE, MUON_MOMENTUM, MUON_DECAY = 0.02, 0.95, 0.005

LAYER = "model.layers.3."
TENSORS = {
    "model.embed_tokens.weight": (61, 32),
    "boundary.0.decoder": (33, 7),
    "boundary.0.gain": (33,),
    LAYER + "input_layernorm.weight": (5,),
    LAYER + "self_attn.q_proj.weight": (32, 32),
    LAYER + "self_attn.k_proj.weight": (16, 32),
    LAYER + "self_attn.v_proj.weight": (16, 32),
    LAYER + "self_attn.o_proj.weight": (32, 32),
    LAYER + "post_attention_layernorm.weight": (3,),
    LAYER + "mlp.gate_proj.weight": (47, 32),
    LAYER + "mlp.up_proj.weight": (47, 32),
    LAYER + "mlp.down_proj.weight": (32, 47),
}


def optimizers_of(kind, parameters):
    """torch's optimizers for the named parameters: two groups, decaying matrices and vectors."""
    muon = [p for n, p in parameters.items() if kind == "muon" and n.startswith(LAYER) and p.dim() == 2]
    rest = [p for p in parameters.values() if not any(p is m for m in muon)]
    groups = [{"params": [p for p in rest if p.dim() == 2], "weight_decay": DECAY},
              {"params": [p for p in rest if p.dim() == 1], "weight_decay": 0.0}]
    if kind == "nadam":
        return [torch.optim.NAdam(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, momentum_decay=MOMENTUM_DECAY,
                                  decoupled_weight_decay=True)]
    made = [torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON)]
    if muon:
        made.append(torch.optim.Muon(muon, lr=MUON_RATE, momentum=MUON_MOMENTUM, weight_decay=MUON_DECAY))
    return made


def torch_run(kind, start, gradients, device):
    parameters = {n: p.clone().to(device).requires_grad_(True) for n, p in start.items()}
    optimizers = optimizers_of(kind, parameters)
    peaks = [[group["lr"] for group in o.param_groups] for o in optimizers]
    norms = []
    for step, gradient in enumerate(gradients):
        for name, parameter in parameters.items():
            parameter.grad = gradient[name].to(device) / MICROBATCHES
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(parameters.values()), CLIP)))
        for optimizer, rates in zip(optimizers, peaks):
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * (step % 5 + 1) / 5
            optimizer.step()
    return {n: p.detach().cpu() for n, p in parameters.items()}, norms


def torch_run_in_fp32(*arguments):
    convert = torch.Tensor.bfloat16
    torch.Tensor.bfloat16 = torch.Tensor.clone
    try:
        return torch_run(*arguments)
    finally:
        torch.Tensor.bfloat16 = convert


def flat(tensors):
    return torch.cat([tensors[name].reshape(-1) for name in TENSORS])


def own_run(program, kind, start, gradients, device):
    with tempfile.TemporaryDirectory() as folder:
        given, result = os.path.join(folder, "input"), os.path.join(folder, "output")
        with open(given, "wb") as file:
            for tensors in [start, *gradients]:
                file.write(bytes(flat(tensors).view(torch.uint8).tolist()))
        shapes = [f"{name}={'x'.join(map(str, shape))}" for name, shape in TENSORS.items()]
        subprocess.run([program, kind, device, str(STEPS), given, result, *shapes], check=True, timeout=240)
        with open(result, "rb") as file:
            values = torch.frombuffer(bytearray(file.read()), dtype=torch.float32)
    count = flat(start).numel()
    masters, weights, norms = values.split([count, count, STEPS])
    rounded = masters if device == "cpu" else masters.bfloat16().float()
    check(torch.equal(weights, rounded), f"{kind}: the compute weights are those of the last masters")
    parts = masters.split([start[name].numel() for name in TENSORS])
    return {name: part.view(TENSORS[name]) for name, part in zip(TENSORS, parts)}, norms.tolist()


ADAMW_BOUND, NADAM_BOUND, MUON_BF16_BOUND, MUON_FP32_BOUND = 5e-6, 5e-5, 2e-2, 1e-5

FAILURES = []


def check(condition, what):
    print(f"{'ok' if condition else 'FAILED'}: {what}")
    if not condition:
        FAILURES.append(what)


def compare(label, start, own, norms, torch_result, bound, muon_bound):
    expected, expected_norms = torch_result
    worst = max(abs(a - b) / b for a, b in zip(norms, expected_norms))
    check(worst < 1e-5, f"{label}: gradient norms differ by {worst:.1e} of themselves, at most 1e-5")
    for name in TENSORS:
        change = expected[name] - start[name]
        difference = float((own[name] - expected[name]).norm() / change.norm())
        limit = muon_bound if muon_bound and name.startswith(LAYER) and len(TENSORS[name]) == 2 else bound
        check(difference < limit, f"{label}: {name} differs by {difference:.1e} of its change, at most {limit:.0e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("skipped: torch finds no GPU")
        sys.exit(77)
    torch.set_num_threads(1)
    torch.manual_seed(3)
    start = {name: 0.1 * torch.randn(shape) for name, shape in TENSORS.items()}
    # Below and above the clip norm.
    gradients = [{name: 10.0 ** (step % 4 - 3) * torch.randn(shape) for name, shape in TENSORS.items()}
                 for step in range(STEPS)]
    device = arguments.device
    for kind, bound, muon_bound in (("adamw", ADAMW_BOUND, 0.0), ("nadam", NADAM_BOUND, 0.0),
                                    ("muon", ADAMW_BOUND, MUON_BF16_BOUND)):
        own, norms = own_run(arguments.program, kind, start, gradients, device)
        compare(f"{kind} on {device}", start, own, norms, torch_run(kind, start, gradients, device), bound,
                muon_bound)
        if kind == "muon" and device == "cpu":
            compare("muon in fp32", start, own, norms, torch_run_in_fp32(kind, start, gradients, device),
                    bound, MUON_FP32_BOUND)
    if FAILURES:
        sys.exit(f"{len(FAILURES)} of the comparisons failed")


if __name__ == "__main__":
    main()
