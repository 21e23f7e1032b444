"""Why a report or an export is not made."""


class OfflineError(Exception):
    """It cannot be made; the message says why and what to do."""
