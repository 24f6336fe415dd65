"""Other ways to start a command, each a program of its own that measures itself, tells its version and ends.

`python -m bench.rivals.NAME COUNT AT_ONCE …` prints a line of JSON as the C programs do (measure.h), with `version`.
They import the standard library and their own tool only, which may have an environment of its own (scripts/get-rivals).
What is a command line to be started (crun, podman, bwrap) is started by run_floor.c.
"""
