"""Why an import does not start, or stops."""


class ImportRefusedError(Exception):
    """The import cannot go on; the message says why and what to do. What was delivered before stays counted in the
    state file.
    """
