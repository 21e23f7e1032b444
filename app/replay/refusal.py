"""Why a replay is not begun, or was given up."""


class ReplayRefused(Exception):
    """The range cannot be recounted as asked; the message says why and what to do. Nothing live was touched."""


class Stopped(BaseException):
    """A signal asked the replay to end. No Exception: nothing on the way may take it for a failure that it can mend."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
