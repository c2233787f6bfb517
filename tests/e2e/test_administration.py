"""An orchestrator that was started without a run gets one, and obeys orders: real programs, no miner."""

import json
import os
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from swarm import BIN, LIMIT_S, TINY, merged, sample_text


class Orchestrator:
    """A tessera-orchestrator without run_config, in a folder of its own."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.directory = self.folder / "orchestrator"
        self.process = None

    def start(self):
        about = self.directory / "orchestrator.json"
        about.unlink(missing_ok=True)
        with open(self.folder / "orchestrator.log", "ab") as log:
            self.process = subprocess.Popen([str(BIN / "tessera-orchestrator"), "--set", f"directory={self.directory}"],
                                            stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + LIMIT_S
        while not about.exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.02)
        self.address = json.loads(about.read_text())["address"]
        return self

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(LIMIT_S)

    def log(self):
        return (self.folder / "orchestrator.log").read_text()

    def ask(self, *words, key=True):
        """(exit code, JSON answer) of a tesseractl command."""
        command = [str(BIN / "tesseractl"), *map(str, words), "--orchestrator", self.address, "--json"]
        if key:
            command += ["--key", str(self.directory / "orchestrator.key")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        return result.returncode, json.loads(result.stdout)


class Administration(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="tessera-e2e-")
        self.folder = Path(self.temporary.name)
        self.orchestrator = Orchestrator(self.folder).start()
        self.run_yaml = self.write_run("run.yaml", {})

    def tearDown(self):
        if self.orchestrator.process.poll() is None:
            self.orchestrator.stop(signal.SIGKILL)
        self.temporary.cleanup()

    def write_run(self, name, changes):
        text = sample_text(self.folder / "text.txt")
        path = self.folder / name
        path.write_text(json.dumps(merged(TINY, {"run": {"name": "late"}, "data": {"text": [str(text)]}}, changes)))
        return path

    def test_a_run_is_created_once_and_survives_a_crash(self):
        ask = self.orchestrator.ask
        code, answer = ask("run", "status", key=False)
        self.assertEqual((code, answer["phase"]), (0, "none"))
        code, answer = ask("run", "pause")
        self.assertEqual((code, answer["ok"]), (1, False))
        self.assertIn("run create", answer["error"])
        bad = self.write_run("bad.yaml", {"model": {"layers": 2}})
        code, answer = ask("run", "create", bad)
        self.assertEqual(code, 1)
        self.assertIn("pipeline.stages", answer["error"])
        code, answer = ask("run", "create", self.run_yaml)
        self.assertEqual((code, answer.get("changed")), (0, True), answer)
        code, answer = ask("run", "create", self.run_yaml)
        self.assertEqual((code, answer.get("changed")), (0, False), answer)
        other = self.write_run("other.yaml", {"training": {"steps": 7}})
        code, answer = ask("run", "create", other)
        self.assertEqual((code, answer["code"]), (1, "ALREADY_EXISTS"), answer)
        self.assertIn("section training", answer["error"])
        self.assertEqual(ask("run", "config", "set", "merge.quorum", "0.5")[1]["changed"], True)
        before = ask("run", "status", key=False)[1]
        self.assertEqual((before["phase"], before["name"]), ("waiting", "late"))
        self.orchestrator.stop(signal.SIGKILL)
        self.orchestrator.start()
        after = self.orchestrator.ask("run", "status", key=False)[1]
        self.assertEqual((after["run_id"], after["spec_version"]), (before["run_id"], before["spec_version"]))
        self.assertEqual(self.orchestrator.ask("run", "create", self.run_yaml)[1]["changed"], False)

    def test_orders_are_refused_with_the_reason(self):
        ask = self.orchestrator.ask
        self.assertEqual(ask("run", "create", self.run_yaml)[0], 0)
        for words, part in [
            (("run", "config", "set", "model.width", "128"), "can't change in a running run"),
            (("run", "config", "set", "merge.quorum", "much"), "expected a number"),
            (("run", "stages", "--layers", "0,1"), "the ranges end at layer 1"),
            (("run", "stages", "--layers", "0,1,1-2"), "must tile"),
            (("assign", "3", "1"), "there is no miner 3"),
            (("miner", "drain", "cafe"), "0 miners are called 'cafe'"),
        ]:
            code, answer = ask(*words)
            self.assertEqual((code, answer["ok"]), (1, False), words)
            self.assertIn(part, answer["error"])
        self.assertEqual(ask("miners", key=False), (0, []))
        stranger = self.folder / "stranger.key"
        stranger.write_text("11" * 32 + "\n")
        os.chmod(stranger, 0o600)
        result = subprocess.run([str(BIN / "tesseractl"), "run", "pause", "--orchestrator", self.orchestrator.address,
                                 "--key", str(stranger)], capture_output=True, text=True, timeout=LIMIT_S)
        self.assertEqual(result.returncode, 1)
        self.assertIn("may not give orders", result.stderr)

    def test_nobody_there_is_exit_code_75(self):
        self.orchestrator.stop(signal.SIGKILL)
        code, answer = self.orchestrator.ask("run", "status", key=False)
        self.assertEqual((code, answer["code"]), (75, "UNAVAILABLE"), answer)

    def test_without_a_run_it_ends_when_asked(self):
        self.assertEqual(self.orchestrator.stop(), 0)


if __name__ == "__main__":
    unittest.main()
