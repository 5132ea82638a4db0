"""What holds for every test: our code doesn't block the event loop, and nothing of the user's is read or touched."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
from blockbuster import BlockBuster

# In CI the same examples each time, and no complaint of a slow machine; elsewhere new ones.
hypothesis.settings.register_profile(
    "ci", derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

PASSED_ON = ("HEADRACE_CACHE", "HEADRACE_REQUIRE_LIVE", "HEADRACE_TEST_")


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A data folder of the tests' own, none of the user's settings, and no proxy between two of our sockets."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [
            name for name in os.environ if name.startswith("HEADRACE_") and not name.startswith(PASSED_ON)
        ]:
            patch.delenv(name)
        patch.setenv("HEADRACE_HOME", str(tmp_path_factory.mktemp("headrace-home")))
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, ",".join(filter(None, (os.environ.get(name), "localhost,127.0.0.1,::1"))))
        yield


@pytest.fixture(scope="session")
def _blockbuster() -> BlockBuster:
    return BlockBuster(scanned_modules=["headrace"])


@pytest.fixture(autouse=True)
def _no_blocking_calls(request: pytest.FixtureRequest, _blockbuster: BlockBuster) -> Iterator[None]:
    """A blocking call on the event loop inside our own code raises `BlockingError`.

    `@pytest.mark.may_block("why")` lets one test off.
    """
    marker = request.node.get_closest_marker("may_block")
    if marker is not None:
        if not marker.args:
            pytest.fail("the marker may_block needs a reason")
        yield
        return
    _blockbuster.activate()
    try:
        yield
    finally:
        _blockbuster.deactivate()
