"""Faults that are injected into a run."""

from contextlib import contextmanager


@contextmanager
def failing(monkeypatch, owner, name, error, after=0, once=False):
    """Lets a function fail from its call number `after` on, or at that one alone, for a while."""
    real, calls = getattr(owner, name), []

    def fails(*args, **kwargs):
        calls.append(None)
        if len(calls) == after + 1 if once else len(calls) > after:
            raise error
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        yield
