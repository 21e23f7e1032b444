"""Errors about stored state that no retry mends: the worker stops and says what to do."""

import msgspec


class StateRefused(Exception):
    """The state, the log or the topics do not fit; counting on would publish wrong numbers. The message says what to
    do.
    """


class OffsetsRefused(StateRefused):
    """The group's offsets contradict the state. A coordinator that has just moved may have said so before it had read them
    all, so the worker asks once more before it stops.
    """


class StateOutdated(Exception):
    """The state was written by an older release, whose form is not read any more: it is rebuilt."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version


def check_version(view: bytes, reads: int, tag: str) -> None:
    """Looks at the version that a stored view begins with. Raises `StateOutdated` for an older one than this release
    `reads`, `StateRefused` for a newer one and for bytes that are no view.
    """
    try:
        version = msgspec.msgpack.decode(view, type=list)[0]
    except (msgspec.DecodeError, IndexError) as error:
        raise unreadable(tag, error) from error
    if type(version) is not int:
        raise unreadable(tag, f"its version is {version!r}")
    if version > reads:
        raise StateRefused(
            f"the state of {tag} was written by a newer release (version {version}, this one reads {reads}): deploy the newer release again, "
            "or stop all workers and run `onecount rebuild` with this one"
        )
    if version < reads:
        raise StateOutdated(version)


def unreadable(tag: str, why: object) -> StateRefused:
    """The refusal of bytes that are no state."""
    return StateRefused(f"the state of {tag} is unreadable ({why}): stop all workers and run `onecount rebuild`")
