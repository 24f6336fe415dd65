/* A pseudo-terminal of this mount namespace, so that its name is valid inside. */
#include "spawner.h"

/* Opens a file of the expected type only: a container's root may have put a FIFO in its place, whose open blocks. Looked at by O_PATH
 * first, which never blocks (open(2)). */
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

/* gVisor has no TIOCGPTPEER. Nobody inside can mount over the name, and the file's numbers are looked at. */
enum { SLAVE_MAJOR = 136 };
static long open_slave(int master) {
    char path[32];
    u32 number = 0;
    long slave = SYS(ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave == -ENOTTY) slave = SYS(ioctl, master, TIOCGPTN, &number);
    else return slave;
    *put_number(put(path, "/dev/pts/"), number) = 0;
    return slave < 0 ? slave : open_only(path, S_IFCHR, SLAVE_MAJOR, number, O_RDWR | O_NOCTTY);
}

/* Returns the master. Called as the command's user, who then owns the terminal and may open it again by name. */
long open_terminal(struct job *job, int *slave) {
    int unlock = 0;
    struct winsize window;
    memcpy(&window, job->window, sizeof window);
    long master = open_only("/dev/ptmx", S_IFCHR, 5, 2, O_RDWR | O_NOCTTY), error = master;
    if (master < 0) return master;
    error = SYS(ioctl, master, TIOCSPTLCK, &unlock);
    if (error >= 0) error = SYS(ioctl, master, TIOCSWINSZ, &window);
    if (error >= 0) error = open_slave((int)master);
    if (error >= 0) SYS(fcntl, master, F_SETFL, O_NONBLOCK);
    if (error < 0) { SYS(close, master); return error; }
    *slave = (int)error;
    return master;
}

/* The kernel's struct termios (asm-generic/termbits.h), which differs from the C library's. */
struct kernel_termios { u32 input, output, control, local; unsigned char line, characters[19]; };
enum { LOCAL_ICANON = 2, CHARACTER_EOF = 4 };

/* Whether a terminal that is read by lines is in the middle of one, after what was written last. */
int leaves_line_open(int master, char last) {
    struct kernel_termios now;
    if (SYS(ioctl, master, TCGETS, &now) < 0 || !(now.local & LOCAL_ICANON)) return 0;
    return last != '\n' && last != '\r' && last != (char)now.characters[CHARACTER_EOF];
}

/* The characters that a terminal's reader takes for EOF: none in raw mode, where every byte is input; else two, since in the middle of a
 * line the first one only ends the line. In gVisor the second one must not come behind an EOF that nobody has read: a reader that waits
 * would not be woken (inputQueueRead, pkg/sentry/fsimpl/devpts/line_discipline.go). Returns how many. */
int end_of_input(int master, int is_mid_line, char *into) {
    struct kernel_termios now;
    if (SYS(ioctl, master, TCGETS, &now) < 0) return 0;
    char eof = (char)now.characters[CHARACTER_EOF];
    if (!(now.local & LOCAL_ICANON) || !eof) return 0;
    into[0] = into[1] = eof;
    return welcome_flags & W_GVISOR && !is_mid_line ? 1 : 2;
}
