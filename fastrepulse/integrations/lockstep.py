"""Functions that take turns: one runs at a time, and all wait for each other where they meet."""

import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any

from fastrepulse.torch_settings import settings_of_this_thread


class Stopped(BaseException):
    """Ends a function, since another function or the caller has failed."""


class Lockstep:
    """Runs functions in threads that hand over to each other, so that the order is fixed.

    A function runs until `meet` or until its end, then the next one runs. So memory is that of one
    function and of what all hand in, and results do not depend on timing. The threads have the
    caller's settings of torch: gradients, autocast, default device, stream.

    Args:
        functions: What to run; each gets the lockstep. The first one begins.
    """

    def __init__(self, functions: Sequence[Callable[["Lockstep"], Any]]):
        self._functions = functions
        self._turns = [threading.Semaphore(0) for _ in functions]
        self._results: list[Any] = []
        self._handed: list[Any] = []
        self._answers: Sequence[Any] = ()
        self._error: BaseException | None = None
        self._running = 0

    def run(self) -> list[Any]:
        """Returns what the functions return.

        Raises:
            BaseException: The first error of a function, or of the caller while it waits; all
                functions have ended then.
        """
        settings = settings_of_this_thread()
        threads = [
            threading.Thread(
                target=copy_context().run, args=(self._take_part, number, settings), daemon=True
            )
            for number in range(len(self._functions))
        ]
        for thread in threads:
            thread.start()
        self._turns[0].release()
        try:
            self._join(threads)
        except BaseException as error:
            # The running function learns of the error where it asks
            self._error = self._error or error
            self._join(threads)
        if self._error is not None:
            raise self._error
        return self._results

    def meet(self, value: Any, combine: Callable[[list[Any]], Sequence[Any]]) -> Any:
        """Waits until all functions have handed in a value, and returns this function's answer.

        Args:
            value: What this function hands in.
            combine: From the values of all functions to their answers; called once, by the last.
        """
        own = self._running
        if self._results:
            raise RuntimeError("all calls must take as many steps, got one that takes more")
        self._handed.append(value)
        if len(self._handed) == len(self._functions):
            self._answers, self._handed = combine(self._handed), []
        self._hand_over(own)
        self._wait(own)
        return self._answers[own]

    def stop_after_an_error(self) -> None:
        """Ends the function that calls this, if another function or the caller has failed."""
        if self._error is not None:
            raise Stopped

    def _take_part(self, number: int, settings: Callable[[], Any]) -> None:
        """Runs one function in its thread."""
        try:
            self._wait(number)
            with settings():
                self._results.append(self._functions[number](self))
        except Stopped:
            pass
        except BaseException as error:
            self._error = self._error or error
        finally:
            self._hand_over(number)

    def _wait(self, number: int) -> None:
        self._turns[number].acquire()
        self._running = number
        self.stop_after_an_error()

    def _hand_over(self, number: int) -> None:
        self._turns[(number + 1) % len(self._turns)].release()

    def _join(self, threads: Sequence[threading.Thread]) -> None:
        for thread in threads:
            thread.join()
