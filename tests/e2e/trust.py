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

    def start_with(self, cheat, stages, share=1.0, seed=1, validators=1, threads=1):
        """One adversary in each of `stages`; a swarm of honest miners if there are none."""
        pipeline = self.config["pipeline"]
        miners = pipeline["stages"] * pipeline["miners_per_stage"]
        self.start("--miners", str(miners - len(stages)), "--validators", str(validators), "--no-validate")
        if not stages:
            return self
        self.until(lambda: (self.out / "orchestrator.json").exists(), "the orchestrator")
        address = json.loads((self.out / "orchestrator.json").read_text())["address"]
        self.adversary_log = open(self.folder / "adversary.log", "ab")
        environment = dict(os.environ, TESSERA_CHEAT=cheat, TESSERA_CHEAT_SHARE=str(share), TESSERA_CHEAT_SEED=str(seed))
        folders = [self.out / "adversaries" / str(number) for number in range(len(stages))]
        for folder, stage in zip(folders, stages):
            settings = [f"orchestrator={address}", f"directory={folder}", "device=cpu", f"threads={threads}",
                        f"wanted_stage={stage}"]
            command = [BIN / "tessera-test-adversary", *(part for setting in settings for part in ("--set", setting))]
            self.adversaries.append(subprocess.Popen([str(word) for word in command], env=environment,
                                                     stdout=self.adversary_log, stderr=subprocess.STDOUT))
        self.until(lambda: all((folder / "miner.json").exists() for folder in folders), "the adversaries")
        self.adversary_keys = [json.loads((folder / "miner.json").read_text())["node"] for folder in folders]
        self.until(lambda: set(self.adversary_keys) <= set(self.keys()), "the adversaries' registration")
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
        return [verdict for verdict in self.verdicts() if not verdict["passed"] and verdict["kind"] != 5]

    def judged(self):
        """Microbatches of audits that passed."""
        counts = [re.search(r": (\d+) microbatches and", verdict["reason"]) for verdict in self.verdicts() if verdict["passed"]]
        return sum(int(count.group(1)) for count in counts if count)
