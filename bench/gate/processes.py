# SPDX-License-Identifier: Apache-2.0
"""Work in forked processes, so that a crash or a hang of one item costs no other."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

Item = TypeVar("Item")
Send = Callable[[Any], None]
_inside = False  # a process that was forked here: its own children belong to its group


@dataclass(frozen=True)
class Ended:
    """The last thing that is said of an item."""

    state: str  # "done", "raised", "crashed" or "hung"
    detail: str
    seconds: float

    @property
    def last_line(self) -> str:
        return (self.detail.strip().splitlines() or [""])[-1]


class _Child:
    def __init__(self, function: Callable[[Item, Send], None], item: Item, seconds: float):
        context = multiprocessing.get_context("fork")
        self.item, self.begin, self.raised = item, time.monotonic(), ""
        self.limit, self.end = seconds, self.begin + seconds
        self.receive, send = context.Pipe(duplex=False)
        self.process = context.Process(target=_main, args=(function, item, send, not _inside))
        self.process.start()
        send.close()

    def ended(self, hung: bool = False) -> Ended:
        """Stops what still runs."""
        self.kill()
        code, state, detail = self.process.exitcode, "done", ""
        if hung:
            state, detail = "hung", f"stopped after {self.limit:.0f} s"
        elif self.raised:
            state, detail = "raised", self.raised
        elif code:
            name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            state, detail = "crashed", name
        return Ended(state, detail, time.monotonic() - self.begin)

    def kill(self) -> None:
        for kill in (os.kill,) if _inside else (os.kill, os.killpg):
            try:
                if kill is os.killpg or self.process.exitcode is None:
                    kill(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass  # it has ended, with all of its children
        self.process.join()
        self.receive.close()


def spread(
    function: Callable[[Item, Send], None],
    items: Iterable[Item],
    at_once: int = 1,
    limit: Callable[[Item], float] = lambda _: math.inf,
) -> Iterator[tuple[Item, Any]]:
    """Runs `function(item, send)` for every item in a process of its own, `at_once` at a time.

    Yields (item, message) for whatever is sent, and at last (item, Ended). `limit(item)` has the seconds
    after which a process is stopped; it is asked when the item begins.
    """
    waiting, running = deque(items), []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                item = waiting.popleft()
                running.append(_Child(function, item, limit(item)))
            _wait(running)
            for child in list(running):
                while child.receive.poll():
                    try:
                        message = child.receive.recv()
                    except EOFError:
                        break
                    if isinstance(message, _Raised):
                        child.raised = message.text
                    else:
                        yield child.item, message
                hung = time.monotonic() >= child.end
                if hung or child.process.exitcode is not None:
                    running.remove(child)
                    yield child.item, child.ended(hung)
    finally:
        for child in running:
            child.kill()


def _wait(running: list[_Child]) -> None:
    """Until one says something or ends, or its time is up."""
    soonest = min(child.end for child in running) - time.monotonic()
    sources: list[Connection | int] = [child.process.sentinel for child in running]
    sources += [child.receive for child in running if not child.receive.closed]
    wait(sources, None if soonest == math.inf else max(soonest, 0))


@dataclass(frozen=True)
class _Raised:
    text: str


def _main(function: Callable[[Item, Send], None], item: Item, send: Connection, leader: bool) -> None:
    global _inside
    _inside = True
    if leader:
        os.setpgid(0, 0)
    try:
        function(item, send.send)
    except Exception:  # whatever it is, it is reported
        traceback.print_exc()
        send.send(_Raised(traceback.format_exc()))
