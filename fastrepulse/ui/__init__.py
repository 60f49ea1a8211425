"""A page for a browser: draw, compare, point at pictures, go on."""

from fastrepulse.ui.serve import launch

__all__ = ["launch"]
