#!/usr/bin/env python3
"""The watcher: holds everything that could notice a checkpoint, and must see nothing of very many of them.

Usage: watch.py [--checkpoints N]
"""

import argparse
import os
import sys
import time

from dbx import Deltabox, Failed, scratch
import probes
import selftest


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=int, default=int(os.environ.get("WATCH_CHECKPOINTS", "1000")))
    args = parser.parse_args()
    binaries = scratch("watch")
    errors = selftest.build_all(binaries, ["watcher"])
    ok, text = selftest.build("tools/kill_all_but", binaries)
    if errors or not ok:
        sys.exit("\n".join([text, *errors.values()]))
    box = Deltabox()
    with box.sandbox("watched") as sandbox:
        sandbox.put([binaries / "watcher", binaries / "kill_all_but"], "/probes")
        sandbox.run("mkfifo", "/probes/never")
        probe = probes.Probe(sandbox, "watcher", "/watch")
        stopped, total = [], []
        started = time.monotonic()
        try:
            for n in range(args.checkpoints):
                r = sandbox.checkpoint()
                stopped.append(r["stopped_ms"])
                total.append(r["total_ms"])
                if n % 3 == 0:  # now and then something changes elsewhere, so that there is something to freeze
                    sandbox.sh(f"echo {n} > /elsewhere")
        except Failed as e:
            print(f"checkpoint {len(total) + 1} failed: {e}")
            return 1
        answer = probe.command("c", timeout=60)
        stopped.sort(), total.sort()
        print(f"{args.checkpoints} checkpoints in {time.monotonic() - started:.1f} s; the watcher says: {answer}")
        print(f"stopped p50 {stopped[len(stopped) // 2]:.2f} ms, p99 {stopped[len(stopped) * 99 // 100]:.2f} ms; "
              f"total p50 {total[len(total) // 2]:.2f} ms, p99 {total[len(total) * 99 // 100]:.2f} ms")
        return 0 if answer == "PASS" else 1


if __name__ == "__main__":
    sys.exit(main())
