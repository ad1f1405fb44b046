// What Swift cannot say: the CRC32C instruction, and Linux constants that the importer drops.
#ifndef DAYBOOK_CSUPPORT_H
#define DAYBOOK_CSUPPORT_H

#include <stddef.h>
#include <stdint.h>

/// CRC32C (Castagnoli, reflected, initial and final inversion), continued from `crc` (0 to begin).
uint32_t daybook_crc32c(uint32_t crc, const void *data, size_t length);

/// O_DIRECT and O_NOATIME, which need _GNU_SOURCE.
int daybook_o_direct(void);
int daybook_o_noatime(void);

/// pread(2) of what the page cache holds, without waiting for the medium. Returns the bytes read, or -1 with errno set.
long daybook_read_resident(int fd, void *buffer, size_t size, int64_t offset);

/// llistxattr(2), lgetxattr(2) and lremovexattr(2): <sys/xattr.h> is in no module.
long daybook_list_xattrs(const char *path, void *names, size_t size);
long daybook_get_xattr(const char *path, const char *name, void *value, size_t size);
int daybook_remove_xattr(const char *path, const char *name);

/// Open-file-description lock on `length` bytes at `offset`: type is F_RDLCK, F_WRLCK or F_UNLCK.
/// Never waits. Returns 0, or the errno (EAGAIN or EACCES when another holder is in the way).
int daybook_ofd_lock(int fd, int type, int64_t offset, int64_t length);

/// Size in bytes of a block device, or -1 with errno set.
int64_t daybook_block_device_size(int fd);

/// fallocate(2): KEEP_SIZE is 1, PUNCH_HOLE with it 3. Returns 0, or -1 with errno set.
int daybook_fallocate(int fd, int mode, int64_t offset, int64_t length);

/// Names the calling thread (15 bytes at most are kept).
void daybook_name_thread(const char *name);

#endif
