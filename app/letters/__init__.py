"""`onecount dlq`: the dead letters, what they mean, and how each is sent again at most once, or dropped.

A letter is open until a mark says otherwise. A retried event is written to its source topic in the same transaction as its
mark, by one transactional id, so that whatever is killed or cut off, and however many commands run, no letter is sent twice.
"""

from app.letters.refusal import LettersError

__all__ = ["LettersError"]
