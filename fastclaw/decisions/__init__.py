"""Facts in, verdicts out: no I/O, no clock. Who may start, what an answer means, what a sandbox is allowed."""
