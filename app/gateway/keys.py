"""API keys, signed pixels, and ids that tell nobody who it is. All are keyed hashes (HMAC-SHA256) or random numbers."""

import base64
import hashlib
import hmac
import secrets
from typing import Final

PREFIX: Final = "oc"
ID: Final = "[a-z0-9][a-z0-9-]{0,39}"  # of a key; schema.json has the same
TOKEN_CHARS: Final = 32  # 192 bits of a digest
_SIGNATURE: Final = b"&sig="


def new_key(name: str) -> tuple[str, str]:
    """A fresh API key under this id, and its SHA-256 (hex), which is all that the gateway needs to know of it.

    A key has 256 random bits, so a fast hash keeps it: there is nothing to guess.
    """
    key = f"{PREFIX}_{name}_{secrets.token_urlsafe(32)}"
    return key, digest(key)


def digest(key: str) -> str:
    """The SHA-256 (hex) of an API key."""
    return hashlib.sha256(key.encode()).hexdigest()


def id_of(key: str) -> str:
    """The id that an API key names; any text has one, it need not be known."""
    prefix, _, rest = key.partition("_")
    return rest.partition("_")[0] if prefix == PREFIX else ""


def pixel_secret(secret: str, advertiser_id: str, key_id: str) -> str:
    """What the advertiser signs its pixels with (hex); made from the gateway's own secret, so that it is stored nowhere."""
    return _digest(secret, "pixel", advertiser_id, key_id).hex()


def sign(query: bytes, pixel_key: str) -> str:
    """The signature (hex) of a query string, which is to be sent as its last parameter, `sig`."""
    return hmac.new(pixel_key.encode(), query, hashlib.sha256).hexdigest()


def is_signed(query: bytes, pixel_key: str) -> bool:
    """Whether the query string ends with the signature of all that stands before it."""
    signed, found, signature = query.rpartition(_SIGNATURE)
    return bool(found) and hmac.compare_digest(signature, sign(signed, pixel_key).encode())


def token(secret: str, *parts: str) -> str:
    """An opaque id made from `parts`: the same for the same ones, and nothing can be read from it."""
    return base64.urlsafe_b64encode(_digest(secret, *parts)).decode()[:TOKEN_CHARS]


def new_visitor() -> str:
    """A random visitor id."""
    return secrets.token_urlsafe(18)


def _digest(secret: str, *parts: str) -> bytes:
    # each part with its length, so that no two lists of parts are the same text
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest()
