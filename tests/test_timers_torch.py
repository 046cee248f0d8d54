"""CUDA timers without CUDA: what is captured into a graph, what is not and why; torch.cuda is a stand-in."""

import pytest

torch = pytest.importorskip("torch")

from gradlab.profiling.bench import timers_torch
from gradlab.profiling.bench.timers_torch import Events


class Cuda:
    """A device whose clock moves by what a call takes, a stream, and a capture that ends well or does not."""

    def __init__(self, monkeypatch):
        self.now, self.stream, self.debug, self.capturing, self.fatal, self.captures = (
            0.0,
            "default",
            0,
            False,
            False,
            0,
        )
        cuda = self

        class Event:
            def __init__(self, enable_timing):
                pass

            def record(self):
                self.at = cuda.now

            def synchronize(self):
                pass

            def elapsed_time(self, other):
                return 1000 * (other.at - self.at)

        class CUDAGraph:
            def replay(self):
                cuda.now += self.seconds

        class graph:
            def __init__(self, made):
                self.made = made

            def __enter__(self):
                cuda.stream, cuda.capturing, cuda.captures = "capture", True, cuda.captures + 1
                self.begun = cuda.now

            def __exit__(self, *error):
                cuda.capturing = False
                if cuda.fatal:
                    raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore")
                self.made.seconds, cuda.now, cuda.stream = cuda.now - self.begun, self.begun, "default"

        for name, value in {
            "Event": Event,
            "CUDAGraph": CUDAGraph,
            "graph": graph,
            "current_stream": lambda: self.stream,
            "set_stream": lambda stream: setattr(self, "stream", stream),
            "get_sync_debug_mode": lambda: self.debug,
            "set_sync_debug_mode": lambda mode: setattr(self, "debug", mode),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(timers_torch, "_spoilt", "")

    def call(self, seconds=1e-4, waits=False, refuses=None, spoils=False):
        """A call of so many seconds; it waits for the device, refuses capture with an error, or spoils a capture."""

        def call():
            if waits and self.debug == "error":
                raise RuntimeError("called a synchronizing CUDA operation")
            if self.capturing and refuses:
                raise refuses
            self.fatal = self.capturing and spoils
            # The host adds as much to each launch, which a graph does not have.
            self.now += seconds if self.capturing else 2 * seconds

        return call


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


def test_a_short_call_is_replayed_and_a_long_one_is_not(cuda):
    events, short, long = Events(), cuda.call(), cuda.call(1e-3)
    assert events(short, 20) == pytest.approx(20e-4)
    assert events(long, 3) == pytest.approx(6e-3)
    assert (events.replayed(short), events.launched(short)) == (True, "")
    assert (events.replayed(long), events.launched(long)) == (False, "")
    assert cuda.debug == 0


def test_what_waits_for_the_host_is_found_before_a_capture_and_reported(cuda):
    events, call = Events(), cuda.call(waits=True)
    assert events(call, 10) == pytest.approx(20e-4)
    assert cuda.captures == 0
    assert not events.replayed(call)
    assert events.launched(call) == "RuntimeError: called a synchronizing CUDA operation"
    assert cuda.debug == 0


def test_an_op_that_refuses_capture_is_launched_and_its_reason_said(cuda):
    """Not a RuntimeError, and no end of the run; the capture ended well, so the next call is captured."""
    events, call, fine = Events(), cuda.call(refuses=ValueError("adam_step: stream is captured")), cuda.call()
    assert events(call, 10) == pytest.approx(20e-4)
    assert events.launched(call) == "ValueError: adam_step: stream is captured"
    assert cuda.stream == "default"
    assert events(fine, 10) == pytest.approx(10e-4)
    assert events.replayed(fine)


def test_after_a_capture_that_could_not_be_ended_nothing_more_is_captured(cuda):
    """The stream is put back: else every later call would run, and be timed, on the one of the capture."""
    events, call, fine = Events(), cuda.call(spoils=True), cuda.call()
    assert events(call, 10) == pytest.approx(20e-4)
    assert cuda.stream == "default"
    why = "RuntimeError: CUDA error: operation failed due to a previous error during capture more"
    assert events.launched(call) == why
    later = Events()
    assert later(fine, 10) == pytest.approx(20e-4)
    assert later.launched(fine) == f"an earlier capture was invalidated: {why}"
    assert cuda.captures == 1


def test_a_backward_alone_is_not_captured(cuda):
    events, call = Events("its forward was on another stream"), cuda.call()
    assert events(call, 10) == pytest.approx(20e-4)
    assert (cuda.captures, events.launched(call)) == (0, "its forward was on another stream")
