"""Nothing is asked or sent after a final response: Triton would end on it."""

from __future__ import annotations

import threading

import pytest

from triton_hf.backend.clients import Responder

FINAL = 1


class Sender:
    """Stands for Triton's response sender; a call after the final response is what kills Triton."""

    def __init__(self, *, fails: bool = False) -> None:
        self.sent: list[tuple[str, int]] = []
        self.freed = threading.Event()
        self.broken = False
        self._fails = fails

    def send(self, response: str, flags: int) -> None:
        self.broken |= self.freed.is_set()
        self.sent.append((response, flags))
        if flags == FINAL:
            self.freed.set()
        if self._fails:
            raise RuntimeError("cannot be sent")

    def is_cancelled(self) -> bool:
        self.broken |= self.freed.is_set()
        return True


def test_after_the_last_response_nothing_is_asked_or_sent() -> None:
    sender = Sender()
    responder = Responder(sender, final=FINAL)
    responder.send("a", last=False)
    assert responder.is_cancelled()
    responder.send("b", last=True)
    responder.send("c", last=False)
    assert not responder.is_cancelled()
    assert sender.sent == [("a", 0), ("b", FINAL)]
    assert not sender.broken


def test_a_last_response_that_fails_is_the_last_all_the_same() -> None:
    sender = Sender(fails=True)
    responder = Responder(sender, final=FINAL)
    with pytest.raises(RuntimeError):
        responder.send("a", last=True)
    assert not responder.is_cancelled()
    assert not sender.broken


def test_asking_waits_while_the_last_response_is_on_its_way() -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(Sender):
        def send(self, response: str, flags: int) -> None:
            entered.set()
            leave.wait(10)
            super().send(response, flags)

    sender = Slow()
    responder = Responder(sender, final=FINAL)
    sending = threading.Thread(target=lambda: responder.send("a", last=True))
    answers: list[bool] = []
    asking = threading.Thread(target=lambda: answers.append(responder.is_cancelled()))
    sending.start()
    assert entered.wait(10)
    asking.start()
    asking.join(0.1)
    assert asking.is_alive()
    leave.set()
    sending.join(10)
    asking.join(10)
    assert answers == [False]
    assert not sender.broken
