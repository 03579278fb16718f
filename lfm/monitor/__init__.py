"""The lightweight function monitor.  Standard library only: it runs inside the packed interpreter.

    host      in the daemon: starts a template, hands calls to slots, hears what became of them
     |- template    the packed interpreter, warm: imports what functions import, forks monitors, sweeps up
         |- slot     one monitor: watches, enforces, reports, proves that nothing of a call is left
             |- forker    makes the next call's process ahead of need; may hold the function, never a call's data
             |- (init)    first process of the slot's PID namespace, where the node allows one
             |- call      the daemon writes to it directly; ``answer`` is what it does seldom

``wire`` is what they say to each other; ``watch`` and ``processes`` read /proc; ``capture`` bounds what is printed;
``sandbox`` is the only place that removes anything, and only what was handed over empty; ``contain`` tries out
what the node allows; ``group`` is a slot's control group, ``cgroup`` what one is to the kernel; ``linux`` is what
Python lacks.
"""
