"""The spawner's own sources under AddressSanitizer and UndefinedBehaviorSanitizer.

    requests    requests by chance through the parser, and what becomes of them up to their execve (requests.c)
    stories     main, reapers and pumps are fibers that run the real code and take turns by chance, at each system call
                and each atomic step, between real sockets, pipes and terminals; commands and clients do what they
                like (world.h)

    archives    archives by chance through the reader of their headers, and back (archives.c)

`python -m tests.spawner.fuzz` runs all for as long as one likes. A failure names its number: `stories NUMBER 1 calls`
tells that story call by call.
"""
