"""Miners of two workers each, over gloo, equal a single process as miners of one do, and a validator with one device
comes to the same bits: the run does not see the difference.

Tolerances as in test_reference.py.
"""

import unittest

from swarm import TINY, Swarm, merged
from test_reference import LOSS_TOLERANCE, WEIGHT_TOLERANCE, checkpoint_weights

import reference
import torch
from trust import TrustSwarm


class Box(unittest.TestCase):
    def test_two_workers_a_miner_are_ordinary_training(self):
        torch.set_num_threads(1)
        config = merged(TINY, {"training": {"synchronous": True, "steps": 6}, "merge": {"enabled": False}})
        for zero_stage in (1, 3):
            with self.subTest(zero_stage=zero_stage), Swarm(config) as swarm:
                swarm.start("--no-validate", "--miner-set", "gpus=[0,1]", "--miner-set", f"zero_stage={zero_stage}").wait()
                events = swarm.events()
                data = reference.Data(swarm.out / "data", config["model"]["context"], config["training"]["seed"],
                                      config["training"]["microbatch_size"])
                initial = reference.initial_weights(swarm.out, events, config["pipeline"]["stages"])
                losses, weights = reference.train_in_order(config, data, initial, config["training"]["steps"])
                seen = {r["microbatch"]: r["loss"] for _, kind, e in events if kind == "receipts"
                        for r in e["receipts"] if r["stage"] == 2}
                self.assertEqual(sorted(seen), list(range(len(losses))))
                self.assertLess(max(abs(seen[n] - loss) for n, loss in enumerate(losses)), LOSS_TOLERANCE)
                for stage, theirs in enumerate(weights):
                    ours = checkpoint_weights(swarm, config, stage)
                    self.assertLess((ours - theirs).abs().max().item(), WEIGHT_TOLERANCE)
                    self.assertGreater((theirs - initial[stage]).abs().max().item(), 20 * WEIGHT_TOLERANCE)

    def test_boxes_pass_audits(self):
        for zero_stage in (0, 3):
            # The validator's workers add up as the box's do: to the bit.
            exact = {"training": {"steps": 400, "deterministic": True}, "audit": {"exact": True},
                     "boundary": {"kind": "none", "codec": "fp32", "compression": 1}}
            with self.subTest(zero_stage=zero_stage), TrustSwarm(exact) as swarm:
                swarm.start("--no-validate", "--validators", "1", "--miner-set", "gpus=[0,1]", "--miner-set",
                            f"zero_stage={zero_stage}")
                swarm.until(lambda: len(swarm.verdicts()) > 8 and swarm.judged() > 30, "nine audits")
                self.assertEqual(swarm.failed(), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
