#!/usr/bin/env python3
"""An exported model computes in transformers what it computes in tessera-model.

Tolerances, absolute, fp32 on the CPU: 2e-4 for logits of a size of about 10, 1e-4 nats for a loss; tokens picked
greedily must be equal. Exit status 0: equal, 1: not, 77: transformers is not installed (ctest counts that as skipped).
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
try:
    import torch
    import transformers
except ImportError as error:
    print(f"skipped: {error}; install transformers into the virtual environment to run this test")
    sys.exit(77)

LOGIT_TOLERANCE = 2e-4
LOSS_TOLERANCE = 1e-4
CONTEXT = 32
VOCAB = 256
END_OF_DOCUMENT = 0


class Program:
    """tessera-model on one checkpoint."""

    def __init__(self, path, checkpoint):
        self.path = path
        self.checkpoint = checkpoint

    def run(self, command, *arguments, expected=0):
        line = [self.path, command, "--checkpoint", self.checkpoint, "--device", "cpu", *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, timeout=120)
        if done.returncode != expected:
            sys.exit(f"{line}: exit {done.returncode}, expected {expected}\n{done.stderr.decode()}")
        return done.stdout if expected == 0 else done.stderr.decode()

    def logits(self, ids, out):
        self.run("logits", "--ids", ",".join(map(str, ids)), "--out", out)
        values = torch.frombuffer(bytearray(open(out, "rb").read()), dtype=torch.float32)
        return values.view(len(ids), VOCAB)


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")
    print(f"ok: {what}")


def load(folder):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True)
    check(not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")),
          "every tensor has its place in transformers, and none is missing")
    check(type(model).__name__ == "LlamaForCausalLM", "it is a LlamaForCausalLM")
    return model.eval()


def compare_logits(program, model, folder):
    generator = random.Random(1)
    for length in (1, 7, CONTEXT):
        ids = [generator.randrange(VOCAB) for _ in range(length)]
        ours = program.logits(ids, os.path.join(folder, "logits"))
        theirs = model(torch.tensor([ids])).logits[0]
        difference = (ours - theirs).abs().max().item()
        check(difference <= LOGIT_TOLERANCE and theirs.abs().max() > 1,
              f"logits of {length} ids differ by {difference:.1e}, of a size up to {theirs.abs().max():.1f}")


def loss_in_transformers(model, windows):
    windows = torch.tensor(windows)
    logits = model(windows[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()


def windows_of(tokens):
    return [tokens[w * CONTEXT:(w + 1) * CONTEXT + 1] for w in range((len(tokens) - 1) // CONTEXT)]


def compare_loss(program, model, windows, *arguments):
    result = json.loads(program.run("eval", "--json", *arguments))
    loss = loss_in_transformers(model, windows)
    check(result["tokens"] == len(windows) * CONTEXT and abs(result["loss"] - loss) <= LOSS_TOLERANCE,
          f"loss {result['loss']:.6f} over {len(windows)} windows, {loss:.6f} in transformers")


def compare_text_loss(program, model, folder):
    generator = random.Random(2)
    text = bytes(generator.randrange(VOCAB) for _ in range(5 * CONTEXT + 3))
    path = os.path.join(folder, "text")
    with open(path, "wb") as file:
        file.write(text)
    windows = windows_of(list(text))
    compare_loss(program, model, windows, "--text", path)
    compare_loss(program, model, windows[:2], "--text", path, "--max-tokens", 2 * CONTEXT + 1)
    compare_loss(program, model, windows, "--text", path, "--batch", 3)
    program.run("eval", "--text", path, "--max-tokens", CONTEXT - 1, expected=1)


def compare_dataset_loss(program, model, dataset):
    with open(os.path.join(dataset, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    for split in ("validation", "train"):
        windows = []
        for shard in manifest[split]:
            with open(os.path.join(dataset, shard["file"]), "rb") as file:
                ids = torch.frombuffer(bytearray(file.read()[32:]), dtype=torch.uint16).tolist()
            windows += windows_of(ids)
        check(split == "validation" or len(manifest[split]) > 1, f"{len(manifest[split])} {split} shards")
        compare_loss(program, model, windows, "--data", dataset, "--split", split)


def greedy(model, ids, count):
    made = []
    while len(made) < count:
        token = model(torch.tensor([(ids + made)[-CONTEXT:]])).logits[0, -1].argmax().item()
        if token == END_OF_DOCUMENT:
            break
        made.append(token)
    return made


def compare_text(program, model):
    prompt = "The context is shorter than"
    arguments = ("generate", "--prompt", prompt, "--tokens", 24, "--json")
    likeliest = json.loads(program.run(*arguments, "--temperature", 0))
    expected = greedy(model, list(prompt.encode()), 24)
    check(likeliest["ids"] == expected and likeliest["ended"] == (len(expected) < 24),
          f"{len(expected)} greedy tokens are equal")
    one = json.loads(program.run(*arguments, "--top-k", 1))
    check(one["ids"] == expected, "the likeliest 1 token is the greedy one")

    sampled = [program.run(*arguments, "--ignore-end", "--seed", seed) for seed in (5, 5, 6)]
    check(sampled[0] == sampled[1], "the same seed gives the same text")
    check(json.loads(sampled[0])["ids"] != json.loads(sampled[2])["ids"], "another seed gives another text")
    check(len(json.loads(sampled[0])["ids"]) == 24, "as many tokens as asked for")
    few = json.loads(program.run(*arguments, "--ignore-end", "--top-k", 3, "--temperature", 50))
    place = list(prompt.encode())
    for token in few["ids"]:
        best = model(torch.tensor([place[-CONTEXT:]])).logits[0, -1].topk(3).indices.tolist()
        if token not in best:
            sys.exit(f"FAILED: token {token} is not among the likeliest {best}")
        place.append(token)
    plain = program.run("generate", "--prompt", prompt, "--tokens", 3, "--temperature", 0)
    check(plain.startswith(prompt.encode()), "the text begins with the prompt")
    program.run("generate", "--prompt", "", "--tokens", 2)


def check_refusals(program, folder):
    message = Program(program.path, os.path.join(folder, "none")).run("logits", "--ids", "1", "--out", "x", expected=1)
    check("no such folder" in message, "a missing checkpoint is named")
    message = program.run("logits", "--ids", VOCAB, "--out", os.path.join(folder, "x"), expected=1)
    check(str(VOCAB) in message, "an id outside the vocabulary is refused")
    program.run("eval", expected=2)
    program.run("eval", "--text", "a", "--data", "b", expected=2)
    program.run("generate", "--prompt", "a", "--temperature", -1, expected=2)
    help_text = subprocess.run([program.path, "--help"], capture_output=True, timeout=60)
    check(help_text.returncode == 0 and b"generate" in help_text.stdout, "--help lists the subcommands")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixture", required=True, help="hf_export_fixture")
    parser.add_argument("--program", required=True, help="tessera-model")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory(prefix="tessera-export-") as folder:
        subprocess.run([options.fixture, folder], check=True, timeout=60)
        program = Program(options.program, os.path.join(folder, "checkpoint"))
        model = load(os.path.join(folder, "hf"))
        compare_logits(program, model, folder)
        compare_text_loss(program, model, folder)
        compare_dataset_loss(program, model, os.path.join(folder, "dataset"))
        compare_text(program, model)
        check_refusals(program, folder)


if __name__ == "__main__":
    main()
