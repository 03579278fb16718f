"""CPython's own tests of what an Executor is, where CPython brings them; against a manager that is none."""

from __future__ import annotations

import time
import types
import unittest

import pytest

import lfm
from lfm.testing import FakeManager

pytestmark = pytest.mark.process

try:
    from test.test_concurrent_futures import executor, test_as_completed, test_wait, util

    theirs = types.SimpleNamespace(
        ExecutorMixin=util.ExecutorMixin, ExecutorTest=executor.ExecutorTest, WaitTests=test_wait.WaitTests,
        AsCompletedTests=test_as_completed.AsCompletedTests,
    )  # fmt: skip
except ImportError:  # before 3.12 one module; in many installations none
    theirs = pytest.importorskip("test.test_concurrent_futures")


class OnLfm(theirs.ExecutorMixin):
    """Their mixin, with our executor."""

    def setUp(self):
        unittest.TestCase.setUp(self)
        self.t1 = time.monotonic()
        self.fake = FakeManager(slots=5)
        self.executor = lfm.Executor(self.fake.run)

    def tearDown(self):
        self.executor.shutdown(wait=True)
        self.executor = None
        self.fake.stop()

    def executor_type(self, max_workers=None):
        return lfm.Executor(workers=max_workers)

    def _prime_executor(self):
        pass


class TestExecutor(OnLfm, theirs.ExecutorTest, unittest.TestCase):
    pass


class TestWait(OnLfm, theirs.WaitTests, unittest.TestCase):
    pass


class TestAsCompleted(OnLfm, theirs.AsCompletedTests, unittest.TestCase):
    pass
