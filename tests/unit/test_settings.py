"""Settings: where secrets may come from, and that nothing which prints settings or refuses them tells one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings, from_environment

SECRET = "s3cr3t/#@:%"
SECRET_SETTINGS = ("kafka_password", "kafka_key_password", "kafka_client_secret", "redis_password")


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in os.environ:
        if name.startswith("ONECOUNT_"):
            monkeypatch.delenv(name)
    from_environment.cache_clear()
    yield
    from_environment.cache_clear()


def test_secrets_are_read_from_files_and_the_environment_goes_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in SECRET_SETTINGS:
        (tmp_path / f"onecount_{name}").write_text(f"{SECRET}-{name}\n")
    (tmp_path / "onecount_kafka").write_text('{"security.protocol": "SASL_SSL"}')
    monkeypatch.setenv("ONECOUNT_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("ONECOUNT_KAFKA_PASSWORD", "from the environment")
    client = from_environment().client()
    assert client["security.protocol"] == "SASL_SSL"
    assert client["sasl.password"] == "from the environment"
    assert client["ssl.key.password"] == f"{SECRET}-kafka_key_password"
    assert client["sasl.oauthbearer.client.secret"] == f"{SECRET}-kafka_client_secret"


def test_no_print_of_settings_tells_a_secret() -> None:
    settings = Settings(
        kafka={"ssl.key.pem": SECRET, "sasl.oauthbearer.config": SECRET},
        redis_url="rediss://user@localhost/0",
        **dict.fromkeys(SECRET_SETTINGS, SECRET),
    )
    assert settings.client()["ssl.key.pem"] == SECRET
    for printed in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert "s3cr3t" not in printed
    assert "ssl.key.pem" in repr(settings)


@pytest.mark.parametrize(
    ("url", "joined"),
    [
        ("redis://localhost:6379/0", "redis://:s3cr3t%2F%23%40%3A%25@localhost:6379/0"),
        ("rediss://user@redis:6380/1?ssl_ca_certs=/ca.pem", "rediss://user:s3cr3t%2F%23%40%3A%25@redis:6380/1?ssl_ca_certs=/ca.pem"),
        ("redis://user:old@one:1,two:2/0", "redis://user:s3cr3t%2F%23%40%3A%25@one:1,two:2/0"),
    ],
)  # fmt: skip
def test_the_password_of_redis_joins_its_url(url: str, joined: str) -> None:
    assert Settings(redis_url=url, redis_password=SECRET).redis_url.get_secret_value() == joined
    assert Settings(redis_url=url).redis_url.get_secret_value() == url


@pytest.mark.parametrize(
    "wrong",
    [
        {"redis_url": "redis://user:s3cr3t#x@localhost:6379/0"},
        {"redis_url": "redis://user:s3cr3t/x@localhost:6379/0"},
        {"redis_url": "redis://user:[s3cr3t@localhost:6379/0"},
        {"redis_url": "s3cr3t"},
        {"kafka": '{"sasl.password": s3cr3t}'},
        {"kafka": '["s3cr3t"]'},
        {"kafka": {"sasl.password": ["s3cr3t"]}},
        {"kafka_password": ["s3cr3t"]},
    ],
)
def test_a_refused_setting_is_named_and_not_told(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(**wrong)
    assert next(iter(wrong)) in str(refused.value)
    error: BaseException | None = refused.value
    while error is not None:
        assert "s3cr3t" not in str(error)
        error = error.__cause__ or error.__context__


def test_a_missing_folder_of_secrets_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONECOUNT_SECRETS_DIR", str(tmp_path / "none"))
    with pytest.raises(ValidationError, match="secrets_dir"):
        from_environment()
