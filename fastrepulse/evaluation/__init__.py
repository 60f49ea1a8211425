"""Compares all methods on the shipped model (`fastrepulse evaluate`, extra `evaluate`)."""

from fastrepulse.evaluation.comparison import evaluate
from fastrepulse.evaluation.search import Rule
from fastrepulse.evaluation.settings import ALL, QUICK, Family, Setting, select

__all__ = ["ALL", "QUICK", "Family", "Rule", "Setting", "evaluate", "select"]
