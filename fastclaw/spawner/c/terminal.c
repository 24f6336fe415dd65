/* A pseudo-terminal of this mount namespace, so that its name is valid for who uses it. */
#include "spawner.h"

/* What a container's root put in its place, a FIFO that it has locked say, must not be opened: looked at by O_PATH first, which
 * waits for nothing (open(2)). */
long open_only(const char *path, u32 type, u32 major, u32 minor, int flags) {
    char self[32];
    struct statx about;
    long found = SYS(openat, AT_FDCWD, path, O_PATH | O_CLOEXEC), error = found;
    if (found < 0) return found;
    error = SYS(statx, found, "", AT_EMPTY_PATH, STATX_TYPE, &about);
    if (!error && ((about.stx_mode & S_IFMT) != type || about.stx_rdev_major != major || about.stx_rdev_minor != minor)) error = -ENXIO;
    *put_number(put(self, "/proc/self/fd/"), (u32)found) = 0;
    if (!error) error = SYS(openat, AT_FDCWD, self, flags | O_CLOEXEC);
    SYS(close, found);
    return error;
}

/* Returns the master. It belongs to who opens it: the command's user may then open it again by name. */
long open_terminal(struct job *job, int *slave) {
    int unlock = 0;
    struct winsize window;
    memcpy(&window, job->window, sizeof window);
    long master = open_only("/dev/ptmx", S_IFCHR, 5, 2, O_RDWR | O_NOCTTY), error = master;
    if (master < 0) return master;
    error = SYS(ioctl, master, TIOCSPTLCK, &unlock);
    if (error >= 0) error = SYS(ioctl, master, TIOCSWINSZ, &window);
    if (error >= 0) error = SYS(ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (error >= 0) SYS(fcntl, master, F_SETFL, O_NONBLOCK);
    if (error < 0) { SYS(close, master); return error; }
    *slave = (int)error;
    return master;
}

/* struct termios as the kernel has it (asm-generic/termbits.h): the C library's own is another. */
struct kernel_termios { u32 input, output, control, local; unsigned char line, characters[19]; };
enum { LOCAL_ICANON = 2, CHARACTER_EOF = 4 };

/* What a terminal's reader takes for EOF, or nothing where there is no such thing: in raw mode every byte is input. Twice: in the
 * middle of a line the first one only hands the line over. Returns how many bytes that is. */
int end_of_input(int master, char *into) {
    struct kernel_termios now;
    if (SYS(ioctl, master, TCGETS, &now) < 0) return 0;
    char eof = (char)now.characters[CHARACTER_EOF];
    if (!(now.local & LOCAL_ICANON) || !eof) return 0;
    into[0] = into[1] = eof;
    return 2;
}
