"""A swarm equals a single process, microbatch for microbatch (fp32 on the wire, boundary kind none).

Tolerances: losses 2e-5, weights 2e-4 absolute. Both sides are fp32 and sum in different orders (attention, GEMM blocking);
AdamW divides by the root of small second moments, which enlarges those last bits.
"""

import re
import unittest

import numpy as np
import torch
from safetensors.numpy import load_file

import reference
from swarm import TINY, Swarm, merged

LOSS_TOLERANCE = 2e-5
WEIGHT_TOLERANCE = 2e-4
MOMENT_TOLERANCE = 1e-3  # of their norm
# The replay knows neither moved nor lost miners: on however busy a machine, none may be.
STEADY = merged(TINY, {"pipeline": {"rebalance_gain": 0},
                       "timeouts": {"miner_lost_ms": 120000, "peer_ms": 120000, "lease_ms": 120000, "merge_phase_ms": 120000}})


def checkpoint_folder(swarm):
    root = swarm.out / "checkpoint"
    return root / (root / "latest").read_text().strip()


def flat(config, stage, file, prefix=""):
    tensors = load_file(file)
    return torch.cat([torch.from_numpy(np.array(tensors[prefix + name])).flatten() for name, _ in reference.layout(config, stage)])


def checkpoint_weights(swarm, config, stage):
    return flat(config, stage, checkpoint_folder(swarm) / f"stage-{stage}.safetensors")


def manifests(swarm):
    """{(stage, epoch): (uploads, microbatches)} by the orchestrator's log."""
    found = re.findall(r"stage (\d+) merge (\d+): manifest of (\d+) uploads, (\d+) microbatches",
                       (swarm.out / "logs/orchestrator.log").read_text())
    return {(int(stage), int(epoch)): (int(uploads), int(count)) for stage, epoch, uploads, count in found}


class Reference(unittest.TestCase):
    def setUp(self):
        torch.set_num_threads(1)

    def prepare(self, swarm, config):
        data = reference.Data(swarm.out / "data", config["model"]["context"], config["training"]["seed"],
                              config["training"]["microbatch_size"])
        events = swarm.events()
        self.assertNotIn("miner_lost", {kind for _, kind, _ in events}, "a miner was lost or moved")
        return data, events, reference.initial_weights(swarm.out, events, config["pipeline"]["stages"])

    def assert_weights(self, ours, theirs):
        error = (ours - theirs).abs().max().item()
        self.assertLess(error, WEIGHT_TOLERANCE)
        return error

    def test_one_miner_a_stage_is_ordinary_training(self):
        config = merged(STEADY, {"training": {"synchronous": True, "steps": 10}, "merge": {"enabled": False}})
        with Swarm(config) as swarm:
            summary = swarm.start("--no-validate").wait()
            data, events, initial = self.prepare(swarm, config)
            losses, weights = reference.train_in_order(config, data, initial, config["training"]["steps"])
            seen = {r["microbatch"]: r["loss"] for _, kind, e in events if kind == "receipts"
                    for r in e["receipts"] if r["stage"] == 2}
            self.assertEqual(sorted(seen), list(range(len(losses))))
            worst = max(abs(seen[n] - loss) for n, loss in enumerate(losses))
            self.assertLess(worst, LOSS_TOLERANCE)
            errors = [self.assert_weights(checkpoint_weights(swarm, config, s), w) for s, w in enumerate(weights)]
            moved = max((w - i).abs().max().item() for w, i in zip(weights, initial))
            self.assertGreater(moved, 20 * WEIGHT_TOLERANCE)  # so that the comparison says something
            self.assertEqual(summary["microbatches"]["done"], len(losses))
            print(f"losses within {worst:.1e}, weights within {max(errors):.1e}, weights moved {moved:.1e}")

    def test_two_miners_a_stage_with_merges_is_the_same_schedule(self):
        self.compare_merges("local")

    def test_merges_that_average_the_moments_are_too(self):
        self.compare_merges("average")

    def compare_merges(self, moments):
        config = merged(STEADY, {"pipeline": {"miners_per_stage": 2}, "training": {"steps": 8},
                               "merge": {"upload_format": "fp32", "result_format": "fp32", "optimizer_moments": moments}})
        with Swarm(config) as swarm:
            summary = swarm.start("--no-validate").wait()
            self.assertTrue(summary["replicas_identical"])
            self.assertEqual(summary["miners"], 6)
            data, events, initial = self.prepare(swarm, config)
            replay = reference.Replay(config, data, initial, events)
            epochs = [max(e for (m, _), e in replay.applied.items() if replay.stage_of[m] == s) for s in range(3)]
            self.assertGreaterEqual(min(epochs), 2)
            for (stage, epoch), (uploads, microbatches) in manifests(swarm).items():
                counts = replay.counts(stage, epoch)
                self.assertEqual((len(counts), sum(counts.values())), (uploads, microbatches), f"stage {stage}, epoch {epoch}: {counts}")
            worst = 0
            for (microbatch, attempt, stage), receipt in replay.receipts.items():
                if stage == 2:
                    worst = max(worst, abs(receipt["loss"] - replay.gradient(microbatch, attempt)[0]))
            self.assertLess(worst, LOSS_TOLERANCE)
            errors = [self.assert_weights(checkpoint_weights(swarm, config, s), replay.base_at(s, epochs[s])) for s in range(3)]
            print(f"epochs {epochs}, losses within {worst:.1e}, weights within {max(errors):.1e}")
            if moments == "average":
                self.assert_moments(swarm, config, replay, epochs)

    def assert_moments(self, swarm, config, replay, epochs):
        """Nobody has trained since the last merge: what the checkpoint has of every miner is that merge's."""
        for stage, epoch in enumerate(epochs):
            files = list(checkpoint_folder(swarm).glob(f"stage-{stage}.miner-*.safetensors"))
            self.assertEqual(len(files), 2)
            for kind, expected in zip(("first_moment.", "second_moment."), replay.moments_at(stage, epoch)):
                ours = [flat(config, stage, file, kind) for file in files]
                self.assertTrue(torch.equal(*ours), f"{kind} stage {stage}")
                self.assertLess((ours[0] - expected).norm().item(), MOMENT_TOLERANCE * expected.norm().item())


if __name__ == "__main__":
    unittest.main(verbosity=2)
