"""A GPU and its clock."""

import gc
import statistics
import time

import torch


class Device:
    """A GPU and its clock; the CPU and the wall clock in a simulation."""

    def __init__(self, simulate: bool):
        self.cuda = not simulate
        self.name = "cuda" if self.cuda else "cpu"

    def mark(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, start, end) -> float:
        """Between two marks; the device must have reached them."""
        return start.elapsed_time(end) if self.cuda else 1e3 * (end - start)

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def occupy(self, ms: float) -> None:
        """Give the device something else to do, so that what is issued meanwhile runs without gaps."""
        if self.cuda:
            torch.cuda._sleep(int(ms * 1.9e6))  # clock cycles

    def free(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def gb(self) -> float:
        return torch.cuda.memory_allocated() / 1e9 if self.cuda else 0.0

    def peak_gb(self, reset: bool = False) -> float:
        if not self.cuda:
            return 0.0
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 1e9

    def median(self, function, repeat: int = 20, warm: int = 3, ahead_ms: float = 20.0) -> tuple[float, float, float]:
        """(median ms on the device, shortest, median us for the host to issue it) of function(i), i the call's number.

        The device is kept busy while calls are issued, in small groups, so that the host is never what is measured.
        """
        if not self.cuda:
            repeat, warm = 2, 0
        for i in range(warm):
            function(i)
        self.sync()
        marks, host = [], []
        for first in range(0, repeat, 5):
            self.occupy(ahead_ms)
            for i in range(first, min(first + 5, repeat)):
                start = self.mark()
                begun = time.perf_counter()
                function(i)
                host.append(time.perf_counter() - begun)
                marks.append((start, self.mark()))
            self.sync()
        times = [self.ms(*pair) for pair in marks]
        return statistics.median(times), min(times), 1e6 * statistics.median(host)
