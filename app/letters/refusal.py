"""Why a command on dead letters does not go on."""


class LettersError(Exception):
    """Nothing more is sent or dropped; the message says why and what to do."""
