/* Confinement: users, capabilities and filtered system calls, of commands and of our own tasks. */
#include "spawner.h"
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

enum { PUMPS_PER_USER = 256, PUMP_USERS = MAX_REAPERS / PUMPS_PER_USER };

u32 find_capabilities(u32 among) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct held[2] = {{0}};
    return SYS(capget, &head, held) ? 0 : held[0].permitted & among;
}

static void set_capabilities(u32 effective, u32 permitted) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct held[2] = {{effective, permitted, 0}, {0}};
    SYS(capset, &head, held);
}

/* Drops to a command's capabilities. Through execve(2) root keeps those that it is permitted and its container allows
 * (capabilities(7), no_new_privs), and other users keep none. */
void leave_capabilities(u32 uid) {
    u32 left = uid ? 0 : command_caps;
    set_capabilities(left, left);
}

/* Our own are effective; those for commands are permitted only. */
void keep_capabilities(void) { set_capabilities(held_caps, held_caps | command_caps); }

/* The highest id of this user namespace (user_namespaces(7), /proc/PID/uid_map), at most 65534. */
static u32 highest_user(void) {
    char text[4096];
    long n = slurp("/proc/self/uid_map", text, sizeof text);
    u32 highest = 0;
    for (long at = 0; at < n;) {
        u64 field[3];
        for (int i = 0; i < 3; i++) {
            while (at < n && (text[at] < '0' || text[at] > '9')) at++;
            for (field[i] = 0; at < n && text[at] >= '0' && text[at] <= '9'; at++) field[i] = field[i] * 10 + (u64)(text[at] - '0');
        }
        u64 last = field[0] + field[2] - 1;
        if (field[2] && last > highest) highest = last < 65534 ? (u32)last : 65534;
    }
    return highest;
}

/* Changes to a user of which no command may be: others cannot signal main, a reaper or a pump, or change its limits, without a
 * capability. Where the wanted id is not mapped here, the highest that is; where only root is, an error. */
long take_own_user(void) {
    if (!(held_caps & 1u << CAP_SETUID) || reaper_uid == NO_USER) return 0;
    u32 highest = highest_user();
    if (reaper_uid > highest) reaper_uid = highest;
    if (!reaper_uid) return -EUSERS;
    SYS(prctl, PR_SET_KEEPCAPS, 1);
    long error = SYS(setresuid, reaper_uid, reaper_uid, reaper_uid);
    keep_capabilities();
    SYS(prctl, PR_SET_DUMPABLE, 0);
    return error;
}

static int has_pump_users(void) {
    return welcome_flags & W_CONFINE && held_caps & 1u << CAP_SETUID && reaper_uid != NO_USER && reaper_uid > 4 * PUMP_USERS;
}

u64 own_word;

/* A user's first 1 024 pipes have 64 KiB, and further ones 8 (pipe(7), pipe-user-pages-soft): so pumps run as several users. */
void take_pump_user(u32 number) {
    u32 uid = reaper_uid - 1 - number / PUMPS_PER_USER;
    if (!has_pump_users()) return;
    SYS(setresuid, uid, uid, uid, own_word);
    SYS(prctl, PR_SET_DUMPABLE, 0); /* which a change of the user makes what fs.suid_dumpable says */
}

int is_own_user(u32 uid) {
    if (!(welcome_flags & W_CONFINE) || reaper_uid == NO_USER) return 0;
    return uid == reaper_uid || (has_pump_users() && uid < reaper_uid && reaper_uid - uid <= PUMP_USERS);
}

#if defined(__x86_64__)
enum { NATIVE = AUDIT_ARCH_X86_64, COMPAT = AUDIT_ARCH_I386, COMPAT_UNSHARE = 310, COMPAT_SOCKET = 359 };
#else
enum { NATIVE = (int)AUDIT_ARCH_AARCH64, COMPAT = AUDIT_ARCH_ARM, COMPAT_UNSHARE = 337, COMPAT_SOCKET = 281 };
#endif
enum { /* of compat programs */
    COMPAT_SOCKETCALL = 102, COMPAT_FCNTL = 55, COMPAT_FCNTL64 = 221, COMPAT_IOCTL = 54, COMPAT_CLONE = 120, COMPAT_CLONE3 = 435,
    COMPAT_SETRESUID = 208, COMPAT_SETREUID = 203, COMPAT_SETUID = 213, COMPAT_SETFSUID = 215,
    OLD_SETRESUID = 164, OLD_SETREUID = 70, OLD_SETUID = 23, OLD_SETFSUID = 138
};
enum { VSOCK_FAMILY = 40, CALL_SOCKET = 1, UNKNOWN_FAMILY = 97 /* EAFNOSUPPORT */ };
enum { ANY_SETOWN = 8, ANY_SETOWN_EX = 15, ANY_SETSIG = 10, FIO_SETOWN = 0x8901, SIO_SETPGRP = 0x8902 };

/* The parts of the filter: numbers of their first instructions. */
enum {
    NATIVE_CALLS = 2, COMPAT_CALLS = 14, BY_FCNTL = 32, BY_IOCTL = 36, NEW_USERS = 39, THREE_USERS = 41, TWO_USERS = 44,
    ONE_USER = 47, OWN_USER = 50, BY_FAMILY = 54, BY_SOCKETCALL = 56,
    PERMITTED = 58, NOT_PERMITTED, NO_SUCH_CALL, NO_SUCH_FAMILY, IGNORED, INSTRUCTIONS
};
#define IF(at, op, value, then, otherwise) [at] = {BPF_JMP | BPF_K | (op), (then) - (at) - 1, (otherwise) - (at) - 1, value}
#define CALL(at, number, then) IF(at, BPF_JEQ, number, then, (at) + 1)
#define LOAD(at, field) [at] = {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, field)}
#define RETURN(at, action) [at] = {BPF_RET | BPF_K, 0, 0, action}
#define USER(at, argument) \
    LOAD(at, args[argument]), IF((at) + 1, BPF_JGE, lowest, (at) + 2, (at) + 3), IF((at) + 2, BPF_JGT, highest, (at) + 3, OWN_USER)

/* Denies commands what the engine's own filter allows:
 * - signals by way of a descriptor's owner (fcntl(2), F_SETOWN, F_SETSIG; ioctl FIOSETOWN), which the host's uid 0 may send to every
 *   process (sigio_perm in fs/fcntl.c). Setting an owner is not refused but ignored: programs that set one and never use it (nginx)
 *   would not start.
 * - user namespaces (more kernel within reach). A filter cannot see the arguments of clone3(2); libraries do without it.
 * - changing to our own users with CAP_SETUID, since those may stop and kill us. Our own calls carry a secret word in an argument that
 *   the kernel ignores. Calls with 16-bit ids, which would need checks of their own, are refused: libraries have had the others since
 *   Linux 2.4.
 * - sockets to the hypervisor (vsock(7)), which no network namespace confines. What socketcall(2) is asked for lies in memory, so of
 *   that no socket is had at all: libraries for 32 bits have had socket(2) since Linux 4.3. */
long filter_calls(void) {
    if (SYS(getrandom, &own_word, sizeof own_word, 0) != sizeof own_word) return -EIO;
    int has_user = reaper_uid != NO_USER;
    u32 highest = has_user ? reaper_uid : 0, lowest = !has_user ? 1 : has_pump_users() ? reaper_uid - PUMP_USERS : reaper_uid;
    struct sock_filter code[INSTRUCTIONS] = {
        LOAD(0, arch), IF(1, BPF_JEQ, (u32)NATIVE, NATIVE_CALLS, COMPAT_CALLS),

        LOAD(2, nr), [3] = {BPF_ALU | BPF_AND | BPF_K, 0, 0, 0x3fffffff}, /* x32 has the same numbers */
        CALL(4, __NR_fcntl, BY_FCNTL), CALL(5, __NR_ioctl, BY_IOCTL), CALL(6, __NR_unshare, NEW_USERS), CALL(7, __NR_clone, NEW_USERS),
        CALL(8, __NR_clone3, NO_SUCH_CALL), CALL(9, __NR_setresuid, THREE_USERS), CALL(10, __NR_setreuid, TWO_USERS),
        CALL(11, __NR_setuid, ONE_USER), CALL(12, __NR_setfsuid, ONE_USER), IF(13, BPF_JEQ, __NR_socket, BY_FAMILY, PERMITTED),

        IF(14, BPF_JEQ, (u32)COMPAT, 15, PERMITTED), LOAD(15, nr),
        CALL(16, COMPAT_FCNTL, BY_FCNTL), CALL(17, COMPAT_FCNTL64, BY_FCNTL), CALL(18, COMPAT_IOCTL, BY_IOCTL),
        CALL(19, COMPAT_UNSHARE, NEW_USERS), CALL(20, COMPAT_CLONE, NEW_USERS), CALL(21, COMPAT_CLONE3, NO_SUCH_CALL),
        CALL(22, COMPAT_SETRESUID, THREE_USERS), CALL(23, COMPAT_SETREUID, TWO_USERS), CALL(24, COMPAT_SETUID, ONE_USER),
        CALL(25, COMPAT_SETFSUID, ONE_USER), CALL(26, OLD_SETRESUID, NO_SUCH_CALL), CALL(27, OLD_SETREUID, NO_SUCH_CALL),
        CALL(28, OLD_SETUID, NO_SUCH_CALL), CALL(29, OLD_SETFSUID, NO_SUCH_CALL), CALL(30, COMPAT_SOCKET, BY_FAMILY),
        IF(31, BPF_JEQ, COMPAT_SOCKETCALL, BY_SOCKETCALL, PERMITTED),

        LOAD(BY_FCNTL, args[1]), CALL(33, ANY_SETOWN, IGNORED), CALL(34, ANY_SETOWN_EX, IGNORED),
        IF(35, BPF_JEQ, ANY_SETSIG, IGNORED, PERMITTED),
        LOAD(BY_IOCTL, args[1]), CALL(37, FIO_SETOWN, IGNORED), IF(38, BPF_JEQ, SIO_SETPGRP, IGNORED, PERMITTED),
        LOAD(NEW_USERS, args[0]), IF(40, BPF_JSET, CLONE_NEWUSER, NOT_PERMITTED, PERMITTED),
        USER(THREE_USERS, 2), USER(TWO_USERS, 1), LOAD(ONE_USER, args[0]),
        IF(48, BPF_JGE, lowest, 49, PERMITTED), IF(49, BPF_JGT, highest, PERMITTED, OWN_USER),
        LOAD(OWN_USER, args[3]), IF(51, BPF_JEQ, (u32)own_word, 52, NOT_PERMITTED),
        [52] = {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, args[3]) + 4},
        IF(53, BPF_JEQ, (u32)(own_word >> 32), PERMITTED, NOT_PERMITTED),
        LOAD(BY_FAMILY, args[0]), IF(55, BPF_JEQ, VSOCK_FAMILY, NO_SUCH_FAMILY, PERMITTED),
        LOAD(BY_SOCKETCALL, args[0]), IF(57, BPF_JEQ, CALL_SOCKET, NO_SUCH_CALL, PERMITTED),

        RETURN(PERMITTED, SECCOMP_RET_ALLOW), RETURN(NOT_PERMITTED, SECCOMP_RET_ERRNO | EPERM),
        RETURN(NO_SUCH_CALL, SECCOMP_RET_ERRNO | ENOSYS), RETURN(NO_SUCH_FAMILY, SECCOMP_RET_ERRNO | UNKNOWN_FAMILY),
        RETURN(IGNORED, SECCOMP_RET_ERRNO | 0),
    };
    struct sock_fprog program = {INSTRUCTIONS, code};
    return SYS(prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}
