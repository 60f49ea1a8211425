"""Proxies of the environment, which Gradio would ask for pages of this machine too."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_proxy() -> Iterator[None]:
    """Hides all proxies from HTTP clients that are made within the context."""
    # The lower-case name counts before the upper-case one, and the star before any proxy
    before = os.environ.get("no_proxy")
    os.environ["no_proxy"] = "*"
    try:
        yield
    finally:
        if before is None:
            del os.environ["no_proxy"]
        else:
            os.environ["no_proxy"] = before
