"""Errors about stored state that no retry mends: the worker stops and says what to do."""


class StateRefused(Exception):
    """The state, the log or the topics do not fit; counting on would publish wrong numbers. The message says what to
    do.
    """
