"""What never reaches a topic: e-mail addresses, and anything of users who did not consent but the bare event."""

import re
from typing import Final

import msgspec

from app.contract.events import TOUCH_TYPES, Event, Rejection
from app.gateway import keys

PERSONAL_DATA: Final = "personal_data"
ONE_TIME: Final = "once-"  # begins the user id of an event without consent
HASHED: Final = "h-"
# One character before the @ and two of the last label tell as much as all of them, and keep the search linear: a domain holds
# no other @ or %40, so none of it is looked at twice.
_EMAIL: Final = re.compile(r"[A-Za-z0-9._%+-](?:@|%40)(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2}", re.IGNORECASE)


def find_email(event: Event) -> Rejection | None:
    """Refuses an event that has what looks like an e-mail address in any of its fields."""
    for name, value in zip(event.__struct_fields__, msgspec.structs.astuple(event), strict=True):
        if type(value) is str and ("@" in value or "%40" in value) and _EMAIL.search(value):
            return Rejection(
                PERSONAL_DATA, name, "looks like an e-mail address: send an id of your own that tells nobody who it is"
            )
    return None


def without_user(event: Event, secret: str) -> Event:
    """The event as a total only: its user is made from its own id, so it is nobody else's and no state of a user comes of it.

    Repeats of one event have the same one, so that they still count once; an adjustment has that of the conversion that it
    names by `conversion_event_id`. A touch's event id may be its click id (onecount.js makes it so), so that of one with a click
    id is made anew, from itself.
    """
    kind, event_id = event.event_type, event.event_id
    if kind in TOUCH_TYPES and event.click_id:
        event_id = keys.token(secret, "once-id", event.advertiser_id, kind, event_id)
        event = msgspec.structs.replace(event, event_id=event_id)
    if kind == "adjustment" and event.conversion_event_id is not None:
        kind, event_id = "conversion", event.conversion_event_id
    user = ONE_TIME + keys.token(secret, "once", event.advertiser_id, kind, event_id)
    return msgspec.structs.replace(event, user_id=user, click_id=None, order_id=None, referrer=None)


def with_hashed_user(event: Event, salt: str) -> Event:
    """The event with a keyed hash in place of its user id; the same user of the same advertiser has always the same one."""
    return msgspec.structs.replace(event, user_id=HASHED + keys.token(salt, "user", event.advertiser_id, event.user_id))
