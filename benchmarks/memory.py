"""The most memory that a process has had."""

import resource
from pathlib import Path


def peak_memory() -> int:
    """Return the most bytes that this process has had resident since its program began.

    `getrusage` counts what the process was before: started by a large one, it was as large.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes, where there is no /proc
