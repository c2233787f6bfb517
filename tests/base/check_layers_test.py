#!/usr/bin/env python3
"""Runs scripts/check_layers.py (its path is the argument) on small trees with planted violations."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

CHECKER = sys.argv.pop(1)

CLEAN = {
    "include/tessera/base/bytes.h": "#pragma once\n#include <string>\n",
    "include/tessera/base/clock.h": "#pragma once\n",
    "include/tessera/core/lease.h": '#pragma once\n#include "tessera/base/bytes.h"\n',
    "include/tessera/ports/engine.h": '#include "tessera/core/lease.h"\n',
    "include/tessera/kernels/merge.h": '#include "tessera/base/bytes.h"\n',
    "include/tessera/store/journal.h": '#include "tessera/core/lease.h"\n',
    "include/tessera/net/hub.h": "#pragma once\n",
    "include/tessera/node/miner.h": '#include "tessera/ports/engine.h"\n',
    "src/base/crypto.cpp": "#include <sodium.h>\n",
    "src/store/sqlite.h": "#include <sqlite3.h>\n",
    "src/store/journal.cpp": '#include "tessera/store/journal.h"\n#include "store/sqlite.h"\n#include "sqlite.h"\n',
    "src/net/hub.cpp": '#include <grpcpp/grpcpp.h>\n#include "tessera/v1/hub.grpc.pb.h"\n',
    "src/model/stage.cpp": '#include <torch/torch.h>\n#include <cuda_runtime.h>\n#include "tessera/kernels/merge.h"\n',
    "src/apps/orchestrator.cpp": '#include <CLI/CLI.hpp>\n#include "tessera/net/hub.h"\n#include "tessera/node/miner.h"\n',
    "src/CMakeLists.txt": "add_subdirectory(base)\n",
    "kernels/merge.cu": '#include <cuda_runtime.h>\n#include "tessera/kernels/merge.h"\n#include "merge.cuh"\n',
    "kernels/merge.cuh": "// math\n",
}

# File, line that is added to it, what the report must say.
PLANTED = [
    ("include/tessera/core/lease.h", '#include "tessera/store/journal.h"', "core must not include store"),
    ("include/tessera/core/lease.h", '#include "tessera/ports/engine.h"', "core must not include ports"),
    ("include/tessera/base/bytes.h", '#include "tessera/core/lease.h"', "base must not include core"),
    ("src/store/journal.cpp", '#  include "tessera/net/hub.h"', "store must not include net"),
    ("src/store/journal.cpp", '#include "../net/hub_private.h"', "private to net"),
    ("src/apps/orchestrator.cpp", '#include "store/sqlite.h"', "private to store"),
    ("include/tessera/node/miner.h", '#include "tessera/store/journal.h"', "node must not include store"),
    ("include/tessera/node/miner.h", '#include "tessera/unheard/of.h"', "not in the layer table"),
    ("kernels/merge.cu", '#include "tessera/core/lease.h"', "kernels must not include core"),
    ("src/net/hub.cpp", '#include "tessera/core/absent.h"', None),  # allowed, though the file is not there
    ("src/net/hub.cpp", '#include "tessera/store/absent.h"', "net must not include store"),
    ("src/net/hub.cpp", "#include <torch/torch.h>", "LibTorch"),
    ("src/net/hub.cpp", "// #include <torch/torch.h>", None),
    ("src/store/journal.cpp", "#include <ATen/ATen.h>", "LibTorch"),
    ("src/model/stage.cpp", "#include <c10/core/Device.h>", None),
    ("src/model/stage.cpp", "#include <grpcpp/server.h>", "gRPC"),
    ("src/store/journal.cpp", "#include <google/protobuf/message.h>", "protobuf"),
    ("include/tessera/node/miner.h", '#include "tessera/v1/hub.pb.h"', "generated protocol code"),
    ("src/model/stage.cpp", "#include <nccl.h>", "NCCL"),
    ("src/store/journal.cpp", "#include <yaml-cpp/yaml.h>", "yaml-cpp"),
    ("src/net/hub.cpp", "#include <sqlite3.h>", "SQLite"),
    ("src/net/hub.cpp", "#include <pqxx/pqxx>", "PostgreSQL"),
    ("src/net/hub.cpp", "#include <CLI/CLI.hpp>", "CLI11"),
    ("src/net/hub.cpp", "#include <sodium.h>", "libsodium"),
    ("src/net/hub.cpp", "#include <sentencepiece_processor.h>", "SentencePiece"),
    ("src/net/hub.cpp", "#include <zlib.h>", "zlib"),
    ("src/net/hub.cpp", "#include <cuda_runtime_api.h>", "CUDA"),
    ("include/tessera/core/lease.h", "#include <thread>", "core is pure"),
    ("include/tessera/core/lease.h", '#include "tessera/base/clock.h"', None),  # its type, not its functions
    ("include/tessera/core/lease.h", "inline auto now() { return unix_now_ms(); }", "core is pure"),
    ("src/net/hub.cpp", "int x;  // TO" "DO finish", "left in the code"),
    ("src/CMakeLists.txt", "# FIX" "ME", "left in the code"),
    ("src/net/hub.cpp", "#define METHODO 1", None),
    ("src/net/hub.cpp", "\n" * 398, "401 lines; the limit is 400"),
    ("src/net/hub.cpp", "\n" * 397, None),
    ("src/unheard/of.cpp", "int x;", "not in the layer table"),
    ("src/loose.cpp", "int x;", "outside any module's folder"),
]


def check(files):
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return subprocess.run([sys.executable, CHECKER, "--root", folder], capture_output=True, text=True, check=False)


class CheckLayersTest(unittest.TestCase):
    def test_clean_tree(self):
        result = check(CLEAN)
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertEqual(result.stdout, f"check_layers: {len(CLEAN)} files of 9 modules, no violations\n")

    def test_planted_lines(self):
        for name, line, expected in PLANTED:
            with self.subTest(file=name, line=line.strip()):
                files = dict(CLEAN)
                files["src/net/hub_private.h"] = "#pragma once\n"
                before = files.get(name, "")
                files[name] = before + line + "\n"
                result = check(files)
                if expected is None:
                    self.assertEqual(result.returncode, 0, result.stdout)
                    continue
                self.assertEqual(result.returncode, 1, result.stdout)
                self.assertEqual(result.stdout.count("\n"), 1, result.stdout)
                self.assertIn(expected, result.stdout)
                self.assertRegex(result.stdout, rf"^{name}:\d+: ")
                if "401 lines" not in expected and before:
                    self.assertIn(f":{before.count(chr(10)) + 1}: ", result.stdout)

    def test_every_violation_is_printed(self):
        files = dict(CLEAN)
        files["src/net/hub.cpp"] = "#include <torch/torch.h>\n#include <sqlite3.h>\n"
        files["src/store/journal.cpp"] = '#include "tessera/net/hub.h"\n'
        result = check(files)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stdout.count("\n"), 3, result.stdout)
        self.assertIn("3 violations", result.stderr)

    def test_nothing_to_check_is_an_error(self):
        self.assertEqual(check({"README": ""}).returncode, 2)


if __name__ == "__main__":
    unittest.main()
