"""A file that asks for the impossible is refused before anything starts, with what to do."""

from pathlib import Path
from typing import Any

import pytest

from app.gateway import GatewayError
from app.gateway.config import MAX_ORIGIN_CHARS, Rate, load_config, parse_config
from app.settings import Settings
from tests.gateway.harness import CONFIG, SALT, SECRET

SETTINGS = Settings(gateway_secret=SECRET, gateway_user_salt=SALT)  # type: ignore[arg-type]
EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "gateway.yaml"
SITE = {"origins": ["https://shop.example"]}
KEY = {"sha256": "0" * 64, "advertisers": ["shop"]}


def parse(document: Any, settings: Settings = SETTINGS) -> Any:
    return parse_config(document, settings, Path("gateway.yaml"))


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (None, "at the top"),
        ({}, "nobody could send anything"),
        ({"kyes": {}}, "kyes"),
        ({"keys": {"UPPER": KEY}}, "UPPER"),
        ({"keys": {"a": {"sha256": "secret", "advertisers": ["shop"]}}}, "keys/a/sha256"),
        ({"keys": {"a": {"sha256": "0" * 64}}}, "advertisers"),
        ({"keys": {"a": KEY, "b": KEY}}, "onecount gateway key"),
        ({"keys": {"a": KEY | {"expires": "tomorrow"}}}, "RFC 3339"),
        ({"keys": {"a": KEY | {"burst": 10}}}, "make burst at least 1000"),
        ({"advertisers": {"shop": {}}}, "neither origins nor pixel_keys"),
        ({"advertisers": {"shop": {"origins": ["shop.example"]}}}, "origins/0"),
        ({"advertisers": {"shop": {"origins": ["https://shop.example/path"]}}}, "origins/0"),
        ({"advertisers": {"shop": SITE | {"cookie": {"domain": "other.example"}}}}, "no browser sends a cookie"),
        ({"advertisers": {"shop": SITE | {"cookie": {"domain": "hop.example"}}}}, "no browser sends a cookie"),
        ({"advertisers": {"shop": SITE | {"cookie": {"domain": "shop.example", "days": 401}}}}, "401"),
        ({"advertisers": {"shop": SITE | {"browser_events": ["adjustment"]}}}, "browser_events"),
    ],
)
def test_an_impossible_file_is_refused(document: Any, says: str) -> None:
    with pytest.raises(GatewayError, match=says):
        parse(document)


def test_secrets_that_are_needed_must_be_there() -> None:
    with pytest.raises(GatewayError, match="ONECOUNT_GATEWAY_SECRET"):
        parse({"keys": {"a": KEY}}, Settings())
    with pytest.raises(GatewayError, match="ONECOUNT_GATEWAY_USER_SALT"):
        parse({"advertisers": {"shop": SITE | {"hash_user_ids": True}}}, Settings(gateway_secret=SECRET))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gateway_topic"):
        Settings(gateway_topic="elsewhere")
    with pytest.raises(GatewayError, match="ONECOUNT_GATEWAY_CONFIG"):
        load_config(SETTINGS.model_copy(update={"gateway_config": Path("nowhere.yaml")}))


def test_what_is_not_said_has_a_default() -> None:
    config = parse({"keys": {"a": KEY}, "advertisers": {"shop": SITE}})
    assert config.keys["a"].rate == Rate(1_000, 1_000)
    assert config.keys["a"].platforms is None
    site = config.sites["shop"]
    assert (site.is_consent_asked, site.hashes_users, site.cookie) == (False, False, None)


def test_origins_are_whole_names() -> None:
    site = parse(CONFIG).sites["shop"]
    allowed = ["https://www.shop.example", "https://a.brand.example", "https://a.b.brand.example"]
    refused = ["", "null", "https://shop.example", "http://www.shop.example", "https://brand.example"]
    refused += ["https://www.shop.example.evil.example", "https://evilbrand.example", "https://www.shop.example:8443"]
    assert [origin for origin in allowed + refused if site.allows(origin)] == allowed


def test_an_origin_without_an_end_is_refused_before_it_is_looked_at() -> None:
    site = parse(CONFIG).sites["shop"]
    longest = "https://" + "a." * 139 + "brand.example"
    assert len(longest) < MAX_ORIGIN_CHARS
    assert site.allows(longest)
    assert not site.allows("https://" + "a." * 150 + "brand.example")
    with pytest.raises(GatewayError, match="origins/0"):
        parse({"advertisers": {"shop": {"origins": ["https://" + "a." * 150 + "brand.example"]}}})


def test_the_example_is_sound() -> None:
    assert load_config(SETTINGS.model_copy(update={"gateway_config": EXAMPLE})).keys


@pytest.mark.parametrize("written", ['"2027-01-01T00:00:00Z"', "2027-01-01T00:00:00Z", "2027-01-01 01:00:00+01:00"])
def test_a_key_may_expire_quoted_or_not(written: str, tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    assert '# expires: "2027-01-01T00:00:00Z"' in text
    file = tmp_path / "gateway.yaml"
    file.write_text(text.replace('# expires: "2027-01-01T00:00:00Z"', f"expires: {written}"))
    (key,) = load_config(SETTINGS.model_copy(update={"gateway_config": file})).keys.values()
    assert key.expires_ms == 1_798_761_600_000


def test_a_day_is_no_time_to_expire_at(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(f"keys: {{a: {{sha256: '{'0' * 64}', advertisers: [shop], expires: 2027-01-01}}}}")
    with pytest.raises(GatewayError, match="RFC 3339"):
        load_config(SETTINGS.model_copy(update={"gateway_config": file}))
