"""Runs one command and prints its seconds, peak memory and exit code as JSON: python -I -S benchmarks/launch.py COMMAND

The system counts into a child's peak what its parent held when it was started. So start.py, which has torch in memory,
starts this small process, and this one the command. What the command prints is lost, but for its standard error.
"""

import json
import os
import sys
import time


def main() -> None:
    """Measures the command that the arguments are."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    started = time.perf_counter()
    pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
    _, status, used = os.wait4(pid, 0)
    seconds = time.perf_counter() - started
    bytes_a_unit = 1 if sys.platform == "darwin" else 2**10
    found = {
        "seconds": seconds,
        "megabytes": used.ru_maxrss * bytes_a_unit / 2**20,
        "code": os.waitstatus_to_exitcode(status),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
