"""Becomes another program that dies when its parent dies: `python child.py PARENT_PID PROGRAM [ARGUMENT ...]`.

Why: a parent that is killed with -9 can clean up nothing, so the kernel must. PR_SET_PDEATHSIG asks it to send
SIGKILL when the parent goes; the setting survives exec, so the program that replaces this one keeps it. It is done
here and not in a preexec_fn, because that runs Python between fork and exec and can deadlock in a threaded parent.

Run as a plain file (not with -m), so that it imports nothing but what it needs and starts in some 20 ms.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def main() -> None:
    """Ask for the signal, then exec. Exits 127 with a line on stderr if the program can't be run."""
    parent_pid, argv = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
        if os.getppid() != parent_pid:  # the parent died before the request was made: no signal will come
            sys.exit(1)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main()
