"""The egress proxy: a process of its own that decides, connects and writes down, and our side of it."""
