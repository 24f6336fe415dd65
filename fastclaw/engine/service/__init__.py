"""An engine of our own: how it is started on this host, and what ends with it."""
