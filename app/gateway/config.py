"""Reads the gateway's file (whom it takes events from), and refuses an impossible one before anything starts."""

import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import jsonschema
import msgspec
import yaml

from app.contract.events import MAX_TIME_MS, parse_time_ms
from app.gateway import GatewayError
from app.settings import Settings

ANY: Final = "*"
KEY_EVENTS_PER_S: Final = 1_000
BROWSER_EVENTS_PER_S: Final = 500
BROWSER_EVENTS: Final = ("view", "click", "engaged_view", "visit", "conversion")
MAX_ORIGIN_CHARS: Final = 300  # a scheme, a name of at most 253 (RFC 1035), a port; schema.json has the same
COOKIE_DAYS: Final = 400  # the longest that Chrome keeps one


class _Loader(yaml.SafeLoader):
    """Times stay as they are written, quoted or not."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class Rate(msgspec.Struct, frozen=True):
    """A token bucket: so many events a second, and at most `burst` at once."""

    per_s: int
    burst: int


class Key(msgspec.Struct, frozen=True):
    """An API key, of which only the SHA-256 (hex) is known here. `advertisers`, `platforms`: None is any."""

    name: str
    sha256: str
    advertisers: frozenset[str] | None
    platforms: frozenset[str] | None
    rate: Rate
    expires_ms: int


class Cookie(msgspec.Struct, frozen=True):
    """The cookie that holds a visitor's id."""

    domain: str
    name: str = "oc_id"
    days: int = COOKIE_DAYS


class Site(msgspec.Struct, frozen=True):
    """What an advertiser's pages may do without a key."""

    advertiser_id: str
    origins: frozenset[str]
    browser_events: frozenset[str]
    unsigned_pixels: bool
    pixel_keys: frozenset[str]
    is_consent_asked: bool
    hashes_users: bool
    cookie: Cookie | None
    rate: Rate

    def allows(self, origin: str) -> bool:
        """Whether it is an origin of the advertiser's, by name or as a subdomain. A longer one than any is not looked at: each
        dot of it costs.
        """
        if len(origin) > MAX_ORIGIN_CHARS:
            return False
        if origin in self.origins:
            return True
        scheme, _, host = origin.partition("://")
        parts = host.split(".")
        return any(f"{scheme}://*.{'.'.join(parts[at:])}" in self.origins for at in range(1, len(parts)))


class Config(msgspec.Struct, frozen=True):
    """The file as a whole: keys by their id, sites by advertiser."""

    keys: dict[str, Key]
    sites: dict[str, Site]


def load_config(settings: Settings) -> Config:
    """The file that ONECOUNT_GATEWAY_CONFIG names. Raises `GatewayError`."""
    path = settings.gateway_config
    try:
        document = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise GatewayError(f"cannot read {path}: {error.strerror}; set ONECOUNT_GATEWAY_CONFIG to its path") from error
    except yaml.YAMLError as error:
        raise GatewayError(f"{path} is not valid YAML: {error}") from error
    return parse_config(document, settings, path)


def parse_config(document: object, settings: Settings, path: Path) -> Config:
    """As `load_config`, of a document already read."""
    schema = json.loads(resources.files("app.gateway").joinpath("schema.json").read_text())
    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(document))
    if problem is not None:
        where = "/".join(str(part) for part in problem.absolute_path) or "the top"
        raise GatewayError(f"{path}: at {where}: {problem.message}")
    assert isinstance(document, dict)
    most = settings.gateway_max_events
    config = Config(
        keys={name: _key(name, value, most, path) for name, value in (document.get("keys") or {}).items()},
        sites={
            name: _site(name, value or {}, most, path) for name, value in (document.get("advertisers") or {}).items()
        },
    )
    _refuse_impossible(config, settings, path)
    return config


def _key(name: str, value: dict[str, Any], most: int, path: Path) -> Key:
    expires_ms = parse_time_ms(value["expires"]) if "expires" in value else MAX_TIME_MS
    if expires_ms is None:
        raise GatewayError(f"{path}: keys/{name}: expires {value['expires']!r} is not RFC 3339 with a zone")
    return Key(
        name=name,
        sha256=value["sha256"],
        advertisers=_names(value["advertisers"]),
        platforms=_names(value["platforms"]) if "platforms" in value else None,
        rate=_rate(f"keys/{name}", value, KEY_EVENTS_PER_S, most, path),
        expires_ms=expires_ms,
    )


def _names(names: Iterable[str]) -> frozenset[str] | None:
    found = frozenset(names)
    return None if ANY in found else found


def _site(name: str, value: dict[str, Any], most: int, path: Path) -> Site:
    return Site(
        advertiser_id=name,
        origins=frozenset(value.get("origins", ())),
        browser_events=frozenset(value.get("browser_events", BROWSER_EVENTS)),
        unsigned_pixels=value.get("unsigned_pixels", True),
        pixel_keys=frozenset(value.get("pixel_keys", ())),
        is_consent_asked=value.get("consent", "assumed") == "asked",
        hashes_users=value.get("hash_user_ids", False),
        cookie=Cookie(**value["cookie"]) if "cookie" in value else None,
        rate=_rate(f"advertisers/{name}", value, BROWSER_EVENTS_PER_S, most, path),
    )


def _rate(where: str, value: dict[str, Any], per_s: int, most: int, path: Path) -> Rate:
    per_s = value.get("events_per_s", per_s)
    rate = Rate(per_s, value.get("burst", max(per_s, most)))
    if rate.burst < most:
        raise GatewayError(
            f"{path}: {where}: a request may hold {most} events (ONECOUNT_GATEWAY_MAX_EVENTS), so a burst of {rate.burst} "
            f"would refuse it for ever: make burst at least {most}"
        )
    return rate


def _refuse_impossible(config: Config, settings: Settings, path: Path) -> None:
    if not config.keys and not config.sites:
        raise GatewayError(f"{path}: neither keys nor advertisers: nobody could send anything")
    digests = [key.sha256 for key in config.keys.values()]
    if len(set(digests)) != len(digests):
        raise GatewayError(f"{path}: keys: two ids have the same sha256; make each its own: onecount gateway key ID")
    if settings.gateway_secret is None:
        raise GatewayError("set ONECOUNT_GATEWAY_SECRET to `openssl rand -hex 32`, the same for all gateways")
    for site in config.sites.values():
        where = f"{path}: advertisers/{site.advertiser_id}"
        if site.hashes_users and settings.gateway_user_salt is None:
            raise GatewayError(f"{where}: hash_user_ids needs ONECOUNT_GATEWAY_USER_SALT: openssl rand -hex 32")
        if not site.origins and not site.pixel_keys:
            raise GatewayError(f"{where}: neither origins nor pixel_keys: none of its pages could send anything")
        foreign = [
            origin for origin in sorted(site.origins) if site.cookie and not _is_below(origin, site.cookie.domain)
        ]
        if foreign and site.cookie:
            raise GatewayError(
                f"{where}: no browser sends a cookie of {site.cookie.domain} from {foreign[0]}: leave the origin out, or the cookie"
            )


def _is_below(origin: str, domain: str) -> bool:
    host = (urlsplit(origin.replace("*.", "", 1)).hostname or "").lower()
    return host == domain or host.endswith(f".{domain}")
