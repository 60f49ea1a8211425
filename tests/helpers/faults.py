"""Injects faults into a run."""

from contextlib import contextmanager


@contextmanager
def failing(monkeypatch, owner, name, error, after=0, once=False):
    """Makes a function raise after `after` calls; with `once`, only on the next call."""
    real, calls = getattr(owner, name), []

    def fails(*args, **kwargs):
        calls.append(None)
        if len(calls) == after + 1 if once else len(calls) > after:
            raise error
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        yield
