#!/usr/bin/env python3
"""Checks the layers of the source tree (docs/architecture.md draws them).

Reads the #include lines of include/tessera/<module>, src/<module> and kernels/ and prints every violation as
`file:line: reason`:
  - a module includes only the project modules below it; siblings never include each other;
  - the headers of src/<module> are private to that module;
  - a third party is used by the modules that own it and no other;
  - core is pure: no clock, thread, log, file or standard random numbers;
  - no file is left with an open-work marker, and none is longer than MAX_LINES.
Exit status: 0 with a summary line, 1 with violations, 2 when there is nothing to check.
"""

import argparse
import re
import sys
from pathlib import Path, PurePosixPath

# What each module may include of the project, itself aside. ANY: everything.
ANY = None
LEVEL_0_AND_1 = {"base", "core", "ports", "kernels"}
ALLOWED = {
    # L0
    "base": set(),
    # L1
    "core": {"base"},
    "kernels": {"base"},
    "ports": {"base", "core"},
    # L2
    "model": LEVEL_0_AND_1,
    "net": LEVEL_0_AND_1,
    "store": LEVEL_0_AND_1,
    "config": LEVEL_0_AND_1,
    "data": LEVEL_0_AND_1,
    "collective": LEVEL_0_AND_1,
    "web": LEVEL_0_AND_1,
    # L3
    "node": LEVEL_0_AND_1,
    "sim": LEVEL_0_AND_1 | {"config", "node"},  # turns the nodes' clocks by hand
    # L4
    "apps": ANY,
}

# (name, pattern of the included path, the modules that may use it)
THIRD_PARTIES = [
    ("LibTorch", r"(torch|ATen|c10|caffe2)/", {"model", "collective"}),
    ("gRPC", r"(grpc|grpcpp|grpc\+\+)/", {"net"}),
    ("protobuf", r"google/(protobuf|rpc)/", {"net"}),
    ("generated protocol code", r".*\.pb\.h$", {"net"}),
    ("NCCL", r"nccl[\w.]*\.h$", {"collective"}),
    ("yaml-cpp", r"yaml-cpp/", {"config"}),
    ("SQLite", r"sqlite3(ext)?\.h$", {"store"}),
    ("PostgreSQL", r"(pqxx/|pqxx$|libpq-fe\.h$)", {"store"}),
    ("CLI11", r"CLI/", {"apps"}),
    ("libsodium", r"sodium(\.h$|/)", {"base"}),
    ("SentencePiece", r"sentencepiece", {"data"}),
    ("zlib", r"z(lib|conf)\.h$", {"data"}),
    ("CUDA", r"(cuda[\w]*\.h(pp)?$|cuda/|cub/|thrust/|cooperative_groups|device_launch_parameters\.h$|mma\.h$|nv\w+\.h$)",
     {"kernels", "model"}),
]

# Core takes time, randomness and I/O as data (house rule 1).
IMPURE_INCLUDE = re.compile(
    r"(thread|mutex|shared_mutex|condition_variable|future|fstream|iostream|filesystem|random|unistd\.h"
    r"|spdlog/.*|tessera/base/(log|files|bounded_queue)\.h)$")
IMPURE_CALL = re.compile(r"\b(monotonic_now_ms|unix_now_ms|steady_clock|system_clock|random_bytes|random_u64)\b")

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]')
# Spelt in two parts, so that this file would pass its own check.
OPEN_WORK = re.compile(r"\b(TO" r"DO|FIX" r"ME)\b")
MAX_LINES = 400
SOURCE_SUFFIXES = {".h", ".hpp", ".cuh", ".c", ".cc", ".cpp", ".cu"}


def source_files(root):
    """(module, path below root) of every file under the three trees, in order. Module is None outside any."""
    files = []
    for tree, first in (("include/tessera", 2), ("src", 1), ("kernels", 0)):
        for path in sorted((root / tree).rglob("*")):
            if not path.is_file() or "__pycache__" in path.parts:
                continue
            relative = PurePosixPath(path.relative_to(root).as_posix())
            depth = len(relative.parts)
            module = relative.parts[first] if depth > first + 1 or tree == "kernels" else None
            files.append((module, relative))
    return files


def resolve(root, file, name):
    """The project file that `#include "name"` in `file` finds, relative to root, or None."""
    for base in ((root / str(file)).parent, root / "include", root / "src", root):
        candidate = (base / name).resolve()
        if candidate.is_file() and candidate.is_relative_to(root):
            return PurePosixPath(candidate.relative_to(root).as_posix())
    return None


def project_target(root, file, name):
    """(module, is_private) of the project header `name`; (None, False) if it is not one of the project's."""
    found = resolve(root, file, name)
    parts = found.parts if found else PurePosixPath(name).parts
    if found and parts[0] == "src" and len(parts) > 2:
        return parts[1], True
    if found and parts[0] == "kernels":
        return "kernels", True
    if found and parts[:2] == ("include", "tessera") and len(parts) > 3:
        return parts[2], False
    # A header that is not there (yet): its name says enough. tessera/v1 is generated.
    if not found and parts[0] == "tessera" and len(parts) > 2 and parts[1] != "v1":
        return parts[1], False
    return None, False


def check_include(root, module, file, name):
    """The reason why `module` must not include `name`, or None."""
    for party, pattern, owners in THIRD_PARTIES:
        if re.match(pattern, name) and module not in owners:
            return f"{party} ({name}) is for {' and '.join(sorted(owners))} only, not for {module}"
    if module == "core" and IMPURE_INCLUDE.match(name):
        return f"core is pure: no clock, thread, log, file or random numbers, so not {name}"
    target, private = project_target(root, file, name)
    if target is None or target == module:
        return None
    if target not in ALLOWED:
        return f"{name}: the module {target} is not in the layer table of scripts/check_layers.py"
    if private:
        return f"{name} is private to {target}; include its headers in include/tessera/{target}"
    allowed = ALLOWED[module]
    if allowed is not ANY and target not in allowed:
        below = ", ".join(sorted(allowed)) or "nothing of the project"
        return f"{module} must not include {target} ({name}); it may include {below}"
    return None


def check_file(root, module, file):
    """Every violation of one file as (line, reason)."""
    try:
        lines = (root / str(file)).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return []  # not text
    is_source = file.suffix in SOURCE_SUFFIXES
    problems = []
    if is_source and module is None:
        problems.append((1, "lies outside any module's folder"))
    elif is_source and module not in ALLOWED:
        problems.append((1, f"the module {module} is not in the layer table of scripts/check_layers.py"))
    for number, line in enumerate(lines, 1):
        marker = OPEN_WORK.search(line)
        if marker:
            problems.append((number, f"{marker.group()} left in the code: finish it, or write it into docs/"))
        if not is_source or module not in ALLOWED:
            continue
        include = INCLUDE.match(line)
        reason = check_include(root, module, file, include.group(2)) if include else None
        if reason:
            problems.append((number, reason))
        call = IMPURE_CALL.search(line.split("//")[0]) if module == "core" else None
        if call:
            problems.append((number, f"core is pure: {call.group()} belongs to the caller, as an argument"))
    if len(lines) > MAX_LINES:
        problems.append((MAX_LINES + 1, f"{len(lines)} lines; the limit is {MAX_LINES}: split the file"))
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent,
                        help="the source tree (default: the one this script lies in)")
    root = parser.parse_args().root.resolve()
    files = source_files(root)
    if not files:
        print(f"check_layers: no files under {root}/include/tessera, src or kernels", file=sys.stderr)
        return 2
    violations = 0
    for module, file in files:
        for line, reason in check_file(root, module, file):
            print(f"{file}:{line}: {reason}")
            violations += 1
    if violations:
        print(f"check_layers: {violations} violations in {len(files)} files", file=sys.stderr)
        return 1
    modules = len({module for module, _ in files if module in ALLOWED})
    print(f"check_layers: {len(files)} files of {modules} modules, no violations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
