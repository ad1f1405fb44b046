// workloads.c: the measuring loops of Tools/benchmark.
//
// One call is one workload in one directory of a mounted filesystem. What is timed is only the loop of system calls:
// preparation (directories, warming passes, buffers) happens before the clock starts, threads start together at a
// barrier, and the result is one line of JSON on standard output. Anything unexpected (a failed call, a short transfer,
// wrong contents) ends the run with a message and status 1: a filesystem that returns wrong bytes has no speed.
//
// (W1) Every 4 KiB block written carries its file's and its own number, and every block read is checked for them.
// (W2) Contents neither compress nor repeat, so that no filesystem gains by noticing zeros or duplicates.
// (W3) Names, counts, sizes and the order of random offsets depend only on the arguments.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, STREAM = 1 << 20, APPEND = 512, MAX_THREADS = 64 };

static void fail(const char *format, ...) {
    int saved = errno;
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "workloads: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, saved ? ": %s\n" : "\n", strerror(saved));
    va_end(arguments);
    exit(1);
}

static uint64_t nowNanoseconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

// splitmix64: small, seedable, and good enough to defeat compression.
static uint64_t nextRandom(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

struct worker {
    pthread_t thread;
    int index;
    int directory;         // descriptor of this thread's own directory
    uint64_t operations;   // done within the timed loop
    uint64_t *latencies;   // nanoseconds of each operation, where recorded
    uint64_t start, end;
    uint8_t *buffer;
    uint64_t random;
};

struct settings {
    const char *workload;
    const char *directory;
    uint64_t count;        // operations per thread
    uint64_t threads;
    uint64_t bytes;        // size of the file of sequential and random workloads
    double seconds;        // length of repeated read-only loops
};

static struct settings settings = {.count = 1000, .threads = 1, .bytes = 64 << 20, .seconds = 1};
static pthread_barrier_t barrier;

// MARK: - Pieces

static void stampBlock(uint8_t *block, uint64_t file, uint64_t number) {
    memcpy(block, &file, 8);
    memcpy(block + 8, &number, 8);
}

static void checkBlock(const uint8_t *block, uint64_t file, uint64_t number, const char *name) {
    uint64_t stored[2];
    memcpy(stored, block, 16);
    errno = 0;
    if (stored[0] != file || stored[1] != number)
        fail("%s: block %" PRIu64 " of file %" PRIu64 " reads as block %" PRIu64 " of file %" PRIu64, name, number, file,
             stored[1], stored[0]);
}

static void fileName(char *name, char prefix, uint64_t number) { sprintf(name, "%c%07" PRIu64, prefix, number); }

static int openOwn(struct worker *worker, const char *name, int flags) {
    int descriptor = openat(worker->directory, name, flags | O_CLOEXEC, 0644);
    if (descriptor < 0) fail("open %s", name);
    return descriptor;
}

static void writeFully(int descriptor, const void *buffer, size_t size, off_t offset) {
    ssize_t written = offset < 0 ? write(descriptor, buffer, size) : pwrite(descriptor, buffer, size, offset);
    if (written != (ssize_t)size) fail("write of %zu bytes returned %zd", size, written);
}

static void closeChecked(int descriptor) {
    if (close(descriptor) != 0) fail("close");
}

static void writeSmallFile(struct worker *worker, uint64_t number, bool durable) {
    char name[32];
    fileName(name, 'f', number);
    int file = openOwn(worker, name, O_CREAT | O_EXCL | O_WRONLY);
    stampBlock(worker->buffer, number, 0);
    writeFully(file, worker->buffer, BLOCK, -1);
    if (durable && fsync(file) != 0) fail("fsync %s", name);
    closeChecked(file);
}

static void readSmallFile(struct worker *worker, uint64_t number) {
    char name[32];
    fileName(name, 'f', number);
    int file = openOwn(worker, name, O_RDONLY);
    if (read(file, worker->buffer, BLOCK) != BLOCK) fail("short read of %s", name);
    checkBlock(worker->buffer, number, 0, name);
    closeChecked(file);
}

static void statSmallFile(struct worker *worker, uint64_t number) {
    char name[32];
    struct stat facts;
    fileName(name, 'f', number);
    if (fstatat(worker->directory, name, &facts, AT_SYMLINK_NOFOLLOW) != 0) fail("stat %s", name);
    if (facts.st_size != BLOCK) fail("%s has %lld bytes", name, (long long)facts.st_size);
}

static void begin(struct worker *worker) {
    pthread_barrier_wait(&barrier);
    worker->start = nowNanoseconds();
}

static void finish(struct worker *worker, uint64_t operations) {
    worker->end = nowNanoseconds();
    worker->operations = operations;
}

/// One operation over and over on files 0 ..< count until the time is up, after one pass that warms every cache.
static void repeatWarm(struct worker *worker, void (*operation)(struct worker *, uint64_t)) {
    for (uint64_t number = 0; number < settings.count; number++) operation(worker, number);
    uint64_t limit = (uint64_t)(settings.seconds * 1e9), done = 0;
    begin(worker);
    do {
        for (uint64_t step = 0; step < 32; step++, done++) operation(worker, done % settings.count);
    } while (nowNanoseconds() - worker->start < limit);
    finish(worker, done);
}

/// The file of sequential and random workloads, whole, on disk when this returns.
static int layOutFile(struct worker *worker, const char *name, bool durable) {
    int file = openOwn(worker, name, O_CREAT | O_TRUNC | O_RDWR);
    for (uint64_t offset = 0; offset < settings.bytes; offset += STREAM) {
        for (uint64_t inner = 0; inner < STREAM; inner += BLOCK)
            stampBlock(worker->buffer + inner, 0, (offset + inner) / BLOCK);
        writeFully(file, worker->buffer, STREAM, -1);
    }
    if (durable && fsync(file) != 0) fail("fsync %s", name);
    return file;
}

// MARK: - Workloads

static void create(struct worker *worker) {
    begin(worker);
    for (uint64_t number = 0; number < settings.count; number++) writeSmallFile(worker, number, false);
    finish(worker, settings.count);
}

static void createDurable(struct worker *worker) {
    begin(worker);
    uint64_t before = worker->start;
    for (uint64_t number = 0; number < settings.count; number++) {
        writeSmallFile(worker, number, true);
        uint64_t after = nowNanoseconds();
        worker->latencies[number] = after - before;
        before = after;
    }
    finish(worker, settings.count);
}

static void makeDirectories(struct worker *worker) {
    char name[32];
    begin(worker);
    for (uint64_t number = 0; number < settings.count; number++) {
        fileName(name, 'd', number);
        if (mkdirat(worker->directory, name, 0755) != 0) fail("mkdir %s", name);
    }
    finish(worker, settings.count);
}

static void statWarm(struct worker *worker) { repeatWarm(worker, statSmallFile); }

static void readWarm(struct worker *worker) { repeatWarm(worker, readSmallFile); }

static void readOnce(struct worker *worker) {
    begin(worker);
    for (uint64_t number = 0; number < settings.count; number++) readSmallFile(worker, number);
    finish(worker, settings.count);
}

static void list(struct worker *worker) {
    uint64_t found = 0;
    begin(worker);
    int descriptor = openat(worker->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *stream = descriptor < 0 ? NULL : fdopendir(descriptor);
    if (!stream) fail("opendir");
    for (struct dirent *entry; errno = 0, (entry = readdir(stream));) {
        struct stat facts;
        if (entry->d_name[0] == '.') continue;
        if (fstatat(descriptor, entry->d_name, &facts, AT_SYMLINK_NOFOLLOW) != 0) fail("stat %s", entry->d_name);
        found++;
    }
    if (errno != 0) fail("readdir");
    closedir(stream);
    finish(worker, found);
    if (found != settings.count) fail("readdir found %" PRIu64 " files of %" PRIu64, found, settings.count);
}

static void renameFiles(struct worker *worker) {
    char from[32], to[32];
    for (uint64_t number = 0; number < settings.count; number++) statSmallFile(worker, number);
    begin(worker);
    for (uint64_t number = 0; number < settings.count; number++) {
        fileName(from, 'f', number);
        fileName(to, 'g', number);
        if (renameat(worker->directory, from, worker->directory, to) != 0) fail("rename %s", from);
    }
    finish(worker, settings.count);
}

static void unlinkFiles(struct worker *worker) {
    char name[32];
    struct stat facts;
    for (uint64_t number = 0; number < settings.count; number++) {
        fileName(name, 'g', number);
        if (fstatat(worker->directory, name, &facts, AT_SYMLINK_NOFOLLOW) != 0) fail("stat %s", name);
    }
    begin(worker);
    for (uint64_t number = 0; number < settings.count; number++) {
        fileName(name, 'g', number);
        if (unlinkat(worker->directory, name, 0) != 0) fail("unlink %s", name);
    }
    finish(worker, settings.count);
}

static void overwriteDurable(struct worker *worker) {
    int file = layOutFile(worker, "overwritten", true);
    uint64_t blocks = settings.bytes / BLOCK;
    begin(worker);
    uint64_t before = worker->start;
    for (uint64_t step = 0; step < settings.count; step++) {
        uint64_t number = nextRandom(&worker->random) % blocks;
        stampBlock(worker->buffer, 0, number);
        writeFully(file, worker->buffer, BLOCK, (off_t)(number * BLOCK));
        if (fdatasync(file) != 0) fail("fdatasync");
        uint64_t after = nowNanoseconds();
        worker->latencies[step] = after - before;
        before = after;
    }
    finish(worker, settings.count);
    closeChecked(file);
}

static void appendDurable(struct worker *worker) {
    int file = openOwn(worker, "appended", O_CREAT | O_TRUNC | O_WRONLY | O_APPEND);
    if (fsync(file) != 0) fail("fsync");
    begin(worker);
    uint64_t before = worker->start;
    for (uint64_t step = 0; step < settings.count; step++) {
        stampBlock(worker->buffer, 0, step);
        writeFully(file, worker->buffer, APPEND, -1);
        if (fdatasync(file) != 0) fail("fdatasync");
        uint64_t after = nowNanoseconds();
        worker->latencies[step] = after - before;
        before = after;
    }
    finish(worker, settings.count);
    closeChecked(file);
}

static void writeStream(struct worker *worker) {
    begin(worker);
    int file = layOutFile(worker, "stream", true);
    finish(worker, settings.bytes / STREAM);
    closeChecked(file);
}

static void readStream(struct worker *worker) {
    begin(worker);
    int file = openOwn(worker, "stream", O_RDONLY);
    for (uint64_t offset = 0; offset < settings.bytes; offset += STREAM) {
        for (size_t filled = 0; filled < STREAM;) {
            ssize_t got = read(file, worker->buffer + filled, STREAM - filled);
            if (got <= 0) fail("read of stream at %" PRIu64 " returned %zd", offset + filled, got);
            filled += (size_t)got;
        }
        for (uint64_t inner = 0; inner < STREAM; inner += BLOCK)
            checkBlock(worker->buffer + inner, 0, (offset + inner) / BLOCK, "stream");
    }
    finish(worker, settings.bytes / STREAM);
    closeChecked(file);
}

static void prepareRandom(struct worker *worker) {
    begin(worker);
    closeChecked(layOutFile(worker, "random", true));
    finish(worker, settings.bytes / STREAM);
}

static void readRandom(struct worker *worker) {
    uint64_t blocks = settings.bytes / BLOCK;
    begin(worker);
    int file = openOwn(worker, "random", O_RDONLY);
    for (uint64_t step = 0; step < settings.count; step++) {
        uint64_t number = nextRandom(&worker->random) % blocks;
        if (pread(file, worker->buffer, BLOCK, (off_t)(number * BLOCK)) != BLOCK) fail("short read of random");
        checkBlock(worker->buffer, 0, number, "random");
    }
    finish(worker, settings.count);
    closeChecked(file);
}

static void writeRandom(struct worker *worker) {
    uint64_t blocks = settings.bytes / BLOCK;
    begin(worker);
    int file = openOwn(worker, "random", O_WRONLY);
    for (uint64_t step = 0; step < settings.count; step++) {
        uint64_t number = nextRandom(&worker->random) % blocks;
        stampBlock(worker->buffer, 0, number);
        writeFully(file, worker->buffer, BLOCK, (off_t)(number * BLOCK));
    }
    if (fsync(file) != 0) fail("fsync");
    finish(worker, settings.count);
    closeChecked(file);
}

/// `count` empty files spread over directories of 1,000: what a daemon's memory is measured with.
static void createMany(struct worker *worker) {
    char name[64];
    begin(worker);
    for (uint64_t number = 0; number < settings.count; number++) {
        if (number % 1000 == 0) {
            sprintf(name, "m%05" PRIu64, number / 1000);
            if (mkdirat(worker->directory, name, 0755) != 0) fail("mkdir %s", name);
        }
        sprintf(name, "m%05" PRIu64 "/f%03" PRIu64, number / 1000, number % 1000);
        closeChecked(openOwn(worker, name, O_CREAT | O_EXCL | O_WRONLY));
    }
    finish(worker, settings.count);
}

/// Reads every file below the directory once: warms caches before tools that work on whole trees.
static uint64_t warmTree(int directory) {
    static uint8_t buffer[STREAM];
    uint64_t files = 0;
    DIR *stream = fdopendir(directory);
    if (!stream) fail("opendir");
    for (struct dirent *entry; (entry = readdir(stream));) {
        struct stat facts;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (fstatat(directory, entry->d_name, &facts, AT_SYMLINK_NOFOLLOW) != 0) fail("stat %s", entry->d_name);
        if (!S_ISDIR(facts.st_mode) && !S_ISREG(facts.st_mode)) continue;
        int child = openat(directory, entry->d_name, O_RDONLY | O_CLOEXEC);
        if (child < 0) fail("open %s", entry->d_name);
        if (S_ISDIR(facts.st_mode)) {
            files += warmTree(child);
            continue;
        }
        while (read(child, buffer, sizeof buffer) > 0) {}
        closeChecked(child);
        files++;
    }
    closedir(stream);
    return files;
}

static void warm(struct worker *worker) {
    begin(worker);
    finish(worker, warmTree(dup(worker->directory)));
}

/// Keeps one processor busy until killed: the load of `--hogs`.
static void spin(struct worker *worker) {
    for (;;) nextRandom(&worker->random);
}

static const struct workload {
    const char *name;
    void (*run)(struct worker *);
    bool latencies;
} workloads[] = {
    {"create", create, false},
    {"create-fsync", createDurable, true},
    {"mkdir", makeDirectories, false},
    {"stat-warm", statWarm, false},
    {"read-warm", readWarm, false},
    {"read-once", readOnce, false},
    {"list", list, false},
    {"rename", renameFiles, false},
    {"unlink", unlinkFiles, false},
    {"overwrite-fdatasync", overwriteDurable, true},
    {"append-fdatasync", appendDurable, true},
    {"write-stream", writeStream, false},
    {"read-stream", readStream, false},
    {"prepare-random", prepareRandom, false},
    {"read-random", readRandom, false},
    {"write-random", writeRandom, false},
    {"create-many", createMany, false},
    {"warm", warm, false},
    {"spin", spin, false},
};

static const struct workload *chosen;

// MARK: - Frame

static void *threadBody(void *argument) {
    chosen->run(argument);
    return NULL;
}

/// Each thread works in a directory of its own (`t0`, `t1` …), the way programs that share a disk do.
static void prepareWorker(struct worker *worker, int root, int index) {
    char name[16];
    sprintf(name, "t%d", index);
    worker->index = index;
    worker->random = 0x5eed + (uint64_t)index;
    if (mkdirat(root, name, 0755) != 0 && errno != EEXIST) fail("mkdir %s", name);
    worker->directory = openat(root, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (worker->directory < 0) fail("open %s", name);
    if (posix_memalign((void **)&worker->buffer, BLOCK, STREAM) != 0) fail("memory");
    for (size_t offset = 0; offset < STREAM; offset += 8) {
        uint64_t word = nextRandom(&worker->random);
        memcpy(worker->buffer + offset, &word, 8);
    }
    worker->latencies = chosen->latencies ? calloc(settings.count, sizeof(uint64_t)) : NULL;
}

static int compareNumbers(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

static void report(struct worker *workers) {
    uint64_t start = UINT64_MAX, end = 0, operations = 0;
    for (uint64_t index = 0; index < settings.threads; index++) {
        if (workers[index].start < start) start = workers[index].start;
        if (workers[index].end > end) end = workers[index].end;
        operations += workers[index].operations;
    }
    printf("{\"operations\": %" PRIu64 ", \"seconds\": %.9f", operations, (double)(end - start) / 1e9);
    if (chosen->latencies) {
        uint64_t *all = calloc(operations, sizeof(uint64_t)), filled = 0;
        for (uint64_t index = 0; index < settings.threads; index++, filled += settings.count)
            memcpy(all + filled, workers[index].latencies, settings.count * sizeof(uint64_t));
        qsort(all, operations, sizeof(uint64_t), compareNumbers);
        printf(", \"median\": %.9f, \"p99\": %.9f, \"worst\": %.9f", (double)all[operations / 2] / 1e9,
               (double)all[operations * 99 / 100] / 1e9, (double)all[operations - 1] / 1e9);
    }
    printf("}\n");
}

static void parse(int count, char **words) {
    if (count < 3) {
        errno = 0;
        fail("usage: workloads NAME DIRECTORY [--count N] [--threads N] [--bytes N] [--seconds S]");
    }
    settings.workload = words[1];
    settings.directory = words[2];
    for (int index = 3; index + 1 < count; index += 2) {
        const char *value = words[index + 1];
        if (!strcmp(words[index], "--count")) settings.count = strtoull(value, NULL, 10);
        else if (!strcmp(words[index], "--threads")) settings.threads = strtoull(value, NULL, 10);
        else if (!strcmp(words[index], "--bytes")) settings.bytes = strtoull(value, NULL, 10) / STREAM * STREAM;
        else if (!strcmp(words[index], "--seconds")) settings.seconds = strtod(value, NULL);
        else { errno = 0; fail("unknown option %s", words[index]); }
    }
    errno = 0;
    if (settings.threads < 1 || settings.threads > MAX_THREADS) fail("from 1 to %d threads", MAX_THREADS);
    if (settings.count < 1 || settings.bytes < STREAM) fail("count and bytes must be positive");
    for (size_t index = 0; index < sizeof workloads / sizeof *workloads; index++)
        if (!strcmp(workloads[index].name, settings.workload)) chosen = &workloads[index];
    if (!chosen) fail("unknown workload %s", settings.workload);
}

int main(int count, char **words) {
    static struct worker workers[MAX_THREADS];
    parse(count, words);
    int root = open(settings.directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) fail("open %s", settings.directory);
    if (chosen->run == warm) {
        workers[0].directory = root;
    } else {
        for (uint64_t index = 0; index < settings.threads; index++) prepareWorker(&workers[index], root, (int)index);
    }
    pthread_barrier_init(&barrier, NULL, (unsigned)settings.threads);
    for (uint64_t index = 1; index < settings.threads; index++)
        if (pthread_create(&workers[index].thread, NULL, threadBody, &workers[index]) != 0) fail("pthread_create");
    threadBody(&workers[0]);
    for (uint64_t index = 1; index < settings.threads; index++) pthread_join(workers[index].thread, NULL);
    report(workers);
    return 0;
}
