#!/usr/bin/env python3
"""Tests of the Neovim plugin in a real Neovim: keys are sent, the screen is read. Prints one line a test.

    tests/nvim/check_plugin.py PREFIX [NAME ...]     PREFIX is where the library is installed; names pick tests
"""
import pathlib
import sys
import time
import traceback

import setting
import test_chat
import test_completion
import test_start


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    setting.use(pathlib.Path(sys.argv[1]).resolve())
    picked, failed, started = sys.argv[2:], 0, time.monotonic()
    for module in (test_start, test_completion, test_chat):
        for name, test in vars(module).items():
            if not name.startswith("test_") or not callable(test) or (picked and name.removeprefix("test_") not in picked):
                continue
            before = time.monotonic()
            try:
                test()
                word = "ok"
            except Exception:  # whatever it is, the next test goes on
                traceback.print_exc(file=sys.stdout)
                word, failed = "FAILED", failed + 1
            print(f"{word} {name.removeprefix('test_')} ({time.monotonic() - before:.1f} s)")
            sys.stdout.flush()
    print(f"{time.monotonic() - started:.0f} s")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
