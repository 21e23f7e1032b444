"""Why the desk does not begin."""


class DeskError(RuntimeError):
    """The desk cannot begin; the message says why and what to do."""
