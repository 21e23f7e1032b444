"""Why a person was not forgotten, or not in all places yet."""


class ForgetRefused(Exception):
    """The message says how far it came, and what to do. To forget a person again does no harm."""
