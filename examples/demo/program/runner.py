"""Runs the tests again and again in one living process.

Reads commands from standard input, one a line, and answers each with one line of JSON:

    run        reload the program, run all tests; {"run": 3, "tests": 22, "failures": 1, "errors": 0}
    history    the results of all runs so far, which this process only has in its memory
    quit

A program that loops forever hangs this process, as it would hang any worker: there is no way back but to kill it,
or to roll it back.
"""

import io
import json
import os
import sys
import unittest


def run(history):
    """One run of all tests against the files as they are now."""
    for name in [n for n in sys.modules if n.split(".")[0] in ("planner", "tests")]:
        del sys.modules[name]
    suite = unittest.TestLoader().discover("tests", top_level_dir=".")
    result = unittest.TextTestRunner(stream=io.StringIO()).run(suite)
    history.append(
        {
            "run": len(history) + 1,
            "tests": result.testsRun,
            "failures": len(result.failures),
            "errors": len(result.errors),
        }
    )
    return history[-1]


def main():
    sys.dont_write_bytecode = True
    sys.path.insert(0, os.getcwd())
    history = []
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "run":
            answer = run(history)
        elif command == "history":
            answer = {"pid": os.getpid(), "history": history}
        elif command == "quit":
            break
        else:
            answer = {"error": f"unknown command {command!r}; known: run, history, quit"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
