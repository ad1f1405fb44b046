// lossy.c: a disk that forgets. One file, `image`, over a backing file; what is written and not yet flushed is kept apart,
// in memory, and a power failure (SIGUSR1) lets a random part of it reach the backing file, or none.
//
//   WRITE ──► pending (block by block, newest contents)        READ: pending, else the backing file
//   FSYNC ──► pending goes to the backing file
//   SIGUSR1 ─► of each pending block: kept, dropped, or torn at 512-byte sectors; then the program ends
//
// (L1) Nothing reaches the backing file but by FSYNC and by the failure, so what a failure can leave is anything that the fault
//      model allows: any subset of the writes since the last flush, in any order.
// (L2) After the failure nothing is answered any more.
// (L3) fallocate(2) goes straight to the backing file, but for what is pending: holes that are punched are there at once.
//
// usage: lossy BACKING DIRECTORY SEED   (in the foreground; the choice is told on standard output)

#define FUSE_USE_VERSION 314
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK = 4096, SECTOR = 512, FILE_INODE = 2, TRANSFER = 1 << 20 };

static int backing = -1;
static uint64_t size;
static volatile sig_atomic_t failed;

static uint64_t randomState;
static uint64_t nextRandom(void) {
    uint64_t z = (randomState += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void die(const char *what) {
    fprintf(stderr, "lossy: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void readFully(void *bytes, size_t count, uint64_t offset) {
    size_t done = 0;
    while (done < count) {
        ssize_t got = pread(backing, (char *)bytes + done, count - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) die("reading the backing file");
        if (got == 0) {
            memset((char *)bytes + done, 0, count - done);
            return;
        }
        done += (size_t)got;
    }
}

static void writeFully(const void *bytes, size_t count, uint64_t offset) {
    size_t done = 0;
    while (done < count) {
        ssize_t put = pwrite(backing, (const char *)bytes + done, count - done, (off_t)(offset + done));
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) die("writing the backing file");
        done += (size_t)put;
    }
}

// MARK: - What is pending: an open hash table of blocks, in the order of their last writes

struct pending {
    uint64_t block;   // number + 1; 0 is free
    uint64_t order;
    uint8_t *bytes;
};

static struct pending *table;
static size_t capacity, used;
static uint64_t writes;

static struct pending *slotOf(uint64_t block) {
    size_t at = (block * 0x9e3779b97f4a7c15u >> 20) & (capacity - 1);
    while (table[at].block != 0 && table[at].block != block + 1) at = (at + 1) & (capacity - 1);
    return &table[at];
}

static struct pending *pendingBlock(uint64_t block) {
    struct pending *slot = capacity ? slotOf(block) : NULL;
    return slot && slot->block ? slot : NULL;
}

static void grow(void) {
    size_t oldCapacity = capacity;
    struct pending *old = table;
    capacity = capacity ? capacity * 2 : 1024;
    table = calloc(capacity, sizeof *table);
    if (!table) die("memory");
    for (size_t index = 0; index < oldCapacity; index++)
        if (old[index].block) *slotOf(old[index].block - 1) = old[index];
    free(old);
}

// The block's pending contents, which begin as what is in the backing file unless all of it is about to be written.
static struct pending *touch(uint64_t block, int whole) {
    if (used * 2 >= capacity) grow();
    struct pending *slot = slotOf(block);
    if (!slot->block) {
        slot->block = block + 1;
        slot->bytes = malloc(BLOCK);
        if (!slot->bytes) die("memory");
        if (!whole) readFully(slot->bytes, BLOCK, block * BLOCK);
        used++;
    }
    slot->order = ++writes;
    return slot;
}

static void forgetAll(void) {
    for (size_t index = 0; index < capacity; index++)
        if (table[index].block) free(table[index].bytes);
    memset(table, 0, capacity * sizeof *table);
    used = 0;
}

static int byBlock(const void *a, const void *b) {
    const struct pending *left = *(struct pending *const *)a, *right = *(struct pending *const *)b;
    return left->block < right->block ? -1 : 1;
}

static struct pending **sorted(void) {
    struct pending **list = malloc((used + 1) * sizeof *list);
    if (!list) die("memory");
    size_t count = 0;
    for (size_t index = 0; index < capacity; index++)
        if (table[index].block) list[count++] = &table[index];
    qsort(list, count, sizeof *list, byBlock);
    return list;
}

static void flushPending(void) {
    if (!used) return;
    struct pending **list = sorted();
    for (size_t index = 0; index < used; index++) writeFully(list[index]->bytes, BLOCK, (list[index]->block - 1) * BLOCK);
    free(list);
    forgetAll();
}

// MARK: - The power failure

static void failPower(void) {
    static const char *const kinds[] = {"nothing", "everything", "half", "few", "most", "the first", "torn"};
    unsigned kind = nextRandom() % 7;
    uint64_t newest = writes, oldest = writes;
    struct pending **list = capacity ? sorted() : NULL;
    for (size_t index = 0; index < used; index++)
        if (list[index]->order < oldest) oldest = list[index]->order;
    uint64_t until = oldest + (newest > oldest ? nextRandom() % (newest - oldest + 1) : 0);
    size_t kept = 0, torn = 0;
    for (size_t index = 0; index < used; index++) {
        uint64_t chance = nextRandom() % 100;
        int keep;
        switch (kind) {
        case 0: keep = 0; break;
        case 1: keep = 1; break;
        case 3: keep = chance < 10; break;
        case 4: keep = chance < 90; break;
        case 5: keep = list[index]->order <= until; break;
        default: keep = chance < 50; break;
        }
        // Whatever the kind, some blocks are torn: the power fails in the middle of a write.
        if (kind == 6 ? chance < 70 : kind != 1 && chance % 16 == 0) {
            uint8_t old[BLOCK];
            uint64_t offset = (list[index]->block - 1) * BLOCK;
            readFully(old, BLOCK, offset);
            uint64_t mask = nextRandom();
            for (int sector = 0; sector < BLOCK / SECTOR; sector++)
                if (mask >> sector & 1) memcpy(old + sector * SECTOR, list[index]->bytes + sector * SECTOR, SECTOR);
            writeFully(old, BLOCK, offset);
            torn++;
        } else if (keep) {
            writeFully(list[index]->bytes, BLOCK, (list[index]->block - 1) * BLOCK);
            kept++;
        }
    }
    printf("power failed with %zu blocks pending: %s; %zu kept, %zu torn, %zu lost\n", used, kinds[kind], kept, torn, used - kept - torn);
    fflush(stdout);
    free(list);
}

static void onSignal(int number) {
    (void)number;
    failed = 1;
}

// MARK: - Requests

static void describe(fuse_ino_t inode, struct stat *status) {
    memset(status, 0, sizeof *status);
    status->st_ino = inode;
    status->st_nlink = inode == FUSE_ROOT_ID ? 2 : 1;
    status->st_mode = inode == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0600;
    if (inode == FILE_INODE) {
        struct stat below;
        if (fstat(backing, &below)) die("the backing file");
        status->st_size = (off_t)size;
        status->st_blocks = below.st_blocks;
        status->st_mtim = below.st_mtim;
    }
}

static void serveLookup(fuse_req_t request, fuse_ino_t parent, const char *name) {
    struct fuse_entry_param entry = {.ino = FILE_INODE};
    if (parent != FUSE_ROOT_ID || strcmp(name, "image")) {
        fuse_reply_err(request, ENOENT);
        return;
    }
    describe(FILE_INODE, &entry.attr);
    fuse_reply_entry(request, &entry);
}

static void serveGetattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file) {
    (void)file;
    struct stat status;
    describe(inode, &status);
    fuse_reply_attr(request, &status, 0);
}

static void serveSetattr(fuse_req_t request, fuse_ino_t inode, struct stat *wanted, int which, struct fuse_file_info *file) {
    (void)file;
    if (which & FUSE_SET_ATTR_SIZE && (uint64_t)wanted->st_size != size) {
        fuse_reply_err(request, EPERM);
        return;
    }
    serveGetattr(request, inode, NULL);
}

static void serveOpen(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file) {
    file->direct_io = inode == FILE_INODE;
    fuse_reply_open(request, file);
}

static void serveReaddir(fuse_req_t request, fuse_ino_t inode, size_t limit, off_t offset, struct fuse_file_info *file) {
    (void)inode, (void)file;
    char buffer[512];
    struct stat status = {.st_ino = FILE_INODE, .st_mode = S_IFREG};
    size_t count = offset ? 0 : fuse_add_direntry(request, buffer, sizeof buffer, "image", &status, 1);
    fuse_reply_buf(request, buffer, count < limit ? count : 0);
}

static void serveRead(fuse_req_t request, fuse_ino_t inode, size_t count, off_t offset, struct fuse_file_info *file) {
    (void)inode, (void)file;
    static uint8_t buffer[TRANSFER];
    if (count > TRANSFER) count = TRANSFER;
    if ((uint64_t)offset >= size) count = 0;
    else if (count > size - (uint64_t)offset) count = size - (uint64_t)offset;
    readFully(buffer, count, (uint64_t)offset);
    for (uint64_t at = (uint64_t)offset & ~(uint64_t)(BLOCK - 1); used && at < (uint64_t)offset + count; at += BLOCK) {
        struct pending *block = pendingBlock(at / BLOCK);
        if (!block) continue;
        uint64_t from = at > (uint64_t)offset ? at : (uint64_t)offset;
        uint64_t end = at + BLOCK < (uint64_t)offset + count ? at + BLOCK : (uint64_t)offset + count;
        memcpy(buffer + (from - (uint64_t)offset), block->bytes + (from - at), end - from);
    }
    fuse_reply_buf(request, (char *)buffer, count);
}

static void serveWrite(fuse_req_t request, fuse_ino_t inode, const char *bytes, size_t count, off_t offset, struct fuse_file_info *file) {
    (void)inode, (void)file;
    if ((uint64_t)offset + count > size) {
        fuse_reply_err(request, ENOSPC);
        return;
    }
    uint64_t at = (uint64_t)offset, end = at + count;
    while (at < end) {
        uint64_t within = at % BLOCK, part = BLOCK - within < end - at ? BLOCK - within : end - at;
        memcpy(touch(at / BLOCK, part == BLOCK)->bytes + within, bytes + (at - (uint64_t)offset), part);
        at += part;
    }
    fuse_reply_write(request, count);
}

static void serveFsync(fuse_req_t request, fuse_ino_t inode, int dataOnly, struct fuse_file_info *file) {
    (void)inode, (void)dataOnly, (void)file;
    flushPending();
    fuse_reply_err(request, 0);
}

static void serveFallocate(fuse_req_t request, fuse_ino_t inode, int mode, off_t offset, off_t length, struct fuse_file_info *file) {
    (void)inode, (void)file;
    if (mode & FALLOC_FL_PUNCH_HOLE)
        for (uint64_t block = (uint64_t)offset / BLOCK; used && block < (uint64_t)(offset + length) / BLOCK; block++) {
            struct pending *slot = pendingBlock(block);
            if (slot) memset(slot->bytes, 0, BLOCK);
        }
    fuse_reply_err(request, fallocate(backing, mode, offset, length) ? errno : 0);
}

static void serveLseek(fuse_req_t request, fuse_ino_t inode, off_t offset, int whence, struct fuse_file_info *file) {
    (void)inode, (void)file;
    off_t found = lseek(backing, offset, whence);
    if (found < 0) fuse_reply_err(request, errno);
    else fuse_reply_lseek(request, found);
}

static const struct fuse_lowlevel_ops operations = {
    .lookup = serveLookup, .getattr = serveGetattr, .setattr = serveSetattr, .open = serveOpen, .opendir = serveOpen,
    .readdir = serveReaddir, .read = serveRead, .write = serveWrite, .fsync = serveFsync, .fallocate = serveFallocate,
    .lseek = serveLseek,
};

int main(int count, char **words) {
    if (count != 4) {
        fprintf(stderr, "usage: lossy BACKING DIRECTORY SEED\n");
        return 2;
    }
    randomState = strtoull(words[3], NULL, 10);
    backing = open(words[1], O_RDWR | O_CLOEXEC);
    struct stat status;
    if (backing < 0 || fstat(backing, &status)) die(words[1]);
    size = (uint64_t)status.st_size & ~(uint64_t)(BLOCK - 1);

    char *arguments[] = {words[0], "-o", "fsname=lossy", NULL};
    struct fuse_args options = FUSE_ARGS_INIT(3, arguments);
    struct fuse_session *session = fuse_session_new(&options, &operations, sizeof operations, NULL);
    if (!session || fuse_session_mount(session, words[2])) return 1;

    // The signal comes only while nothing is being answered.
    struct sigaction action = {.sa_handler = onSignal};
    sigset_t blocked, before;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigprocmask(SIG_BLOCK, &blocked, &before);
    sigaction(SIGUSR1, &action, NULL);
    struct fuse_buf buffer = {.mem = NULL};
    struct pollfd ready = {.fd = fuse_session_fd(session), .events = POLLIN};
    while (!fuse_session_exited(session)) {
        if (ppoll(&ready, 1, NULL, &before) < 0 && errno != EINTR) die("waiting");
        if (failed) break;  // (L2)
        int got = fuse_session_receive_buf(session, &buffer);
        if (got == -EINTR) continue;
        if (got <= 0) break;
        fuse_session_process_buf(session, &buffer);
    }
    if (failed) failPower();
    else flushPending();
    fuse_session_unmount(session);
    fuse_session_destroy(session);
    return 0;
}
