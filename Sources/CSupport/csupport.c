#define _GNU_SOURCE
#include "csupport.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

// --- CRC32C -------------------------------------------------------------------------------------------------
// The crc32 instruction has a latency of three cycles and a throughput of one, so three streams are run side by
// side and folded together. A fold multiplies by x^(8*n) modulo the polynomial; for the two stream lengths used
// here that is a table look-up of four bytes, built once.

#define LONG_STREAM 1360  // three of these are 4080 bytes: nearly all of a block
#define SHORT_STREAM 168

static uint32_t table[256];
static uint32_t long_shift[4][256];
static uint32_t short_shift[4][256];

static uint32_t multiply_matrix(const uint32_t *matrix, uint32_t vector) {
    uint32_t sum = 0;
    for (; vector; vector >>= 1, matrix++)
        if (vector & 1) sum ^= *matrix;
    return sum;
}

static void square_matrix(uint32_t *square, const uint32_t *matrix) {
    for (int n = 0; n < 32; n++) square[n] = multiply_matrix(matrix, matrix[n]);
}

/// The operator that appends `length` zero bytes to a CRC, as a table by byte. `length` is at most 4 GiB.
static void build_shift(uint32_t zeros[4][256], size_t length) {
    uint32_t even[32], odd[32], result[32], next[32];
    odd[0] = 0x82f63b78u;
    for (int n = 1; n < 32; n++) odd[n] = 1u << (n - 1);
    square_matrix(even, odd);  // two bits
    square_matrix(odd, even);  // four bits
    for (int n = 0; n < 32; n++) result[n] = 1u << n;
    uint32_t power[32];
    square_matrix(power, odd);  // one byte
    for (; length; length >>= 1) {
        if (length & 1) {
            for (int n = 0; n < 32; n++) next[n] = multiply_matrix(power, result[n]);
            memcpy(result, next, sizeof result);
        }
        square_matrix(next, power);
        memcpy(power, next, sizeof power);
    }
    for (int n = 0; n < 256; n++)
        for (int byte = 0; byte < 4; byte++) zeros[byte][n] = multiply_matrix(result, (uint32_t)n << (8 * byte));
}

__attribute__((constructor)) static void build_tables(void) {
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t crc = n;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >> 1) ^ 0x82f63b78u : crc >> 1;
        table[n] = crc;
    }
    build_shift(long_shift, LONG_STREAM);
    build_shift(short_shift, SHORT_STREAM);
}

static uint32_t crc32c_bytes(uint32_t crc, const unsigned char *data, size_t length) {
    for (; length; length--) crc = (crc >> 8) ^ table[(crc ^ *data++) & 0xff];
    return crc;
}

#if defined(__x86_64__)
static inline uint32_t shift(uint32_t zeros[4][256], uint32_t crc) {
    return zeros[0][crc & 0xff] ^ zeros[1][(crc >> 8) & 0xff] ^ zeros[2][(crc >> 16) & 0xff] ^ zeros[3][crc >> 24];
}

static inline uint64_t word(const unsigned char *data) {
    uint64_t value;
    memcpy(&value, data, 8);
    return value;
}

__attribute__((target("sse4.2"))) static inline const unsigned char *three_streams(
    uint64_t *crc, const unsigned char *data, size_t stream, uint32_t zeros[4][256]) {
    uint64_t a = *crc, b = 0, c = 0;
    for (const unsigned char *end = data + stream; data < end; data += 8) {
        a = __builtin_ia32_crc32di(a, word(data));
        b = __builtin_ia32_crc32di(b, word(data + stream));
        c = __builtin_ia32_crc32di(c, word(data + 2 * stream));
    }
    a = shift(zeros, (uint32_t)a) ^ b;
    *crc = shift(zeros, (uint32_t)a) ^ c;
    return data + 2 * stream;
}

__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t start, const unsigned char *data, size_t length) {
    uint64_t crc = start;
    while (length >= 3 * LONG_STREAM) {
        data = three_streams(&crc, data, LONG_STREAM, long_shift);
        length -= 3 * LONG_STREAM;
    }
    while (length >= 3 * SHORT_STREAM) {
        data = three_streams(&crc, data, SHORT_STREAM, short_shift);
        length -= 3 * SHORT_STREAM;
    }
    for (; length >= 8; length -= 8, data += 8) crc = __builtin_ia32_crc32di(crc, word(data));
    for (; length; length--) crc = __builtin_ia32_crc32qi((uint32_t)crc, *data++);
    return (uint32_t)crc;
}
#endif

uint32_t daybook_crc32c(uint32_t crc, const void *data, size_t length) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) return ~crc32c_sse42(~crc, data, length);
#endif
    return ~crc32c_bytes(~crc, data, length);
}

// --- Linux --------------------------------------------------------------------------------------------------

long daybook_read_resident(int fd, void *buffer, size_t size, int64_t offset) {
    struct iovec vector = {.iov_base = buffer, .iov_len = size};
    return preadv2(fd, &vector, 1, offset, RWF_NOWAIT);
}

int daybook_o_direct(void) { return O_DIRECT; }
int daybook_o_noatime(void) { return O_NOATIME; }

long daybook_list_xattrs(const char *path, void *names, size_t size) { return llistxattr(path, names, size); }

long daybook_get_xattr(const char *path, const char *name, void *value, size_t size) {
    return lgetxattr(path, name, value, size);
}

int daybook_remove_xattr(const char *path, const char *name) { return lremovexattr(path, name); }

int daybook_ofd_lock(int fd, int type, int64_t offset, int64_t length) {
    struct flock lock = {.l_type = (short)type, .l_whence = SEEK_SET, .l_start = offset, .l_len = length, .l_pid = 0};
    return fcntl(fd, F_OFD_SETLK, &lock) == 0 ? 0 : errno;
}

int64_t daybook_block_device_size(int fd) {
    uint64_t size = 0;
    return ioctl(fd, BLKGETSIZE64, &size) == 0 ? (int64_t)size : -1;
}

void daybook_name_thread(const char *name) { prctl(PR_SET_NAME, name, 0, 0, 0); }

int daybook_fallocate(int fd, int mode, int64_t offset, int64_t length) { return fallocate(fd, mode, offset, length); }
