"""`onecount forget`: what is held of one person is removed, and what cannot be is said with the day on which it goes.

docs/counting.md, section 12, says what it does to the counts; docs/privacy.md what is held of a person, and where.
"""

from app.privacy.forget import Forgotten, forget
from app.privacy.refusal import ForgetRefused
from app.privacy.report import print_report

__all__ = ["ForgetRefused", "Forgotten", "forget", "print_report"]
