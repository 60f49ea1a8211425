"""A change of a public name or argument is a decision."""

import pytest

pytest.importorskip("matplotlib")

from helpers.public_names import PUBLIC, public_names


def test_public_names_and_arguments_are_those_of_the_committed_list():
    now, committed = set(public_names()), set(PUBLIC.read_text("utf-8").splitlines())
    assert now == committed, (
        f"gone: {sorted(committed - now)}; new: {sorted(now - committed)}. If this is meant, name "
        "it in CHANGELOG.md and write the list anew with tests/helpers/public_names.py"
    )
