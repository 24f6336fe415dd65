/* The spawner's main.c, with a way in: what `begin` does of a process's own is left out. */
#include "inside.h"
#include "main.c"
#include "world.h"

void begin_main(u64 bytes) {
    main_pid = MAIN_PID;
    reaper_uid = NO_USER;
    collect_bytes = bytes;
    open_posts();
    slots = map(sizeof(struct slot) * MAX_REAPERS, -1);
    hang_ups = (int)SYS(epoll_create1, EPOLL_CLOEXEC);
}

_Noreturn void file_helper(int count, char **arguments) {
    (void)count;
    (void)arguments;
    __builtin_trap();
}

int run_main(void *nothing) {
    (void)nothing;
    main_loop();
}
