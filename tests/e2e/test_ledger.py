"""What tesseractl reads from a ledger, and from files of losses: real programs, no miner."""

import csv
import io
import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import tempfile
import unittest
from pathlib import Path

from swarm import BIN, LIMIT_S, TINY, merged, sample_text
from test_administration import Orchestrator


def tesseractl(*words, stdin=None):
    return subprocess.run([str(BIN / "tesseractl"), *map(str, words)], input=stdin, capture_output=True, text=True,
                          timeout=LIMIT_S)


class Ledger(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="tessera-e2e-")
        self.folder = Path(self.temporary.name)
        self.orchestrator = Orchestrator(self.folder).start()
        self.directory = self.orchestrator.directory
        text = sample_text(self.folder / "text.txt")
        run = self.folder / "run.yaml"
        run.write_text(json.dumps(merged(TINY, {"run": {"name": "ledger"}, "data": {"text": [str(text)]}}, {})))
        self.assertEqual(self.orchestrator.ask("run", "create", run)[0], 0)
        self.assertEqual(self.orchestrator.ask("run", "config", "set", "merge.quorum", "0.5")[0], 0)

    def tearDown(self):
        if self.orchestrator.process.poll() is None:
            self.orchestrator.stop(signal.SIGKILL)
        self.temporary.cleanup()

    def test_a_running_ledger_is_verified_and_exported(self):
        result = tesseractl("ledger", "verify", "--journal", self.directory, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        whole = json.loads(result.stdout)
        self.assertTrue(whole["ok"])
        self.assertGreaterEqual(whole["entries"], 2)
        expect = tesseractl("ledger", "verify", "--journal", self.directory, "--expect", whole["chain"])
        self.assertEqual(expect.returncode, 0, expect.stderr)
        stranger = tesseractl("ledger", "verify", "--journal", self.directory, "--expect", "ab" * 32)
        self.assertEqual(stranger.returncode, 1)
        self.assertIn("not the ledger", stranger.stderr)

        lines = tesseractl("ledger", "export", "--journal", self.directory / "journal.sqlite").stdout.splitlines()
        entries = [json.loads(line) for line in lines]
        self.assertEqual([e["sequence"] for e in entries], list(range(1, whole["entries"] + 1)))
        self.assertEqual(entries[0]["kind"], "run_created")
        only = tesseractl("ledger", "export", "--journal", self.directory, "--kind", "spec_changed", "--format", "csv")
        rows = list(csv.DictReader(io.StringIO(only.stdout)))
        self.assertEqual([row["kind"] for row in rows], ["spec_changed"])
        self.assertEqual(json.loads(rows[0]["event"])["key"], "merge.quorum")
        later = tesseractl("ledger", "export", "--journal", self.directory, "--since", "2").stdout.splitlines()
        self.assertEqual(later, lines[1:])

    def test_the_runs_secret_is_sealed_and_its_key_opens_it(self):
        key = self.directory / "ledger.key"
        self.assertEqual(stat.S_IMODE(key.stat().st_mode), 0o600)
        export = ("ledger", "export", "--journal", self.directory, "--kind", "run_created")
        public = json.loads(tesseractl(*export).stdout)["event"]
        self.assertEqual(public["secret"], 0)
        self.assertGreater(len(public["sealed_secret"]), 0)
        opened = json.loads(tesseractl(*export, "--key", key).stdout)["event"]
        self.assertNotEqual(opened["secret"], 0)
        self.assertEqual(opened["run_spec"], public["run_spec"])
        # The orchestrator goes on with the key, and says what is missing without it.
        self.orchestrator.stop(signal.SIGKILL)
        self.orchestrator.start()
        self.assertEqual(self.orchestrator.ask("run", "status", key=False)[1]["name"], "ledger")
        self.orchestrator.stop(signal.SIGKILL)
        os.rename(key, self.folder / "kept.key")
        result = subprocess.run([str(BIN / "tessera-orchestrator"), "--set", f"directory={self.directory}"],
                                capture_output=True, text=True, timeout=LIMIT_S)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("put back the ledger.key", result.stderr)

    def test_the_first_broken_entry_is_named(self):
        self.orchestrator.stop(signal.SIGKILL)
        with sqlite3.connect(self.directory / "journal.sqlite") as ledger:
            ledger.execute("UPDATE entries SET unix_ms = unix_ms + 1 WHERE sequence = 1")
        ledger.close()
        result = tesseractl("ledger", "verify", "--journal", self.directory, "--json")
        self.assertEqual(result.returncode, 1)
        answer = json.loads(result.stdout)
        self.assertEqual((answer["ok"], answer["first_broken"]), (False, 1))
        self.assertIn("entry 1 is the first broken one", result.stderr)

    def test_what_is_not_there_is_said(self):
        trace = tesseractl("trace", "3", "--journal", self.directory, "--json")
        self.assertEqual(trace.returncode, 1)
        self.assertIn("microbatch 3 is not in this ledger", trace.stderr)
        self.assertEqual(json.loads(trace.stdout)["hops"], [])
        rewards = tesseractl("rewards", "--journal", self.directory, "--json")
        self.assertEqual((rewards.returncode, json.loads(rewards.stdout)["miners"]), (0, []))
        self.assertIn("no miner '4'", tesseractl("rewards", "--journal", self.directory, "--miner", "4").stderr)
        report = tesseractl("clasp", "report", "--journal", self.directory, "--json")
        self.assertEqual((report.returncode, json.loads(report.stdout)["miners"]), (0, []))
        nowhere = tesseractl("ledger", "verify", "--journal", self.folder / "nowhere.sqlite")
        self.assertEqual(nowhere.returncode, 1)


class ClaspAnalyze(unittest.TestCase):
    """The known simulation: 5 x 5, N(4.5, 0.2), one miner with 10 % more of both."""

    def lines(self, count=1000):
        draw = random.Random(11)
        lines = []
        for number in range(count):
            pathway = [f"s{stage}m{draw.randrange(5)}" for stage in range(5)]
            factor = 1.1 if pathway[2] == "s2m3" else 1.0
            lines.append(json.dumps({"pathway": pathway, "loss": factor * draw.gauss(4.5, 0.2), "time": float(number)}))
        return lines

    def test_the_known_simulation(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write("\n".join(self.lines()) + "\n")
            file.flush()
            result = tesseractl("clasp", "analyze", "--in", file.name, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        miners = json.loads(result.stdout)["miners"]
        self.assertEqual(len(miners), 25)
        self.assertEqual([m["id"] for m in miners if m["flagged"]], ["s2m3"])
        for miner in miners:
            self.assertLessEqual(miner["ci_low"], miner["effect"])
            self.assertLessEqual(miner["effect"], miner["ci_high"])
            if miner["stage"] == 2 and miner["id"] != "s2m3":
                self.assertLess(miner["effect"], 0)
                self.assertLess(miner["z"], 0)

    def test_bad_lines_are_named_and_stop_nothing(self):
        lines = self.lines()
        bad = {3: "{", 10: '{"pathway": ["a"], "loss": 4, "time": 1}', 20: '{"pathway": [1], "loss": 4, "time": 1}',
               30: '{"pathway": ["a", "b", "c", "d", "e"], "loss": "much", "time": 1}', 40: "[]",
               50: '{"pathway": ["a", "b", "c", "d", "e"], "loss": 4}', 60: "x" * (2 << 20)}
        for number in sorted(bad):
            lines.insert(number - 1, bad[number])
        result = tesseractl("clasp", "analyze", "--in", "-", "--json", stdin="\n".join(lines))
        self.assertEqual(result.returncode, 1)
        for number in bad:
            self.assertIn(f"-:{number}: ", result.stderr)
        report = json.loads(result.stdout)
        self.assertEqual((report["samples"], report["bad_lines"]), (1000, len(bad)))
        self.assertEqual([m["id"] for m in report["miners"] if m["flagged"]], ["s2m3"])

    def test_nothing_to_analyse_is_an_error(self):
        self.assertEqual(tesseractl("clasp", "analyze", "--in", "-", stdin="").returncode, 1)
        self.assertEqual(tesseractl("clasp", "analyze", "--in", "/nowhere.jsonl").returncode, 1)


if __name__ == "__main__":
    unittest.main()
