"""Validators name the miner that cheats, and nobody else."""

import unittest

from trust import TrustSwarm


AUDIT_NOTHING = {"audit": {"share": 0.0, "upload_share": 0.0}, "training": {"steps": 400}}


class Trust(unittest.TestCase):
    def named(self, cheat, stage, finding, share=1.0, changes=None, by_audit=True):
        with TrustSwarm(changes) as swarm:
            swarm.start_with(cheat, [stage], share)
            swarm.until(lambda: swarm.failed(), f"a verdict on the {cheat} miner")
            failed = swarm.failed()
            adversary = swarm.number_of(swarm.adversary_keys[0])
            self.assertEqual({verdict["miner"] for verdict in failed}, {adversary}, failed)
            self.assertIn(finding, failed[0]["reason"])
            if by_audit:  # else the ledger itself is the evidence
                self.assertNotEqual(failed[0]["evidence"], "0" * 64)

    def test_honest_miners_pass_every_audit(self):
        # How many audits a validator gets done before a run ends depends on the machine: the run is long, and they are waited for.
        with TrustSwarm({"training": {"steps": 400}}) as swarm:
            swarm.start_with(None, [])
            swarm.until(lambda: len(swarm.verdicts()) > 30 and swarm.judged() > 150, "thirty audits")
            self.assertEqual(swarm.failed(), [])

    def test_noise_is_named(self):
        self.named("noise", 1, "activation")

    def test_noise_that_is_called_repaired_work_is_named(self):
        self.named("noise-called-repaired", 1, "activation")

    def test_flipped_gradients_are_named(self):
        self.named("flipped-gradient", 1, "gradient")

    def test_a_wrong_loss_is_named(self):
        self.named("wrong-loss", 2, "loss")

    def test_frozen_weights_are_named(self):
        self.named("frozen-weights", 0, "weights")

    def test_invented_receipts_are_named(self):
        self.named("invented-receipts", 1, "receipts", share=0.3, changes=AUDIT_NOTHING, by_audit=False)

    def test_replayed_receipts_are_named(self):
        self.named("replayed-receipts", 1, "of one process both say", share=0.3, changes=AUDIT_NOTHING, by_audit=False)

    def test_an_upload_of_other_weights_is_named(self):
        changes = {"audit": {"share": 0.0, "upload_share": 1.0}, "training": {"steps": 400}, "merge": {"min_microbatches": 32}}
        self.named("poisoned-weights", 1, "upload", changes=changes)


if __name__ == "__main__":
    unittest.main(verbosity=2)
