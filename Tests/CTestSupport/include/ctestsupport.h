// Calls that tests make and Swift cannot see. Those that return an int give 0 or an errno, unless they say otherwise.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/// Gives the calling thread, and it alone, the rights of another user, for good.
int test_become(uid_t user, gid_t group, const gid_t *groups, size_t count);

int test_rename(const char *from, const char *to, unsigned flags);
int test_fallocate(int descriptor, int mode, int64_t offset, int64_t length);
/// Bytes copied, or a negative errno.
int64_t test_copy_range(int from, int64_t from_offset, int to, int64_t to_offset, size_t length);

int test_set_xattr(const char *path, const char *name, const void *value, size_t size, int flags);
int test_remove_xattr(const char *path, const char *name);
/// Bytes there are (`size` 0) or were read, or a negative errno. Links are not followed.
int64_t test_get_xattr(const char *path, const char *name, void *value, size_t size);
int64_t test_list_xattrs(const char *path, void *names, size_t size);

/// flock(2), without waiting.
int test_flock(int descriptor, int operation);
/// F_SETLK or, `open_file`, F_OFD_SETLK of bytes.
int test_lock(int descriptor, int open_file, int type, int64_t start, int64_t length);

int test_o_direct(void);
/// A device number.
uint32_t test_device(unsigned major, unsigned minor);
