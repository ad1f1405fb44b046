// Calls that Swift cannot make: variadic ones, and those that newer versions of libfuse turn into macros.

#define _GNU_SOURCE
#include "fuse_shim.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

// --- libfuse --------------------------------------------------------------------------------------------------

struct fuse_session *daybook_fuse_session_new(
    const char *options, const struct fuse_lowlevel_ops *operations, void *server) {
    struct fuse_args arguments = FUSE_ARGS_INIT(0, NULL);
    struct fuse_session *session = NULL;
    if (fuse_opt_add_arg(&arguments, "daybook") == 0 && fuse_opt_add_arg(&arguments, "-o") == 0 &&
        fuse_opt_add_arg(&arguments, options) == 0)
        session = fuse_session_new(&arguments, operations, sizeof *operations, server);
    fuse_opt_free_args(&arguments);
    return session;
}

static void (*log_report)(int, const char *);

static void log_line(enum fuse_log_level level, const char *format, va_list arguments) {
    char line[512];
    int length = vsnprintf(line, sizeof line, format, arguments);
    if (length <= 0) return;
    if (length >= (int)sizeof line) length = sizeof line - 1;
    if (line[length - 1] == '\n') line[length - 1] = 0;
    if (log_report) log_report(level, line);
}

void daybook_fuse_set_log(void (*report)(int, const char *)) {
    log_report = report;
    fuse_set_log_func(report ? log_line : NULL);
}

// libfuse wants names that end in NUL; ours lie within a tree node.
static bool terminate(char copy[NAME_MAX + 1], const char *name, size_t length) {
    if (length > NAME_MAX) return false;
    memcpy(copy, name, length);
    copy[length] = 0;
    return true;
}

size_t daybook_fuse_add_entry(
    char *buffer, size_t size, const char *name, size_t length, uint64_t inode, uint32_t kind, uint64_t offset) {
    char copy[NAME_MAX + 1];
    if (!terminate(copy, name, length)) return 0;
    struct stat status = {.st_ino = inode, .st_mode = kind << 12};
    size_t used = fuse_add_direntry(NULL, buffer, size, copy, &status, (off_t)offset);
    return used <= size ? used : 0;
}

size_t daybook_fuse_add_entry_plus(
    char *buffer, size_t size, const char *name, size_t length, const struct fuse_entry_param *entry, uint64_t offset) {
    char copy[NAME_MAX + 1];
    if (!terminate(copy, name, length)) return 0;
    size_t used = fuse_add_direntry_plus(NULL, buffer, size, copy, entry, (off_t)offset);
    return used <= size ? used : 0;
}

// --- Linux ----------------------------------------------------------------------------------------------------

_Static_assert(SEEK_DATA == 3 && SEEK_HOLE == 4 && XATTR_CREATE == 1 && XATTR_REPLACE == 2, "constants");

_Static_assert(DAYBOOK_FUSE_DRAIN == _IO('D', 1), "ioctl");

int daybook_fuse_drain(int descriptor) {
    int count;
    do count = ioctl(descriptor, DAYBOOK_FUSE_DRAIN);
    while (count < 0 && errno == EINTR);
    return count;
}

int daybook_fuse_open_directory(const char *path) { return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC); }

int daybook_fuse_syncfs(int descriptor) { return syncfs(descriptor); }

int daybook_fuse_become_io_flusher(void) { return prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0 ? 0 : errno; }

void daybook_fuse_name_process(const char *name) { prctl(PR_SET_NAME, name, 0, 0, 0); }

int daybook_fuse_set_nonblocking(int descriptor) {
    int flags = fcntl(descriptor, F_GETFL);
    return flags >= 0 && fcntl(descriptor, F_SETFL, flags | O_NONBLOCK) == 0 ? 0 : errno;
}

static void ending_signals(sigset_t *set) {
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGHUP);
}

void daybook_fuse_block_signals(void) {
    sigset_t set;
    ending_signals(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

int daybook_fuse_signal_descriptor(void) {
    sigset_t set;
    ending_signals(&set);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int daybook_fuse_take_signal(int descriptor) {
    struct signalfd_siginfo signal;
    return read(descriptor, &signal, sizeof signal) == sizeof signal ? (int)signal.ssi_signo : 0;
}

bool daybook_fuse_futex_wait(uint32_t *word, uint32_t expected, int64_t nanoseconds) {
    struct timespec limit = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
    long status = syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, nanoseconds < 0 ? NULL : &limit, NULL, 0);
    return status == 0 || errno != ETIMEDOUT;
}

void daybook_fuse_futex_wake_one(uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0); }

int daybook_fuse_spawn_daemon(
    char *const *arguments, char *const *environment, int writer, int status, pid_t *child) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int error = posix_spawn_file_actions_init(&actions);
    if (error) return error;
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
    // The writer first: if standard descriptors were closed it may be one of them.
    posix_spawn_file_actions_adddup2(&actions, writer, status);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDWR, 0);
    posix_spawn_file_actions_adddup2(&actions, 0, 1);
    posix_spawn_file_actions_addclosefrom_np(&actions, status + 1);
    error = posix_spawn(child, "/proc/self/exe", &actions, &attributes, arguments, environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

uint64_t daybook_fuse_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}
