"""Bytes in, values out: no I/O, no clock. What is on the wire, towards the supervisor and towards the engine."""
