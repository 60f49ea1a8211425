"""Makes `helpers` importable in every test: pytest puts this file's folder on the path.

Also counts the bad values that were refused.
"""


def pytest_terminal_summary(terminalreporter):
    reports = terminalreporter.stats.get("passed", [])
    counts = [
        value for report in reports for name, value in report.user_properties if name == "refused"
    ]
    if counts:
        terminalreporter.write_line(f"{sum(counts)} bad values refused by name")
