"""A browser page to draw images, compare them and steer the next batch."""

from fastrepulse.ui.serve import launch

__all__ = ["launch"]
