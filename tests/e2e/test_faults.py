"""Real processes are hurt while they train; the run goes on and nothing acknowledged is lost."""

import json
import signal
import sqlite3
import time
import unittest

from swarm import TINY, Swarm, alive, kill, merged

PAIRS = merged(TINY, {"pipeline": {"miners_per_stage": 2}, "training": {"steps": 100}, "boundary": {"kind": "anchored", "codec": "int8", "compression": 4}})


def check_complete(test, summary, total):
    test.assertEqual(summary["phase"], "finished")
    test.assertEqual(summary["microbatches"]["done"], total)
    test.assertEqual(summary["microbatches"]["open"], 0)
    test.assertTrue(summary["replicas_identical"])


class Faults(unittest.TestCase):
    total = 100 * 2 * 2

    def test_a_killed_miner_does_not_stop_the_run_and_joins_again(self):
        with Swarm(PAIRS) as swarm:
            swarm.start("--no-validate")
            swarm.until(lambda: swarm.done() > 30, "the first microbatches")
            victim = swarm.pids()["miners"][3]
            kill(victim)
            # The supervisor starts it again: a new incarnation registers, loads the weights, and is in a later merge.
            summary = swarm.wait()
            check_complete(self, summary, self.total)
            events = swarm.events()
            registered = [(s, e["registration"]["node"]) for s, k, e in events if k == "miner_registered"]
            # Others may register again too: those that are moved to the stage it left.
            node = json.loads((swarm.out / "miners" / "3" / "miner.json").read_text())["node"]
            index = list(dict.fromkeys(n for _, n in registered)).index(node)
            sequence = [s for s, n in registered if n == node][1]
            uploads = [e for s, k, e in events if k == "upload_committed" and s > sequence and e["miner"] == index]
            self.assertTrue(uploads, "the restarted miner took part in no merge")

    def test_an_orchestrator_killed_twice_goes_on_in_the_same_epoch(self):
        # Nobody is moved: a miner's epochs are those of one stage.
        with Swarm(merged(PAIRS, {"pipeline": {"rebalance_gain": 0}})) as swarm:
            swarm.start("--no-validate")
            for round_number in (1, 2):
                target = 60 * round_number
                swarm.until(lambda: swarm.done() > target, "microbatches")
                swarm.until(lambda: swarm.count("shard_committed") > 0, "a merge")
                acknowledged = swarm.events()
                pid = swarm.pids()["orchestrator"]
                kill(pid)
                swarm.until(lambda: swarm.pids()["orchestrator"] not in (pid, -1), "the restart")
                swarm.until(lambda: swarm.done() > target + 20, "work after the restart")
                # What was in the journal is there unchanged, and the run was neither created nor resumed again.
                self.assertEqual(swarm.events()[:len(acknowledged)], acknowledged)
            summary = swarm.wait()
            check_complete(self, summary, self.total)
            self.assertEqual(swarm.count("run_created"), 1)
            self.assertEqual(swarm.count("run_resumed"), 0)
            with sqlite3.connect(swarm.out / "journal.sqlite") as ledger:
                epochs = [e["applied"]["epoch"] for _, _, e in swarm.events("state_held") if e["miner"] == 0]
                self.assertEqual(ledger.execute("PRAGMA integrity_check").fetchone(), ("ok",))
            self.assertEqual(epochs, sorted(epochs))
            self.assertNotIn(0, epochs[1:], "the miner began again")

    def test_a_miner_that_hangs_is_left_out_and_taken_back(self):
        with Swarm(PAIRS) as swarm:
            swarm.start("--no-validate")
            swarm.until(lambda: swarm.done() > 30, "the first microbatches")
            victim = swarm.pids()["miners"][4]
            kill(victim, signal.SIGSTOP)
            try:
                swarm.until(lambda: swarm.count("miner_lost") > 0, "the hung miner to be missed")
                seen = swarm.done()
                swarm.until(lambda: swarm.done() > seen + 20, "work without it")
            finally:
                kill(victim, signal.SIGCONT)
            swarm.until(lambda: swarm.count("miner_returned") > 0, "its return")
            check_complete(self, swarm.wait(), self.total)

    def test_a_miner_may_join_in_the_middle(self):
        # The run waits for one miner a stage; the second ones come as the run goes on, into stages that are at work.
        config = merged(PAIRS, {"pipeline": {"miners_per_stage": 1}, "training": {"steps": 120}})
        with Swarm(config) as swarm:
            swarm.start("--no-validate", "--miners", "4")
            summary = swarm.wait()
            self.assertEqual(summary["miners"], 4)
            check_complete(self, summary, 120 * 2)
            participants = {e["miner"] for _, _, e in swarm.events("upload_committed")}
            self.assertEqual(participants, {0, 1, 2, 3})

    def test_a_newcomer_loads_its_stage_although_its_donors_hang_or_die(self):
        # One stage of several chunks; who is silent counts as lost only after 20 s, so that both are donors still.
        config = merged(PAIRS, {"model": {"width": 128, "ffn_width": 384}, "pipeline": {"stages": 1, "miners_per_stage": 4},
                                "timeouts": {"miner_lost_ms": 20000, "lease_ms": 30000, "merge_phase_ms": 30000}})
        with Swarm(config) as swarm:
            swarm.start("--no-validate")
            swarm.until(lambda: swarm.count("state_published") > 0, "a state that a newcomer can load")
            newcomer, hung, dead, _ = swarm.pids()["miners"]
            log = swarm.out / "logs" / "miner-0.log"
            kill(hung, signal.SIGSTOP)
            try:
                kill(dead)
                kill(newcomer)
                began = time.monotonic()
                swarm.until(lambda: "the stage's state came from the blob store" in log.read_text(errors="replace"), "its state")
                self.assertLess(time.monotonic() - began, 19, "it waited until its donors counted as lost")
                self.assertEqual(swarm.count("miner_lost"), 0)
            finally:
                kill(hung, signal.SIGCONT)
            check_complete(self, swarm.wait(), self.total * 2)

    def test_ctrl_c_stops_everything_within_5_seconds_and_resume_goes_on(self):
        with Swarm(PAIRS) as swarm:
            swarm.start("--no-validate")
            swarm.until(lambda: swarm.done() > 60, "some work")
            pids = swarm.pids()
            everyone = [pids["orchestrator"], *pids["miners"]]
            began = time.monotonic()
            swarm.process.send_signal(signal.SIGINT)
            self.assertEqual(swarm.process.wait(20), 130, swarm.tail())
            self.assertLess(time.monotonic() - began, 5.0)
            self.assertFalse([pid for pid in everyone if alive(pid)])
            summary = swarm.summary()
            self.assertEqual(summary["phase"], "stopped")
            stopped_at = summary["microbatches"]["done"]
            self.assertTrue((swarm.out / "checkpoint" / "latest").exists(), swarm.tail())
            summary = swarm.start("--no-validate", "--resume").wait()
            check_complete(self, summary, self.total)
            resumed = [e for _, _, e in swarm.events("run_resumed")]
            self.assertEqual(len(resumed), 1)
            self.assertLessEqual(resumed[0]["done"], stopped_at)
            self.assertGreater(resumed[0]["done"], 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
