"""Pytest plugin: CPU seconds and peak memory of the suite, by test file, most expensive first.

python -m pytest -p bench.suite --numprocesses 2 --dist loadfile

CPU seconds are user and system time of a worker and of the commands that it started. Other work on the machine changes
them less than wall time. Peak memory is that of the worker so far, in GiB; it never falls.
"""

import collections
import resource

import pytest


class Costs:
    """Adds to each phase's report what its process has spent since the phase before; sums all workers' reports."""

    def __init__(self):
        self.before = self.spent()
        self.seconds = collections.Counter()
        self.peaks = {}

    @staticmethod
    def spent() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self):
        report = yield
        now, peak = self.spent(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        report.user_properties = [*report.user_properties, ("costs", (now - self.before, peak))]
        self.before = now
        return report

    def pytest_runtest_logreport(self, report):
        file = report.nodeid.partition("::")[0]
        for seconds, peak in (value for name, value in report.user_properties if name == "costs"):
            self.seconds[file] += seconds
            self.peaks[file] = max(peak, self.peaks.get(file, 0.0))

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("CPU seconds and peak GiB")
        for file, seconds in self.seconds.most_common():
            terminalreporter.line(f"{seconds:8.1f} {self.peaks[file]:6.2f}  {file}")
        terminalreporter.line(f"{self.seconds.total():8.1f} {max(self.peaks.values(), default=0):6.2f}  all")


def pytest_configure(config):
    config.pluginmanager.register(Costs())
