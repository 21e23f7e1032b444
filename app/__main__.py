"""`python -m app` is `onecount`."""

import os
import signal
import sys

_SERVICES = ("run", "desk", "gateway", "serve")  # each takes the signal over once it is loaded


def main() -> None:
    """The entry point. A service that is told to stop while it still loads ends well: it has begun nothing."""
    if sys.argv[1:2] and sys.argv[1] in _SERVICES:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from app.cli import main as cli

    cli()


if __name__ == "__main__":
    main()
