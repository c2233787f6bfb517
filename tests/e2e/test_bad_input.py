"""Mistakes of a user: a clear message, a non-zero exit code, nothing lost."""

import array
import json
import socket
import subprocess
import unittest

from swarm import BIN, TINY, Swarm, merged, sample_text


def tesseractl(*arguments):
    return subprocess.run([str(BIN / "tesseractl"), *map(str, arguments)], capture_output=True, text=True, timeout=60)


class BadInput(unittest.TestCase):
    def test_configuration_errors_name_file_line_and_key(self):
        with Swarm(TINY) as swarm:
            path = swarm.folder / "bad.yaml"
            path.write_text("training:\n  stpes: 3\n")
            result = tesseractl("config", "check", path)
            self.assertEqual(result.returncode, 1)
            self.assertIn(f"{path}:2: training.stpes: unknown key; did you mean 'steps'?", result.stderr)
            result = tesseractl("swarm", "local", "--config", path, "--out", swarm.out)
            self.assertEqual(result.returncode, 1)
            self.assertIn("stpes", result.stderr)
            self.assertFalse(swarm.out.exists())

    def test_usage_errors_have_their_own_exit_code(self):
        self.assertEqual(tesseractl("no-such-command").returncode, 2)
        self.assertEqual(tesseractl("--help").returncode, 0)

    def test_missing_text_and_foreign_folder(self):
        with Swarm(merged(TINY, {})) as swarm:
            swarm.text = swarm.folder / "absent.txt"
            swarm.start()
            self.assertEqual(swarm.process.wait(60), 1)
            self.assertIn("absent.txt", swarm.tail())

    def test_a_second_run_in_the_same_folder_is_refused(self):
        with Swarm(merged(TINY, {"training": {"steps": 2}})) as swarm:
            swarm.start("--no-validate").wait()
            ledger = (swarm.out / "journal.sqlite").read_bytes()
            swarm.start("--no-validate")
            self.assertEqual(swarm.process.wait(60), 1)
            self.assertIn("--resume", swarm.tail())
            self.assertEqual((swarm.out / "journal.sqlite").read_bytes(), ledger)

    def test_a_damaged_shard_is_named_before_anything_starts(self):
        with Swarm(TINY) as swarm:
            data = swarm.folder / "data"
            self.assertEqual(tesseractl("data", "build", swarm.text, "--out", data).returncode, 0)
            manifest = json.loads((data / "manifest.json").read_text())
            shard = data / manifest["train"][0]["file"]
            content = bytearray(shard.read_bytes())
            content[100] ^= 1
            shard.write_bytes(bytes(content))
            config = swarm.folder / "run.yaml"
            config.write_text(json.dumps(merged(TINY, {"data": {"path": str(data)}})))
            result = tesseractl("swarm", "local", "--config", config, "--out", swarm.out)
            self.assertEqual(result.returncode, 1)
            self.assertIn(shard.name, result.stderr)

    def test_bin_shards_of_others_train_and_bad_ones_are_refused(self):
        with Swarm(merged(TINY, {"training": {"steps": 2}})) as swarm:
            ids = array.array("H", (i * i % 251 for i in range(4000)))
            header = array.array("i", [20240520, 1, len(ids)] + [0] * 253)
            llm_c, nano = swarm.folder / "train.bin", swarm.folder / "val.bin"
            llm_c.write_bytes(header.tobytes() + ids.tobytes())
            nano.write_bytes(ids[:1000].tobytes())
            data = swarm.folder / "data"
            words = ["data", "import", "--train", llm_c, "--validation", nano, "--out", data]
            self.assertEqual(tesseractl(*words, "--vocab", 100).returncode, 1)  # ids up to 250
            result = tesseractl(*words, "--vocab", 251, "--json")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual(json.loads(result.stdout)["train"], {"shards": 1, "tokens": 4000})
            config = swarm.folder / "run.yaml"
            config.write_text(json.dumps(merged(swarm.config, {"data": {"path": str(data)}})))
            result = tesseractl("swarm", "local", "--config", config, "--out", swarm.out, "--device", "cpu", "--json")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIsInstance(json.loads(result.stdout)["val_loss"], float)

    def test_port_in_use(self):
        with Swarm(TINY) as swarm, socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            run = swarm.folder / "run.yaml"
            run.write_text(json.dumps(merged(TINY, {"data": {"text": [str(sample_text(swarm.folder / "t.txt"))]}})))
            daemon = swarm.folder / "orchestrator.yaml"
            daemon.write_text(f"listen: {address}\ndirectory: {swarm.out}\nrun_config: {run}\n")
            result = subprocess.run([str(BIN / "tessera-orchestrator"), "--config", str(daemon)], capture_output=True,
                                    text=True, timeout=60)
            self.assertEqual(result.returncode, 1)
            self.assertIn(address, result.stderr)
            self.assertIn("in use", result.stderr)

    def test_a_miner_waits_for_its_orchestrator(self):
        with Swarm(TINY) as swarm, socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
            free.close()
            log = swarm.folder / "miner.log"
            with open(log, "wb") as output:
                miner = subprocess.Popen([str(BIN / "tessera-miner"), "--set", f"orchestrator={address}", "--set",
                                          f"directory={swarm.folder / 'm'}", "--set", "device=cpu"], stdout=output, stderr=output)
            try:
                swarm.process = miner
                swarm.until(lambda: "trying again" in log.read_text(), "the miner to say that it waits")
                key = swarm.folder / "m" / "miner.key"
                self.assertEqual(key.stat().st_mode & 0o777, 0o600)
                miner.terminate()
                self.assertEqual(miner.wait(10), 0)
            finally:
                miner.kill()


if __name__ == "__main__":
    unittest.main(verbosity=2)
