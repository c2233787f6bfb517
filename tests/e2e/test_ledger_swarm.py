"""What a real swarm's ledger shows: everything is confirmed, paid, traced, and nothing secret is in the file."""

import json
import subprocess
import unittest

from swarm import BIN, LIMIT_S, TINY, Swarm, merged


class LedgerOfASwarm(unittest.TestCase):
    def test_every_receipt_is_confirmed_paid_and_traced(self):
        config = merged(TINY, {"pipeline": {"miners_per_stage": 2, "random_pathway_share": 0.5}, "training": {"steps": 12}})
        with Swarm(config) as swarm:
            swarm.start()
            summary = swarm.wait()

            def ask(*words):
                result = subprocess.run([str(BIN / "tesseractl"), *map(str, words), "--journal", str(swarm.out), "--json"],
                                        capture_output=True, text=True, timeout=LIMIT_S)
                self.assertEqual(result.returncode, 0, result.stderr)
                return json.loads(result.stdout)

            self.assertTrue(ask("ledger", "verify")["ok"])
            rewards = ask("rewards", "--explain")
            self.assertEqual(len(rewards["receipts"]), summary["receipts"])
            self.assertEqual([r for r in rewards["receipts"] if r["outcome"] == "contradicted"], [])
            self.assertAlmostEqual(sum(r["score"] for r in rewards["receipts"]), rewards["total_score"])
            self.assertAlmostEqual(sum(m["weight"] for m in rewards["miners"]), 1)
            repaired = any(r["repaired"] for _, _, event in swarm.events("receipts") for r in event["receipts"])
            if summary["microbatches"]["reissued"] == 0 and not repaired:
                self.assertEqual({r["outcome"] for r in rewards["receipts"]}, {"full"})

            pathways = ask("clasp", "report")["random_pathways"]
            self.assertGreater(pathways["published"], 0)
            self.assertEqual(pathways["published"], pathways["used"] + pathways["repaired"] + pathways["incomplete"])

            public = ask("trace", 3)
            self.assertTrue(public["complete"])
            self.assertFalse(public["leases_known"])
            self.assertEqual({hop["receipt"]["stage"] for hop in public["hops"]}, {0, 1, 2})
            private = ask("trace", 3, "--key", swarm.out / "ledger.key")
            self.assertTrue(private["leases_known"])
            self.assertGreaterEqual(len(private["leases"]), 1)
            self.assertEqual(private["leases"][0]["attempt"], 0)

            created = swarm.events("run_created")[0][2]
            self.assertEqual(created["secret"], 0)
            self.assertGreater(len(swarm.events("pairings_published")), 0)

    def test_anybody_has_a_copy_of_a_running_ledger(self):
        config = merged(TINY, {"training": {"steps": 100000}})
        with Swarm(config) as swarm:
            swarm.start("--no-validate")
            swarm.until(lambda: swarm.count("receipts") > 5, "receipts")
            address = json.loads((swarm.out / "orchestrator.json").read_text())["address"]
            copy = swarm.folder / "copy"

            def ask(*words, code=0):
                result = subprocess.run([str(BIN / "tesseractl"), *map(str, words)], capture_output=True, text=True, timeout=LIMIT_S)
                self.assertEqual(result.returncode, code, result.stderr)
                return json.loads(result.stdout) if code == 0 else result.stderr

            pull = ("ledger", "pull", "--orchestrator", address, "--out", copy, "--json")
            first = ask(*pull)
            self.assertEqual(first["new_entries"], first["entries"])
            swarm.until(lambda: swarm.count("receipts") > 10, "more receipts")
            second = ask(*pull)
            self.assertEqual(second["entries"], first["entries"] + second["new_entries"])
            self.assertGreater(second["new_entries"], 0)
            # It is the ledger, entry by entry, and all that reads one reads it.
            self.assertEqual(ask("ledger", "verify", "--journal", copy, "--json")["chain"], second["chain"])
            self.assertTrue(ask("ledger", "verify", "--journal", swarm.out, "--expect", second["chain"], "--json")["ok"])
            self.assertTrue(ask("trace", 0, "--journal", copy, "--json")["hops"])
            self.assertGreater(ask("rewards", "--journal", copy, "--json")["total_score"], 0)
            # Another run's ledger does not go on from it.
            other = swarm.folder / "other"
            with Swarm(merged(config, {"training": {"seed": 8}}), folder=other if not other.mkdir() else None) as stranger:
                stranger.start("--no-validate")
                stranger.until(lambda: stranger.count("receipts") > 10, "receipts of the other run")
                address = json.loads((stranger.out / "orchestrator.json").read_text())["address"]
                refused = ask("ledger", "pull", "--orchestrator", address, "--out", copy, code=1)
                self.assertIn("is not in the ledger of", refused)


if __name__ == "__main__":
    unittest.main()
