"""A local swarm of real processes for tests: start it, hurt it, read its ledger and summary."""

import json
import os
import signal
import sqlite3
import subprocess
import tempfile
import time
from pathlib import Path

BIN = Path(os.environ["TESSERA_BIN"])
LIMIT_S = 240

TINY = {
    "model": {"layers": 3, "width": 64, "heads": 4, "kv_heads": 2, "ffn_width": 96, "vocab": 256, "context": 16},
    "pipeline": {"stages": 3, "miners_per_stage": 1, "max_in_flight": 4},
    "training": {"seed": 7, "steps": 6, "microbatch_size": 2, "microbatches_per_step": 2, "learning_rate": 0.003,
                 "warmup_steps": 2},
    "boundary": {"kind": "none", "codec": "fp32"},
    "merge": {"min_microbatches": 4, "quorum": 1.0, "block_values": 1024},
    "timeouts": {"sync_ms": 20, "miner_lost_ms": 1000, "peer_ms": 1000, "lease_ms": 10000, "merge_phase_ms": 5000},
}


def merged(base, *changes):
    """A deep copy of nested dictionaries with later ones laid over."""
    result = json.loads(json.dumps(base))
    for change in changes:
        for section, keys in change.items():
            result.setdefault(section, {}).update(keys)
    return result


def sample_text(path, repeats=400):
    """Text with some structure, so that a tiny model's loss falls within seconds."""
    words = "the quick brown fox jumps over the lazy dog and runs back to the river".split()
    lines = [" ".join(words[(i * 7 + j * (i % 5 + 1)) % len(words)] for j in range(12)) for i in range(repeats)]
    path.write_text("\n".join(lines) + "\n")
    return path


class Swarm:
    """Context manager: a folder, a configuration and, once started, `tesseractl swarm local`."""

    def __init__(self, config, folder=None, text=None, limit_s=LIMIT_S):
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="tessera-e2e-")
        self.folder = Path(folder or self._temporary.name)
        self.out = self.folder / "out"
        self.config = config
        self.text = text or sample_text(self.folder / "text.txt")
        self.process = None
        self.log = None
        self.limit_s = limit_s  # no wait is longer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.log:
            self.log.close()
        if self._temporary:
            self._temporary.cleanup()

    def start(self, *arguments):
        yaml = merged(self.config, {"data": {"text": [str(self.text)]}})
        path = self.folder / "run.yaml"
        path.write_text(json.dumps(yaml, indent=1))  # JSON is YAML
        command = [BIN / "tesseractl", "swarm", "local", "--config", path, "--out", self.out, "--device", "cpu",
                   "--threads", "1", *arguments]
        if self.log:
            self.log.close()
        self.log = open(self.folder / "swarm.log", "ab")
        self.process = subprocess.Popen([str(word) for word in command], stdout=self.log, stderr=subprocess.STDOUT)
        return self

    def wait(self, code=0):
        """Waits for the end, checks the exit code, returns the summary."""
        self.process.wait(self.limit_s)
        assert self.process.returncode == code, f"exit code {self.process.returncode}\n{self.tail()}"
        return self.summary()

    def summary(self):
        return json.loads((self.out / "summary.json").read_text())

    def tail(self):
        parts = [self.folder / "swarm.log", *sorted((self.out / "logs").glob("*.log"))]
        return "\n".join(f"--- {part.name}\n{part.read_text(errors='replace')[-3000:]}" for part in parts if part.exists())

    def pids(self):
        return json.loads((self.out / "pids.json").read_text())

    def until(self, condition, what, pause_s=0.05):
        """Polls a condition of the ledger; every wait is bounded."""
        deadline = time.monotonic() + self.limit_s
        while time.monotonic() < deadline:
            if condition():
                return
            assert self.process.poll() is None, f"the swarm ended while waiting for {what}\n{self.tail()}"
            time.sleep(pause_s)
        raise AssertionError(f"waited in vain for {what}\n{self.tail()}")

    def events(self, kind=None):
        """(sequence, kind, JSON value) of the ledger's entries so far, in order."""
        path = self.out / "journal.sqlite"
        if not path.exists():
            return []
        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10) as ledger:
                rows = ledger.execute("SELECT sequence, kind, json FROM entries WHERE ?1 IS NULL OR kind = ?1 "
                                      "ORDER BY sequence", (kind,)).fetchall()
        except sqlite3.OperationalError:
            return []  # being created
        return [(sequence, name, json.loads(text)) for sequence, name, text in rows]

    def count(self, kind):
        return len(self.events(kind))

    def done(self):
        """Receipts so far: a measure of progress that only grows."""
        return sum(len(event["receipts"]) for _, _, event in self.events("receipts"))


def kill(pid, number=signal.SIGKILL):
    os.kill(pid, number)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie has ended.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
