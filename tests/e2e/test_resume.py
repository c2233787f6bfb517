"""Stopping at a checkpoint and going on gives the loss curve of the run that was never stopped."""

import json
import signal
import subprocess
import unittest

from swarm import BIN, TINY, Swarm, merged

# One miner a stage, synchronous: the order of all sums is fixed, so the curves must agree to the last bit.
CONFIG = merged(TINY, {"training": {"synchronous": True, "steps": 30}, "merge": {"min_microbatches": 8},
                       "boundary": {"kind": "anchored", "codec": "int8", "compression": 4}})


def curve(swarm):
    losses = {}
    for _, _, event in swarm.events("receipts"):
        for receipt in event["receipts"]:
            if receipt["stage"] == 2:
                losses[receipt["microbatch"]] = receipt["loss"]
    return losses


class Resume(unittest.TestCase):
    def test_the_loss_curve_is_the_same(self):
        config = merged(CONFIG, {"merge": {"enabled": False}})
        with Swarm(config) as whole:
            whole.start("--no-validate").wait()
            expected = curve(whole)
        with Swarm(config) as parts:
            parts.start("--no-validate")
            parts.until(lambda: parts.done() > 60, "a third of the work")
            parts.process.send_signal(signal.SIGINT)
            self.assertEqual(parts.process.wait(20), 130, parts.tail())
            stopped = parts.summary()["microbatches"]
            self.assertLess(stopped["done"], len(expected))
            parts.start("--no-validate", "--resume").wait()
            self.assertEqual(curve(parts), expected)

    def test_more_steps_after_the_end_and_evaluation(self):
        with Swarm(CONFIG) as swarm:
            summary = swarm.start().wait()
            self.assertGreater(summary["merges"], 3)
            again = merged(CONFIG, {"training": {"steps": 34}})
            swarm.config = again
            longer = swarm.start("--resume").wait()
            self.assertEqual(longer["microbatches"]["done"], summary["microbatches"]["done"] + 4 * 2)
            self.assertLess(longer["loss_last"], summary["loss_first"])
            text = subprocess.run([BIN / "tesseractl", "eval", "--checkpoint", swarm.out / "checkpoint", "--text", swarm.text,
                                   "--json"], capture_output=True, text=True, check=True).stdout
            answer = json.loads(text)
            self.assertEqual(set(answer), {"tokens", "loss"})
            self.assertEqual(answer["tokens"] % 16, 0)
            self.assertLess(abs(answer["loss"] - longer["val_loss"]), 1.0)
            generate = [BIN / "tesseractl", "generate", "--checkpoint", swarm.out / "checkpoint", "--prompt", "the ",
                        "--tokens", "20", "--seed", "3"]
            first = subprocess.run(generate, capture_output=True, check=True).stdout
            self.assertEqual(first, subprocess.run(generate, capture_output=True, check=True).stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
