"""The compared stacks by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from bench.others import envoy, litellm, vllm_router
from bench.ours import headrace, headrace_assembling
from bench.site import Site, Stack


@contextmanager
def direct(site: Site) -> Iterator[Stack]:
    """No gateway: the load generator asks the upstream itself."""
    yield Stack("direct", site.upstream.endpoint, None, "the upstream asked without a gateway")


Start = Callable[[Site], AbstractContextManager[Stack]]
"""The stack comes up with the block and is gone after it; where it can't, `Unavailable` is raised."""

STACKS: dict[str, Start] = {
    "direct": direct,
    "headrace": headrace,
    "headrace-assembling": headrace_assembling,
    "envoy": envoy,
    "vllm-router": vllm_router,
    "litellm": litellm,
}
USUAL = ("direct", "headrace", "envoy", "vllm-router", "litellm")
"""Those that run when nobody says which."""
LIGHT_ONLY = ("litellm",)
"""Those that can't carry the common loads, and are measured under the light ones alone."""
