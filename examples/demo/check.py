#!/usr/bin/env python3
"""Tries every candidate on a plain copy of the program and compares with what candidates.json says of it.

This keeps the material true. It is also what the demo does without DeltaBox: one copy of the directory for each
state that has to be returned to.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def outcome(directory, test, before):
    """Runs the tests in a directory."""
    try:
        done = subprocess.run(test["command"], cwd=directory, capture_output=True, text=True, timeout=test["timeout_s"])
    except subprocess.TimeoutExpired:
        return {"verdict": "timeout"}
    ran = re.search(r"^Ran (\d+) tests?", done.stderr, re.MULTILINE)
    count = {kind: re.search(rf"{kind}=(\d+)", done.stderr) for kind in ("failures", "errors")}
    result = {"tests": int(ran[1]) if ran else 0}
    result.update({kind: int(found[1]) if found else 0 for kind, found in count.items()})
    return {"verdict": verdict(result, before, test["tests"]), **result}


def verdict(result, before, wanted):
    """Fewer tests than there should be are worse, whatever they say."""
    bad = result["failures"] + result["errors"]
    if result["tests"] < wanted or result["errors"]:
        return "worse"
    if bad == 0:
        return "passes"
    was = before["failures"] + before["errors"]
    return "better" if bad < was else "same" if bad == was else "worse"


def apply(candidate, directory):
    for path, source in candidate["files"].items():
        shutil.copyfile(HERE / source, directory / path)
    for path in candidate["delete"]:
        (directory / path).unlink()


def main():
    material = json.loads((HERE / "candidates.json").read_text(encoding="utf-8"))
    test = material["test"]
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        start = Path(scratch, "start")
        shutil.copytree(HERE / material["program"], start)
        states = {None: (start, outcome(start, test, material["start"]))}
        found = {key: states[None][1].get(key) for key in material["start"]}
        wrong += report("start", found, material["start"])
        for candidate in material["candidates"]:
            parent, before = states[candidate["parent"]]
            directory = Path(scratch, candidate["id"])
            shutil.copytree(parent, directory)
            apply(candidate, directory)
            found = outcome(directory, test, before)
            states[candidate["id"]] = (directory, found)
            wrong += report(candidate["id"], found, candidate["outcome"])
    return 1 if wrong else 0


def report(name, found, expected):
    right = found == expected
    print(f"{'ok   ' if right else 'WRONG'} {name}: {found}" + ("" if right else f", expected {expected}"))
    return not right


if __name__ == "__main__":
    sys.exit(main())
