"""Bytes on descriptors 0 and 1 become calls of a runtime, and answers bytes."""
