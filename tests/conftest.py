"""What holds for every test: that it fails for what it tests, and not for how busy the machine is or how it was started."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# by default an example that takes 0.2 s, or a second without enough of them, is a failure; fixtures like tmp_path are
# shared by a test's examples, and hold nothing of them
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.load_profile("any machine")

# in the background of a script Ctrl-C is ignored, by whom we start too; there are tests that press it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
