#!/usr/bin/env python3
"""Checks that the simulator simulates the product and has no protocol of its own.

  scripts/check_simulator.py LIBRARY [--root DIR] [--nm NM]

LIBRARY is the built libtessera_sim.a. Three things are checked:
  - symbols it defines: none in tessera::core, tessera::node, tessera::kernels or tessera::ports, so nothing of the
    product is replaced when it is linked (what the compiler instantiates from headers, weak symbols, does not count);
  - symbols it uses: the daemons' control and jobs are among them (else it simulates something else), and none that
    decides, plans, reduces or applies behind their back;
  - its sources: no function of its own with the name of a decision, no value of a decision made by hand, no subclass of a
    state machine.
Exit status: 0 with a summary line, 1 with violations, 2 when there is nothing to check.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

PRODUCT = re.compile(r"^tessera::(core|node|kernels|ports)::")
STRONG = set("TDBRGS")

# Each must be used.
DRIVEN = [
    r"tessera::node::OrchestratorControl::handle\(",
    r"tessera::node::OrchestratorControl::watch_time\(",
    r"tessera::node::OrchestratorControl::commit\(",
    r"tessera::node::OrchestratorJobs::run\(",
    r"tessera::node::MinerControl::step\(",
    r"tessera::node::MinerControl::work\(",
    r"tessera::node::ComputeJobs::run\(",
    r"tessera::node::BackgroundJobs::run\(",
]
# None may be used: the daemons' code calls them.
DECIDING = [
    r"tessera::kernels::",
    r"tessera::core::butterfly_plan\(",
    r"tessera::core::Miner::(Miner|step|report)\(",
    r"tessera::core::Orchestrator::(news_in|lease_request_in|answer_for|refusal_for|pending_recomputations)\(",
    r"tessera::node::(reduce_shard|unreadable_uploads)\(",
]
# A line of its sources (comments and texts taken out) that matches is a decision of its own.
OWN_LOGIC = [
    (r"\b((choose|plan|grant|propose|route|weigh|admit|reissue|repair|reduce|merge|lease)(_\w+)?|assign_\w+)\s*\(",
     "a function with the name of a decision"),
    (r"\bcore::(Lease|Assignment|MergeDirective|ShardTask|ShardResult|UploadRef|PlannedShard|SyncAnswer|MergeApplied)\s*[{(]",
     "a value that only the product may make"),
    (r"\bpublic\s+(core|node)::(Orchestrator|Miner|OrchestratorControl|MinerControl|ComputeJobs|BackgroundJobs)\b",
     "a subclass of what is to be simulated"),
    (r"\bbutterfly", "the plan of the shards"),
]
COMMENT_OR_TEXT = re.compile(r'//.*|"(?:\\.|[^"\\])*"')


def symbols(nm, library):
    """(kind, demangled name) of every symbol."""
    listing = subprocess.run([nm, "-C", library], capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        match = re.match(r"^(?:[0-9a-fA-F]+)?\s+([A-Za-z])\s+(.*)$", line)
        if match:
            yield match.group(1), match.group(2)


def check_symbols(found):
    problems = []
    used = [name for kind, name in found if kind == "U"]
    for kind, name in found:
        if kind in STRONG and PRODUCT.match(name):
            problems.append(f"defines {name}, which is the product's")
    for pattern in DRIVEN:
        if not any(re.match(pattern, name) for name in used):
            problems.append(f"does not use {pattern.rstrip('(').replace(chr(92), '')}: what does it simulate?")
    for pattern in DECIDING:
        for name in used:
            if re.match(pattern, name):
                problems.append(f"calls {name} itself; that is for the daemons' code")
    return problems


def check_sources(root):
    files = [file for tree in ("src/sim", "include/tessera/sim") for file in sorted((root / tree).rglob("*"))
             if file.suffix in (".h", ".cpp")]
    problems = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            code = COMMENT_OR_TEXT.sub("", line)
            for pattern, what in OWN_LOGIC:
                match = re.search(pattern, code)
                if match:
                    problems.append(f"{file.relative_to(root)}:{number}: '{match.group(0).strip()}': {what}")
    return len(files), problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--nm", default="nm")
    options = parser.parse_args()
    count, problems = check_sources(options.root.resolve())
    if count == 0 or not options.library.is_file():
        print(f"check_simulator: no sources below {options.root}, or no {options.library}", file=sys.stderr)
        return 2
    found = list(symbols(options.nm, options.library))
    problems += [f"{options.library.name}: {problem}" for problem in check_symbols(found)]
    for problem in problems:
        print(problem)
    if problems:
        print(f"check_simulator: {len(problems)} violations", file=sys.stderr)
        return 1
    print(f"check_simulator: {count} files, {len(found)} symbols, no logic of its own")
    return 0


if __name__ == "__main__":
    sys.exit(main())
