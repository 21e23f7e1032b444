"""A registry of a test's own, and what reads by it."""

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import cache

import pytest

from app.formats.opening import Formats
from app.formats.registry import Registry
from tests.formats.registry import Registry as Held
from tests.formats.registry import registry
from tests.formats.written import Writers

ALL = {"cloudevents": 0, "avro": 0, "protobuf": 0}


@pytest.fixture(scope="session")
def shared() -> Iterator[Held]:
    """A registry that nobody breaks."""
    with registry() as held:
        yield held


@pytest.fixture
def held() -> Iterator[Held]:
    """A registry of the test's own."""
    with registry() as found:
        yield found


@pytest.fixture(scope="session")
def shared_writers(shared: Held) -> Iterator[Writers]:
    """Producers that use the shared registry."""
    with closing(Writers(shared.url)) as found:
        yield found


@pytest.fixture(scope="session")
def shared_formats(shared: Held) -> Iterator[Formats]:
    """What reads by the shared registry."""
    with closing(Registry({"url": shared.url}, 5.0)) as found:
        yield Formats(ALL, found)


@pytest.fixture
def writers(held: Held) -> Iterator[Writers]:
    """Producers that use the test's own registry."""
    with closing(Writers(held.url)) as found:
        yield found


@pytest.fixture
def asking() -> Iterator[Callable[..., Registry]]:
    """A registry's client as of a process that has just started, by the registry's address."""
    with ExitStack() as stack:

        def opened(url: str, timeout_s: float = 5.0) -> Registry:
            found = Registry({"url": url}, timeout_s)
            stack.callback(found.close)
            return found

        yield opened


@pytest.fixture
def formats_of(asking: Callable[..., Registry]) -> Callable[..., Formats]:
    """What reads by a registry as a process that has just started."""
    return lambda held, since_ms=ALL: Formats(since_ms, asking(held.url))


@pytest.fixture(autouse=True, scope="session")
def hurry() -> Iterator[None]:
    """A registry that lags is asked again sooner, and the certificates that no test needs are read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.formats.registry.AGAIN_S", 0.05)
        patch.setattr("ssl.create_default_context", cache(ssl.create_default_context))
        yield
