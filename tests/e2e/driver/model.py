#!/usr/bin/env python3
"""The state model test: random changes, checkpoints and rollbacks to random checkpoints, compared with what was.

A program in the sandbox (tests/probes/model) makes changes from a seed and can say all that it observes of itself.
This driver remembers what it said at each checkpoint; after a rollback it must say exactly that again. The tree of
checkpoints grows in all directions; sometimes everything is killed before a rollback.

Usage: model.py [--operations N] [--seed S] [--keep-going] [--without "sockets shared ..."]. Without a seed a new one is drawn and printed.
"""

import argparse
import difflib
import os
import random
import sys
import time

from dbx import Deltabox, Ended, Failed, Timeout, scratch
import selftest

STEPS_MAX = 12


class Model:
    def __init__(self, sandbox, without):
        self.talk = sandbox.talk("sh", "-c", "echo $$; mkdir -p /model; cd /model; /probes/model " + without + "; echo EXIT $?; "
                                             "read x < /probes/never")
        self.wrapper = self.talk.line()
        self.kills = 0
        self.expect("READY")

    def expect(self, want):
        line = self.line()
        if line != want:
            raise Ended(f"the program says {line!r}, not {want!r}")

    def line(self):
        while True:
            line = self.talk.line(20)
            if not line.startswith("EXIT "):
                return line
            if not self.kills:
                raise Ended(f"the program ended by itself: {line}")
            self.kills -= 1

    def step(self, seed, count):
        self.talk.send(f"s {seed} {count}\n")
        self.expect("ok")

    def observe(self):
        self.talk.send("d\n")
        lines = []
        while (line := self.line()) != ".":
            if line.startswith("BROKEN"):
                raise Ended(line)
            lines.append(line)
        return lines


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--operations", type=int, default=int(os.environ.get("MODEL_OPERATIONS", "200")))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("MODEL_SEED", "0")) or random.getrandbits(48))
    parser.add_argument("--without", default="", help="kinds of changes to leave out: sockets shared files ...")
    parser.add_argument("--keep-going", action="store_true", help="start a new sandbox after a mismatch")
    args = parser.parse_args()
    print(f"seed {args.seed}, {args.operations} operations", flush=True)
    rng = random.Random(args.seed)
    binaries = scratch("model")
    for name in ("model/model", "tools/kill_all_but"):
        ok, text = selftest.build(name, binaries)
        if not ok:
            sys.exit(text)
    box = Deltabox()
    count = {"changes": 0, "checkpoints": 0, "rollbacks": 0, "killed before": 0}
    mismatches, done, generation = 0, 0, 0
    while done < args.operations:
        generation += 1
        sandbox = box.sandbox(f"model{generation}")
        sandbox.put([binaries / "model", binaries / "kill_all_but"], "/probes")
        sandbox.run("mkfifo", "/probes/never")
        model, nodes, history = Model(sandbox, args.without), [], []
        model.step(rng.getrandbits(60), 40)
        try:
            while done < args.operations:
                done += 1
                choice = rng.random()
                if choice < 0.5 or not nodes:
                    seed, n = rng.getrandbits(60), rng.randint(1, STEPS_MAX)
                    history.append(f"s {seed} {n}")
                    model.step(seed, n)
                    count["changes"] += n
                if choice < 0.75 and choice >= 0.5 or not nodes:
                    said = model.observe()
                    nodes.append((sandbox.checkpoint()["id"], said))
                    history.append(f"checkpoint {nodes[-1][0]}")
                    count["checkpoints"] += 1
                elif choice >= 0.75:
                    node, said = rng.choice(nodes[-12:] if rng.random() < 0.7 else nodes)
                    if rng.random() < 0.15:
                        sandbox.run("/probes/kill_all_but", model.wrapper)
                        model.kills += 1
                        history.append("kill")
                        count["killed before"] += 1
                    history.append(f"rollback {node}")
                    sandbox.rollback(node)
                    count["rollbacks"] += 1
                    now = model.observe()
                    if now != said:
                        mismatches += 1
                        print(f"MISMATCH at operation {done}, after: {'; '.join(history[-8:])}")
                        for text in list(difflib.unified_diff(said, now, "was", "is", n=0, lineterm=""))[:30]:
                            print("  " + text[:600])
                        break
        except (Failed, Timeout, Ended) as e:
            mismatches += 1
            print(f"FAILED at operation {done}, after: {'; '.join(history[-8:])}\n  {e}\n{sandbox.describe()}")
            print("end of the daemon's log:", *box.log().splitlines()[-6:], sep="\n  ")
        sandbox.remove()
        if mismatches and not args.keep_going or mismatches >= 20:
            break
    print(f"{done} operations ({', '.join(f'{v} {k}' for k, v in count.items())}), {mismatches} mismatches; "
          f"seed {args.seed}")
    return 1 if mismatches else 0


if __name__ == "__main__":
    started = time.monotonic()
    status = main()
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(status)
