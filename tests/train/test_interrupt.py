import os
import signal
import threading

import pytest

from fused_preact.train.interrupt import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_old_handlers_come_back(number):
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        assert interrupts.signal == 0
        os.kill(os.getpid(), number)
        assert interrupts.signal == number
    assert signal.getsignal(number) is before


def test_the_second_sigint_interrupts_at_once():
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.signal == signal.SIGTERM


def test_a_thread_that_gets_no_signals_catches_none():
    before, seen = signal.getsignal(signal.SIGINT), []

    def enter():
        with Interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
