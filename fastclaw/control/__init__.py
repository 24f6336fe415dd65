"""The control socket: what a screen shows of a runtime that runs, and the calls behind its keys."""
