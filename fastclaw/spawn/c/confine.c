/* What commands must not have, and what ours need: users, capabilities, the system calls that are filtered. */
#include "spawner.h"
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

enum { PUMPS_PER_USER = 256, PUMP_USERS = MAX_KEEPERS / PUMPS_PER_USER };

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

/* What a command of this user has from here on. Through execve(2) root keeps what it is permitted and its container allows
 * (capabilities(7), no_new_privs), and nobody else keeps anything. */
void leave_capabilities(u32 uid) {
    u32 left = uid ? 0 : command_caps;
    set_capabilities(left, left);
}

/* Ours, in effect; what commands are to have is held for them, and has none here. */
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

/* A user that nobody in the sandbox is: without a capability none can signal main, a keeper or a pump, or change its limits.
 * Where the wanted id is none here, the highest that is; where there is none but root, an error. */
long take_own_user(void) {
    if (!(held_caps & 1u << CAP_SETUID) || keeper_uid == NO_USER) return 0;
    u32 highest = highest_user();
    if (keeper_uid > highest) keeper_uid = highest;
    if (!keeper_uid) return -EUSERS;
    SYS(prctl, PR_SET_KEEPCAPS, 1);
    long error = SYS(setresuid, keeper_uid, keeper_uid, keeper_uid);
    keep_capabilities();
    SYS(prctl, PR_SET_DUMPABLE, 0);
    return error;
}

static int has_pump_users(void) {
    return welcome_flags & W_CONFINE && held_caps & 1u << CAP_SETUID && keeper_uid != NO_USER && keeper_uid > 4 * PUMP_USERS;
}

/* A user's first 1 024 pipes have 64 KiB, and further ones 8 (pipe(7), pipe-user-pages-soft): so pumps are several users. */
void take_pump_user(u32 number) {
    u32 uid = keeper_uid - 1 - number / PUMPS_PER_USER;
    if (!has_pump_users()) return;
    SYS(setresuid, uid, uid, uid);
    SYS(prctl, PR_SET_DUMPABLE, 0); /* which a change of the user makes what fs.suid_dumpable says */
}

int is_own_user(u32 uid) {
    if (!(welcome_flags & W_CONFINE) || keeper_uid == NO_USER) return 0;
    return uid == keeper_uid || (has_pump_users() && uid < keeper_uid && keeper_uid - uid <= PUMP_USERS);
}

#define LOAD(field) {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, field)}
#define EQUAL(value, yes) {BPF_JMP | BPF_JEQ | BPF_K, yes, 0, value}
#define UNLESS(value, no) {BPF_JMP | BPF_JEQ | BPF_K, 0, no, value}
#define RETURN(action) {BPF_RET | BPF_K, 0, 0, action}
#if defined(__x86_64__)
enum { NATIVE = AUDIT_ARCH_X86_64, COMPAT = AUDIT_ARCH_I386, COMPAT_UNSHARE = 310 };
#else
enum { NATIVE = (int)AUDIT_ARCH_AARCH64, COMPAT = AUDIT_ARCH_ARM, COMPAT_UNSHARE = 337 };
#endif

enum { ANY_SETOWN = 8, ANY_SETOWN_EX = 15, ANY_SETSIG = 10, FIO_SETOWN = 0x8901, SIO_SETPGRP = 0x8902 };

/* What the engine's own filter leaves open, and commands must not have: signals by way of a descriptor's owner (fcntl(2),
 * F_SETOWN, F_SETSIG; ioctl FIOSETOWN), which the kernel allows the host's uid 0 towards everybody (sigio_perm in fs/fcntl.c), and
 * user namespaces (more kernel within reach). Arguments of clone3(2) cannot be looked at; libraries do without it. An owner
 * is not refused but ignored: programs that set one and never use it (nginx) would not start. */
long filter_calls(void) {
    static struct sock_filter code[] = {
        /* 0 */ LOAD(arch), UNLESS((u32)NATIVE, 8),
        /* 2 */ LOAD(nr), {BPF_ALU | BPF_AND | BPF_K, 0, 0, 0x3fffffff}, /* x32 has the same numbers */
        /* 4 */ EQUAL(__NR_fcntl, 14), EQUAL(__NR_ioctl, 18), EQUAL(__NR_unshare, 21), EQUAL(__NR_clone, 20), EQUAL(__NR_clone3, 23),
        /* 9 */ RETURN(SECCOMP_RET_ALLOW),
        /* 10 */ UNLESS((u32)COMPAT, 20), LOAD(nr),
        /* 12 */ EQUAL(55, 6), EQUAL(221, 5), EQUAL(54, 9), EQUAL(120, 12), EQUAL(COMPAT_UNSHARE, 11), EQUAL(435, 14),
        /* 18 */ RETURN(SECCOMP_RET_ALLOW),
        /* 19 fcntl */ LOAD(args[1]), EQUAL(ANY_SETOWN, 12), EQUAL(ANY_SETOWN_EX, 11), EQUAL(ANY_SETSIG, 10),
        /* 23 */ RETURN(SECCOMP_RET_ALLOW),
        /* 24 ioctl */ LOAD(args[1]), EQUAL(FIO_SETOWN, 7), EQUAL(SIO_SETPGRP, 6),
        /* 27 */ RETURN(SECCOMP_RET_ALLOW),
        /* 28 clone, unshare */ LOAD(args[0]), {BPF_JMP | BPF_JSET | BPF_K, 0, 1, CLONE_NEWUSER},
        /* 30 */ RETURN(SECCOMP_RET_ERRNO | EPERM),
        /* 31 */ RETURN(SECCOMP_RET_ALLOW),
        /* 32 */ RETURN(SECCOMP_RET_ERRNO | ENOSYS),
        /* 33 */ RETURN(SECCOMP_RET_ERRNO | 0),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    return SYS(prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}
