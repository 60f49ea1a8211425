"""Makes `helpers` importable in every test: pytest puts this file's folder on the path.

Also groups the tests for several workers, and counts the bad values that were refused.
"""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """A worker runs whole modules, and all modules that share the tiny evaluation."""
    for item in items:
        evaluates = item.path.parent.name == "evaluation"
        group = "evaluation" if evaluates else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_terminal_summary(terminalreporter):
    reports = terminalreporter.stats.get("passed", [])
    counts = [
        value for report in reports for name, value in report.user_properties if name == "refused"
    ]
    if counts:
        terminalreporter.write_line(f"{sum(counts)} bad values refused by name")
