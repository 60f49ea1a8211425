"""The repulsion inside other people's pipelines."""

from fastrepulse.integrations.scheduler import RepulsiveScheduler

__all__ = ["RepulsiveScheduler"]
