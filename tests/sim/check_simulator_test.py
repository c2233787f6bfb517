"""scripts/check_simulator.py must pass what is right and find every kind of violation."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = sys.argv.pop(1)
COMPILER = sys.argv.pop(1)

# Calls what a simulator must call, from declarations of the same names.
DRIVER = """
namespace tessera::node {
struct OrchestratorControl { void handle(int); void watch_time(); void commit(); };
struct OrchestratorJobs { void run(int); };
struct MinerControl { void step(int); void work(int); };
struct ComputeJobs { void run(int); };
struct BackgroundJobs { void run(int); };
bool reduce_shard(int);
}
namespace tessera::kernels { void outer_step_cpu(int); }
namespace tessera::core { int butterfly_plan(int); }
namespace tessera::sim {
using namespace node;
void drive(OrchestratorControl& o, OrchestratorJobs& j, MinerControl& m, ComputeJobs& c, BackgroundJobs& b) {
  o.handle(1); o.watch_time(); o.commit(); j.run(1); m.step(1); m.work(1); c.run(1); b.run(1);
}
}
"""


class CheckSimulator(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        (self.root / "src/sim").mkdir(parents=True)
        self.write("src/sim/clock.cpp", "// the lease of a clock: choose_one()\nint tick() { return 1; }\n")

    def write(self, path, text):
        (self.root / path).write_text(text)

    def check(self, code=DRIVER):
        self.write("all.cpp", code)
        subprocess.run([COMPILER, "-std=c++20", "-c", "all.cpp", "-o", "all.o"], cwd=self.root, check=True)
        subprocess.run(["ar", "rc", "libtessera_sim.a", "all.o"], cwd=self.root, check=True)
        return subprocess.run([sys.executable, SCRIPT, str(self.root / "libtessera_sim.a"), "--root", str(self.root)],
                              capture_output=True, text=True)

    def expect_violation(self, part, code=DRIVER):
        result = self.check(code)
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        self.assertIn(part, result.stdout)

    def test_accepts_a_simulator_that_only_drives(self):
        result = self.check()
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_finds_a_definition_of_the_product(self):
        self.expect_violation("defines tessera::core::choose()", DRIVER + "namespace tessera::core { int choose() { return 1; } }")

    def test_finds_that_it_drives_something_else(self):
        self.expect_violation("does not use tessera::node::MinerControl::step", DRIVER.replace("m.step(1);", ""))

    def test_finds_calls_behind_the_daemons_back(self):
        for call in ("node::reduce_shard(1)", "kernels::outer_step_cpu(1)", "core::butterfly_plan(1)"):
            self.expect_violation("itself", DRIVER + f"namespace tessera::sim {{ void cheat() {{ {call}; }} }}")

    def test_finds_decisions_in_the_sources(self):
        for line in ("int choose_downstream(int a);", "auto lease = core::Lease{1, 2};", "x = propose_pathway(1);",
                     "class Mine : public core::Miner {};", "auto p = butterfly_of(3);", "int route(int to);"):
            self.write("src/sim/own.cpp", line + "\n")
            self.expect_violation("src/sim/own.cpp:1")

    def test_says_when_there_is_nothing_to_check(self):
        result = subprocess.run([sys.executable, SCRIPT, "nowhere.a", "--root", str(self.root)], capture_output=True)
        self.assertEqual(result.returncode, 2)


if __name__ == "__main__":
    unittest.main()
