"""A miner is killed or stopped while frames are under way; its peers notice and go elsewhere. What must not be waited for is
made so long that the test would fail if it were: nothing here is measured in milliseconds."""

import json
import signal
import time
import unittest

from swarm import TINY, Swarm, kill, merged

# No miner is moved to another stage: it would register again.
PAIRS = merged(TINY, {"pipeline": {"miners_per_stage": 2, "rebalance_gain": 0}, "training": {"steps": 4000},
                      "boundary": {"kind": "anchored", "codec": "int8", "compression": 4}})
PATIENT_S = 100  # every timeout of the run
PATIENT = merged(PAIRS, {"timeouts": {"peer_ms": PATIENT_S * 1000, "miner_lost_ms": PATIENT_S * 1000,
                                      "lease_ms": 2 * PATIENT_S * 1000}})
MIDDLE = 1  # a stage that has neighbours on both sides


def miner_of_stage(swarm, stage):
    """(number in the ledger, process) of a miner that works at the stage."""
    nodes = [event["registration"]["node"] for _, _, event in swarm.events("miner_registered")]
    number = next(receipt["miner"] for _, _, event in swarm.events("receipts") for receipt in event["receipts"]
                  if receipt["stage"] == stage)
    for index, pid in enumerate(swarm.pids()["miners"]):
        if json.loads((swarm.out / f"miners/{index}/miner.json").read_text())["node"] == nodes[number]:
            return number, pid
    raise AssertionError(f"no process has the key of miner {number}")


def receipts_of(swarm, miner):
    return sum(len(event["receipts"]) for _, _, event in swarm.events("receipts") if event["miner"] == miner)


class Reroute(unittest.TestCase):
    def test_a_killed_miner_is_noticed_without_any_timeout(self):
        with Swarm(PATIENT) as swarm:
            swarm.start("--no-validate")
            swarm.until(lambda: swarm.done() > 60, "the first microbatches")
            _, victim = miner_of_stage(swarm, MIDDLE)
            began = time.monotonic()
            kill(victim)
            seen = swarm.done()
            # Six receipts a microbatch and its two heads: more than could have been under way when it died.
            swarm.until(lambda: swarm.done() > seen + 120, "work without it")
            self.assertLess(time.monotonic() - began, PATIENT_S, "it was noticed by a timeout")
            swarm.until(lambda: swarm.count("miner_registered") > 6, "the restarted miner")

    def test_a_stopped_miner_is_left_out_and_works_again(self):
        with Swarm(PAIRS) as swarm:
            swarm.start("--no-validate")
            swarm.until(lambda: swarm.done() > 60, "the first microbatches")
            number, victim = miner_of_stage(swarm, MIDDLE)
            kill(victim, signal.SIGSTOP)
            try:
                before = receipts_of(swarm, number)
                seen = swarm.done()
                swarm.until(lambda: swarm.done() > seen + 120, "work without it")
                self.assertLessEqual(receipts_of(swarm, number), before + 8, "a stopped process worked")
                before = receipts_of(swarm, number)
            finally:
                kill(victim, signal.SIGCONT)
            swarm.until(lambda: receipts_of(swarm, number) > before + 20, "its work after it went on")
            self.assertEqual(swarm.count("miner_registered"), 6, "it is the same process")


if __name__ == "__main__":
    unittest.main(verbosity=2)
