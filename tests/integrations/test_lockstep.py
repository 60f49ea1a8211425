"""Functions that take turns and wait for each other."""

import os
import signal
import threading
import time

import pytest
import torch

from fastrepulse.integrations.lockstep import Lockstep


def meeting(count, meetings, log, fail=lambda number, turn: None):
    """A lockstep of functions that hand in their number at each of some meetings."""

    def function(number):
        def run(lockstep):
            answers = []
            for turn in range(meetings):
                log.append((number, turn))
                fail(number, turn)
                answers.append(lockstep.meet(number, lambda values: [sum(values)] * len(values)))
            return number, answers

        return run

    return Lockstep([function(number) for number in range(count)])


def test_one_runs_at_a_time_in_a_fixed_order_and_all_get_their_answers():
    log = []
    results = meeting(4, 3, log).run()
    assert results == [(number, [6, 6, 6]) for number in range(4)]
    assert log == [(number, turn) for turn in range(3) for number in range(4)]


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("turn", [0, 1])
def test_an_error_in_one_ends_all_with_its_message(failing, turn):
    log, before = [], threading.active_count()

    def fail(number, now):
        if (number, now) == (failing, turn):
            raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        meeting(3, 3, log, fail).run()
    assert log[-1] == (failing, turn)
    assert threading.active_count() == before


def test_ctrl_c_ends_all():
    log, before = [], threading.active_count()

    def fail(number, now):
        if (number, now) == (1, 1):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    with pytest.raises(KeyboardInterrupt):
        meeting(3, 3, log, fail).run()
    assert log[-1] == (1, 1)
    assert threading.active_count() == before


def test_a_function_that_meets_once_more_than_the_others_is_an_error():
    def once(lockstep):
        lockstep.meet(0, lambda values: values)

    def twice(lockstep):
        once(lockstep)
        once(lockstep)

    with pytest.raises(RuntimeError, match="as many steps"):
        Lockstep([once, twice]).run()


def test_threads_have_the_settings_of_the_caller():
    def settings(_=None):
        return (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.get_default_device(),
        )

    for context in (
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
        torch.device("meta"),
    ):
        with context:
            expected = settings()
            assert Lockstep([settings, settings]).run() == [expected] * 2
    assert Lockstep([settings]).run() == [settings()]
