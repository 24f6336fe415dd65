"""The spawner: a C program that starts and ends processes, in a container or on this host, and our side of it."""
