"""A swarm of real processes under the control of a script: an orchestrator and miners, each in a network namespace of its
own if the script may make them, whose links can be shaped and cut. Used by scripts/churn and scripts/slow_link.

Everything that is made here is undone when the context managers end, also after Ctrl+C and SIGTERM.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

WAIT_S = 120  # no wait for a process is longer


def end_on_signals():
    """Makes SIGTERM end the script as Ctrl+C does: through its context managers."""
    def stop(number, _):
        sys.exit(128 + number)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)


def run(*command, check=True):
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}: {done.stdout.strip()}")
    return done.stdout


class Network:
    """Hosts on one bridge, 10.213.0.1 and so on: a namespace, and a veth pair to the bridge, each. Needs root."""

    def __init__(self):
        self.tag = f"ts{os.getpid() % 100000}"
        self.bridge = f"{self.tag}b"
        self.hosts = []

    def __enter__(self):
        try:
            run("ip", "link", "add", self.bridge, "type", "bridge")
            run("ip", "link", "set", self.bridge, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for host in range(len(self.hosts)):
            run("ip", "netns", "delete", self._space(host), check=False)
            run("ip", "link", "delete", self._outer(host), check=False)
        run("ip", "link", "delete", self.bridge, check=False)

    def _space(self, host):
        return f"{self.tag}n{host}"

    def _outer(self, host):
        return f"{self.tag}v{host}"

    def add(self):
        """A new host; its number."""
        host = len(self.hosts)
        address = f"10.213.0.{host + 1}"
        self.hosts.append(address)
        space, outer = self._space(host), self._outer(host)
        run("ip", "netns", "add", space)
        run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "link", "set", outer, "master", self.bridge, "up")
        run("ip", "-n", space, "link", "set", "lo", "up")
        run("ip", "-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        return host

    def prefix(self, host):
        return ["ip", "netns", "exec", self._space(host)]

    def shape(self, host, mbit_per_s):
        """Limits both directions of a host's link; None takes the limit away."""
        for place in (["-n", self._space(host), "qdisc", "{}", "dev", "eth0"], ["qdisc", "{}", "dev", self._outer(host)]):
            def tc(verb, *rest, place=place, check=True):
                run("tc", *[verb if word == "{}" else word for word in place], "root", *rest, check=check)
            if mbit_per_s is None:
                tc("delete", check=False)
            else:
                burst = max(16384, int(mbit_per_s * 1e6 / 8 / 100))
                tc("replace", "tbf", "rate", f"{mbit_per_s}mbit", "burst", f"{burst}b", "latency", "100ms")

    def cut(self, host, is_cut):
        run("ip", "link", "set", self._outer(host), "down" if is_cut else "up")


class Ledger:
    """What the journal says so far."""

    def __init__(self, path, stages):
        self.path = Path(path)
        self.stages = stages
        self.sequence = 0
        self.leased = set()       # microbatches
        self.counted = {}         # (stage, microbatch): (miner, attempt, time) of the receipts that say they accumulated it
        self.done_at_ms = {}      # microbatch: when its last stage was counted
        self.losses = []          # (microbatch, loss)
        self.ready_at_ms = []     # (time, miner): holds a state
        self.nodes = []           # of the miners, by number
        self.steps = {}           # miner: (steps that its process had done, those of them in its last upload)
        self.receipts = 0
        self.done_before = []     # (stage, microbatch, miner, time) of the receipts of work that another one had done before
        self.kinds = {}

    def read(self):
        if not self.path.exists():
            return self
        with sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=30) as ledger:
            rows = ledger.execute("SELECT sequence, unix_ms, kind, json FROM entries WHERE sequence > ? ORDER BY sequence",
                                  (self.sequence,)).fetchall()
        for self.sequence, unix_ms, kind, text in rows:
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
            if kind == "receipts":
                for receipt in json.loads(text)["receipts"]:
                    self._take(receipt, unix_ms)
            elif kind == "state_held":
                self.ready_at_ms.append((unix_ms, json.loads(text)["miner"]))
            elif kind == "miner_registered":
                node = json.loads(text)["registration"]["node"]
                if node not in self.nodes:
                    self.nodes.append(node)
                self.steps[self.nodes.index(node)] = (0, 0)
            elif kind == "upload_committed":
                event = json.loads(text)
                done, _ = self.steps.get(event["miner"], (0, 0))
                self.steps[event["miner"]] = (done, event["commit"]["snapshot_step"])
        return self

    def _take(self, receipt, unix_ms):
        microbatch, stage = receipt["microbatch"], receipt["stage"]
        self.leased.add(microbatch)
        if stage == self.stages - 1 and receipt["loss"]:
            self.losses.append((microbatch, receipt["loss"]))
        done, kept = self.steps.get(receipt["miner"], (0, 0))
        self.steps[receipt["miner"]] = (max(done, receipt["local_step"]), kept)
        self.receipts += 1
        if not receipt["accumulated"] or (stage, microbatch) in self.counted:
            self.done_before.append((stage, microbatch, receipt["miner"], unix_ms))
        if not receipt["accumulated"]:
            return
        self.counted.setdefault((stage, microbatch), []).append((receipt["miner"], receipt["attempt"], unix_ms))
        if microbatch not in self.done_at_ms and all((s, microbatch) in self.counted for s in range(self.stages)):
            self.done_at_ms[microbatch] = unix_ms

    def done_between(self, begin_ms, end_ms):
        return sum(begin_ms <= at < end_ms for at in self.done_at_ms.values())

    def counted_twice(self):
        return {key: receipts for key, receipts in self.counted.items() if len(receipts) > 1}

    def loss_ends(self, width=20):
        """Means over the lowest- and the highest-numbered microbatches."""
        losses = [loss for _, loss in sorted(dict(self.losses).items())]
        if not losses:
            return None, None
        first, last = losses[:width], losses[-width:]
        return sum(first) / len(first), sum(last) / len(last)


class ProcessSwarm:
    """An orchestrator and miners. `network` may be None: then all are on 127.0.0.1."""

    def __init__(self, folder, binaries, run_config, miners, network=None):
        self.folder = Path(folder)
        self.binaries = Path(binaries)
        self.run_config = run_config
        self.settings = miners  # of each miner, beyond the common ones
        self.network = network
        self.orchestrator = None
        self.miners = [None] * len(miners)
        self.hosts = []
        self.cpu_s = 0.0  # of processes that ended
        self.ledger = Ledger(self.folder / "orchestrator/journal.sqlite", run_config["pipeline"]["stages"])

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.network:
            self.hosts = [self.network.add() for _ in range(len(self.miners) + 1)]
        return self

    def __exit__(self, *_):
        for process in [*self.miners, self.orchestrator]:
            if process and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()

    def address(self, index):
        return self.network.hosts[self.hosts[index]] if self.network else "127.0.0.1"

    def _spawn(self, host, name, command):
        words = [str(word) for word in command]
        if self.network:
            words = self.network.prefix(self.hosts[host]) + words
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def start(self):
        home = self.folder / "orchestrator"
        (self.folder / "run.yaml").write_text(json.dumps(self.run_config, indent=1))  # JSON is YAML
        (self.folder / "orchestrator.yaml").write_text(json.dumps(
            {"listen": f"{self.address(0)}:0", "directory": str(home), "run_config": str(self.folder / "run.yaml")}))
        self.orchestrator = self._spawn(0, "orchestrator", [self.binaries / "tessera-orchestrator", "--config",
                                                            self.folder / "orchestrator.yaml"])
        self.wait_for(lambda: (home / "orchestrator.json").exists(), "the orchestrator")
        self.orchestrator_address = json.loads((home / "orchestrator.json").read_text())["address"]
        for index in range(len(self.miners)):
            self.start_miner(index)
        return self

    def start_miner(self, index):
        home = self.folder / f"miner-{index}"
        home.mkdir(exist_ok=True)
        config = self.folder / f"miner-{index}.yaml"
        config.write_text(json.dumps({"orchestrator": self.orchestrator_address, "listen": f"{self.address(index + 1)}:0",
                                      "directory": str(home), "device": "cpu", "threads": 1, **self.settings[index]}))
        self.miners[index] = self._spawn(index + 1, f"miner-{index}", [self.binaries / "tessera-miner", "--config", config])

    def node(self, index):
        return json.loads((self.folder / f"miner-{index}/miner.json").read_text())["node"]

    def kill_miner(self, index):
        self.cpu_s += cpu_seconds(self.miners[index].pid)
        self.miners[index].kill()
        self.miners[index].wait()

    def used_cpu_s(self):
        """Of all processes, those that ended included."""
        alive = [p for p in [*self.miners, self.orchestrator] if p and p.poll() is None]
        return self.cpu_s + sum(cpu_seconds(process.pid) for process in alive)

    def control(self, *words):
        """Of tesseractl, as the run's administrator: its answer."""
        command = [self.binaries / "tesseractl", *words, "--orchestrator", self.orchestrator_address, "--json"]
        if self.network:
            command = self.network.prefix(self.hosts[0]) + command
        return json.loads(run(*command))

    def tail(self):
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)

    def wait_for(self, condition, what, limit_s=WAIT_S):
        deadline = time.monotonic() + limit_s
        while not condition():
            if self.orchestrator.poll() is not None:
                raise RuntimeError(f"the orchestrator ended while waiting for {what}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {limit_s} s in vain for {what}\n{self.tail()}")
            time.sleep(0.1)

    def wait_for_done(self, microbatches, limit_s=WAIT_S):
        self.wait_for(lambda: len(self.ledger.read().done_at_ms) >= microbatches, f"{microbatches} microbatches", limit_s)

    def stop(self):
        """Drains the run. Its last status; the ledger is complete then, and the miners end by themselves."""
        self.control("run", "stop", "--key", self.folder / "orchestrator/orchestrator.key")
        status = {}

        def stopped():
            status.update(self.control("run", "status"))
            return status["phase"] in ("stopped", "finished")
        self.wait_for(stopped, "the run to stop")
        self.ledger.read()
        return status


def cpu_seconds(pid):
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sample_text(path, lines=4000):
    """Text with some structure, so that a small model's loss falls within minutes."""
    words = "the quick brown fox jumps over the lazy dog and runs back to the river where it sleeps".split()
    text = [" ".join(words[(i * 7 + j * (i % 5 + 1)) % len(words)] for j in range(12)) for i in range(lines)]
    path.write_text("\n".join(text) + "\n")
    return path
