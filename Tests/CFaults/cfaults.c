// A disk that fails, for a program that knows nothing of it: this library comes before the C library (LD_PRELOAD) and lets calls on
// files fail as the words in the file named by DAYBOOK_FAULTS say, which may change at any time:
//
//   write     every pwrite and pwritev: EIO
//   flush     every fdatasync: EIO
//   read N    every pread that touches block N (of 4 KiB): EIO
#define _GNU_SOURCE
#include "cfaults.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

// The faults as they are now; empty when there are none.
static void faults(char *text, size_t size) {
    const char *path = getenv("DAYBOOK_FAULTS");
    text[0] = 0;
    int descriptor = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (descriptor < 0) return;
    ssize_t count = read(descriptor, text, size - 1);
    text[count > 0 ? count : 0] = 0;
    close(descriptor);
}

static int fails(const char *word) {
    char text[256];
    faults(text, sizeof text);
    if (!strstr(text, word)) return 0;
    errno = EIO;
    return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite(int descriptor, const void *bytes, size_t count, off_t offset) {
    return fails("write") ? -1 : NEXT(pwrite)(descriptor, bytes, count, offset);
}
ssize_t pwritev(int descriptor, const struct iovec *vectors, int count, off_t offset) {
    return fails("write") ? -1 : NEXT(pwritev)(descriptor, vectors, count, offset);
}
int fdatasync(int descriptor) { return fails("flush") ? -1 : NEXT(fdatasync)(descriptor); }

ssize_t pread(int descriptor, void *bytes, size_t count, off_t offset) {
    char text[256];
    faults(text, sizeof text);
    const char *word = strstr(text, "read ");
    if (word) {
        long long bad = atoll(word + 5) * 4096;
        if (bad < offset + (long long)count && bad + 4096 > offset) {
            errno = EIO;
            return -1;
        }
    }
    return NEXT(pread)(descriptor, bytes, count, offset);
}
