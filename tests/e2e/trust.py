"""A local swarm with validators and one miner that cheats, and what its ledger says of everybody."""

import json
import os
import re
import signal
import subprocess

from swarm import BIN, Swarm, merged

AUDITED = {
    "model": {"layers": 3, "width": 64, "heads": 4, "kv_heads": 2, "ffn_width": 96, "vocab": 256, "context": 16},
    "pipeline": {"stages": 3, "miners_per_stage": 2, "max_in_flight": 4, "rebalance_gain": 0},
    "training": {"seed": 7, "steps": 40, "microbatch_size": 2, "microbatches_per_step": 2, "learning_rate": 0.003,
                 "warmup_steps": 2, "local_checkpoint_steps": 0},
    "boundary": {"kind": "anchored", "codec": "int8", "compression": 8},
    "merge": {"min_microbatches": 16, "quorum": 1.0, "block_values": 1024},
    "timeouts": {"sync_ms": 20, "miner_lost_ms": 2000, "peer_ms": 2000, "lease_ms": 10000, "merge_phase_ms": 5000},
    "audit": {"enabled": True, "share": 1.0, "segment_steps": 2},
}


class TrustSwarm(Swarm):
    """Honest miners but for those that are started beside the swarm with their own binary."""

    def __init__(self, changes=None, **arguments):
        super().__init__(merged(AUDITED, changes or {}), **arguments)
        self.adversaries = []
        self.adversary_keys = []
        self.adversary_log = None

    def __exit__(self, *reason):
        for adversary in self.adversaries:
            if adversary.poll() is None:
                adversary.send_signal(signal.SIGKILL)
                adversary.wait()
        if self.adversary_log:
            self.adversary_log.close()
        super().__exit__(*reason)

    def start_with(self, cheat, stages, share=1.0, seed=1, validators=1, others=(), validator_devices=()):
        """One adversary in each of `stages`, and an honest miner for each (device, threads) of `others` in every stage; the rest
        of the run's miners, and the validators unless they have devices of their own, compute on one thread of the CPU."""
        pipeline = self.config["pipeline"]
        program = {True: "tessera-test-adversary", False: "tessera-miner"}
        extra = [(program[True], stage, "cpu", 1) for stage in stages]
        extra += [(program[False], stage, device, threads) for stage in range(pipeline["stages"]) for device, threads in others]
        miners = pipeline["stages"] * pipeline["miners_per_stage"] - len(extra)
        self.start("--miners", str(miners), "--validators", str(validators), "--no-validate",
                   *(word for device in validator_devices for word in ("--validator-device", device)))
        if not extra:
            return self
        self.until(lambda: (self.out / "orchestrator.json").exists(), "the orchestrator")
        address = json.loads((self.out / "orchestrator.json").read_text())["address"]
        self.adversary_log = open(self.folder / "adversary.log", "ab")
        environment = dict(os.environ, TESSERA_CHEAT=str(cheat), TESSERA_CHEAT_SHARE=str(share), TESSERA_CHEAT_SEED=str(seed))
        folders = [self.out / "extra" / str(number) for number in range(len(extra))]
        for folder, (name, stage, device, threads) in zip(folders, extra):
            settings = [f"orchestrator={address}", f"directory={folder}", f"device={device}", f"threads={threads}",
                        f"wanted_stage={stage}"]
            command = [BIN / name, *(part for setting in settings for part in ("--set", setting))]
            self.adversaries.append(subprocess.Popen([str(word) for word in command], env=environment,
                                                     stdout=self.adversary_log, stderr=subprocess.STDOUT))
        self.until(lambda: all((folder / "miner.json").exists() for folder in folders), "the miners beside the swarm")
        keys = [json.loads((folder / "miner.json").read_text())["node"] for folder in folders]
        self.until(lambda: set(keys) <= set(self.keys()), "their registration")
        self.adversary_keys = keys[:len(stages)]
        return self

    def verdicts(self):
        """The ledger's verdicts of audits, in order."""
        found = [event["verdict"] for _, _, event in self.events("verdict")]
        return [verdict for verdict in found if verdict["reason"].startswith("audit ")]

    def keys(self):
        """Of the miners, by their numbers."""
        nodes = [event["registration"]["node"] for _, _, event in self.events("miner_registered")]
        return list(dict.fromkeys(nodes))

    def number_of(self, key):
        return self.keys().index(key)

    def failed(self):
        """All verdicts that void an epoch, of audits and of the ledger itself."""
        found = [event["verdict"] for _, _, event in self.events("verdict")]
        return [verdict for verdict in found if not verdict["passed"] and verdict["kind"] not in (2, 5)]

    def judged(self):
        """Microbatches of audits that passed."""
        counts = [re.search(r": (\d+) microbatches and", verdict["reason"]) for verdict in self.verdicts() if verdict["passed"]]
        return sum(int(count.group(1)) for count in counts if count)
