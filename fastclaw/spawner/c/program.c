/* Finds out why a file cannot be executed. execve(2) has one error for many causes: ENOENT may be about a script's interpreter or a
 * program's loader.
 *
 * Runs in the child whose execve failed, with its user, directory and root, so an open that blocks holds up that child only. Follows
 * scripts to their interpreters and programs to their loaders, as the kernel does (fs/binfmt_script.c, fs/binfmt_elf.c, elf(5)). */
#include "spawner.h"

enum {
    DEEPEST = 5,  /* interpreters of interpreters that the kernel follows (fs/exec.c, exec_binprm) */
    ENTRIES = 64, /* program headers looked at; linkers write a dozen */
    WIDE = 2,     /* ELFCLASS64 */
    INTERP = 3,   /* PT_INTERP */
};

static u64 field(const char *at, int bytes) {
    u64 value = 0;
    while (bytes--) value = value << 8 | (unsigned char)at[bytes];
    return value;
}

static u32 interpreter(struct finding *script) {
    const char *head = script->head;
    u32 at = 2, n = 0;
    if (script->head_bytes < 2 || head[0] != '#' || head[1] != '!') return 0;
    while (at < script->head_bytes && (head[at] == ' ' || head[at] == '\t')) at++;
    while (at < script->head_bytes && head[at] && head[at] != ' ' && head[at] != '\t' && head[at] != '\n') script->name[n++] = head[at++];
    return n;
}

/* The loader of a little-endian program: the spawner's architectures are little-endian. */
static u32 loader(struct finding *program, int fd) {
    char entry[56], *head = program->head;
    if (program->head_bytes < 64 || field(head, 4) != 0x464c457f || head[5] != 1) return 0;
    int wide = head[4] == WIDE;
    u64 at = field(head + (wide ? 32 : 28), wide ? 8 : 4), each = field(head + (wide ? 54 : 42), 2);
    u32 count = (u32)field(head + (wide ? 56 : 44), 2), n = 0;
    for (u32 i = 0; i < count && i < ENTRIES; i++, at += each) {
        if (SYS(pread64, fd, entry, wide ? 56 : 32, at) < 32) return 0;
        if (field(entry, 4) != INTERP) continue;
        u64 offset = field(entry + (wide ? 8 : 4), wide ? 8 : 4);
        long got = SYS(pread64, fd, program->name, PATH_BYTES - 1, offset);
        while (got > 0 && n < (u32)got && program->name[n]) n++;
        if (!n) program->name_bytes = 0; /* the name was overwritten */
        return n;
    }
    return 0;
}

/* Why one file cannot be executed (an errno; 0: no cause), and a descriptor of it, if it could be opened. */
static u32 look_at(const char *path, int *fd) {
    long opened = open_only(path, S_IFREG, 0, 0, O_RDONLY | O_NONBLOCK | O_NOCTTY), error = opened;
    *fd = opened < 0 ? -1 : (int)opened;
    if (opened >= 0 || opened == -EACCES) error = SYS(faccessat, AT_FDCWD, path, 1 /* X_OK */);
    if (opened == -ENXIO && (opened = SYS(openat, AT_FDCWD, path, O_PATH | O_DIRECTORY | O_CLOEXEC)) >= 0) {
        SYS(close, opened);
        error = -EISDIR;
    }
    return error < 0 ? (u32)-error : 0;
}

/* `refused`: execve's error; `found`: zeroed. A program for another machine (ENOEXEC) usually lacks its loader, too, which is not the
 * cause. */
void find_out(const char *path, long refused, struct finding *found) {
    size_t bytes = length(path);
    u32 next = bytes < PATH_BYTES ? (u32)bytes : 0;
    memcpy(found->name, path, next);
    while (next) {
        int fd, is_loader;
        found->name[next] = 0;
        found->name_bytes = next;
        found->error = look_at(found->name, &fd);
        long got = fd < 0 ? 0 : SYS(pread64, fd, found->head, PROGRAM_HEAD_BYTES, 0);
        found->head_bytes = got > 0 ? (u32)got : 0;
        next = found->error || found->depth == DEEPEST ? 0 : interpreter(found);
        is_loader = !next;
        if (!next && !found->error && !found->is_loader && refused != -ENOEXEC) next = loader(found, fd);
        if (next) { found->depth++; found->is_loader = (u32)is_loader; }
        if (fd >= 0) SYS(close, fd);
    }
}
