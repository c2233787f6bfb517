"""The short form of scripts/churn: miners die, hang and are cut off every few seconds, and nothing is lost."""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/churn"


class Churn(unittest.TestCase):
    def test_a_minute_of_faults_loses_nothing(self):
        with tempfile.TemporaryDirectory(prefix="tessera-churn-") as folder:
            report = Path(folder) / "report.json"
            command = [sys.executable, SCRIPT, "--minutes", "0.6", "--miners", "6", "--fault-every", "6", "--quiet", "5",
                       "--bin", os.environ["TESSERA_BIN"], "--work", folder, "--json", report]
            done = subprocess.run([str(word) for word in command], timeout=400, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, check=False)
            self.assertEqual(done.returncode, 0, done.stdout)
            result = json.loads(report.read_text())
        self.assertGreaterEqual(result["faults"], 4, done.stdout)
        self.assertEqual(result["lost"], 0, done.stdout)
        self.assertEqual(result["double_counted"], 0, done.stdout)
        self.assertGreater(sum(times["count"] for times in result["reroute_ms"].values()), 0, done.stdout)
        self.assertGreater(result["tokens"], 0, done.stdout)
        self.assertLess(result["loss_last"], result["loss_first"], done.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
