"""The egress proxy: a process of its own through which everything goes that leaves the sandbox."""
