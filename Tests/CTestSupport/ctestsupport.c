#define _GNU_SOURCE
#include "ctestsupport.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

static int outcome(long result) { return result < 0 ? errno : 0; }
static int64_t counted(int64_t result) { return result < 0 ? -errno : result; }

// The calls themselves: the library's would change all threads of the process.
int test_become(uid_t user, gid_t group, const gid_t *groups, size_t count) {
    if (syscall(SYS_setgroups, count, groups) < 0 || syscall(SYS_setresgid, group, group, group) < 0) return errno;
    return outcome(syscall(SYS_setresuid, user, user, user));
}

int test_rename(const char *from, const char *to, unsigned flags) {
    return outcome(renameat2(AT_FDCWD, from, AT_FDCWD, to, flags));
}

int test_fallocate(int descriptor, int mode, int64_t offset, int64_t length) {
    return outcome(fallocate(descriptor, mode, offset, length));
}

int64_t test_copy_range(int from, int64_t from_offset, int to, int64_t to_offset, size_t length) {
    loff_t in = from_offset, out = to_offset;
    return counted(copy_file_range(from, &in, to, &out, length, 0));
}

int test_set_xattr(const char *path, const char *name, const void *value, size_t size, int flags) {
    return outcome(lsetxattr(path, name, value, size, flags));
}
int test_remove_xattr(const char *path, const char *name) { return outcome(lremovexattr(path, name)); }
int64_t test_get_xattr(const char *path, const char *name, void *value, size_t size) {
    return counted(lgetxattr(path, name, value, size));
}
int64_t test_list_xattrs(const char *path, void *names, size_t size) { return counted(llistxattr(path, names, size)); }

int test_flock(int descriptor, int operation) { return outcome(flock(descriptor, operation | LOCK_NB)); }

int test_lock(int descriptor, int open_file, int type, int64_t start, int64_t length) {
    struct flock lock = {.l_type = (short)type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    return outcome(fcntl(descriptor, open_file ? F_OFD_SETLK : F_SETLK, &lock));
}

int test_o_direct(void) { return O_DIRECT; }
uint32_t test_device(unsigned major, unsigned minor) { return (uint32_t)makedev(major, minor); }
