"""Descriptors: stdio, listening sockets, relays, process trees, HTTP connections, and the event loop."""
