"""Makes the modules beside this file importable in every folder of tests; counts refusals."""


def pytest_terminal_summary(terminalreporter):
    reports = terminalreporter.stats.get("passed", [])
    counts = [
        value for report in reports for name, value in report.user_properties if name == "refused"
    ]
    if counts:
        terminalreporter.write_line(f"{sum(counts)} bad values refused by name")
