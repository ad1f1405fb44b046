// What Swift cannot see of libfuse and of Linux: variadic calls, macros, thread-local storage, the raw protocol.
// The state of a reader thread lives here because a request handler has no other way to find it: libfuse passes on
// only what it knows of.
#ifndef DAYBOOK_FUSE_SHIM_H
#define DAYBOOK_FUSE_SHIM_H

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma clang assume_nonnull begin

// --- reader threads -------------------------------------------------------------------------------------------

/// What a reader thread carries from the raw request to the handler, and the memory it replies from.
struct daybook_fuse_thread {
    /// The server, unretained: it outlives its threads.
    void *server;
    /// Page-aligned memory for replies.
    char *reply;
    size_t reply_size;
    /// FUSE_WRITE_* of the WRITE in hand; libfuse keeps all but one of them to itself.
    uint32_t write_flags;
    /// FUSE_SETXATTR_* of the SETXATTR in hand.
    uint32_t setxattr_flags;
    /// What the kernel offered, while INIT is in hand; zero otherwise.
    uint32_t offered;
    /// Odd from before the thread looks for a request until it has answered it, or found none. Others read it.
    uint64_t *turn;
};

extern _Thread_local struct daybook_fuse_thread *_Nullable daybook_fuse_thread_state;

/// The calling reader thread's state; only valid within a handler.
static inline struct daybook_fuse_thread *daybook_fuse_thread(void) {
    return (struct daybook_fuse_thread *_Nonnull)daybook_fuse_thread_state;
}
void daybook_fuse_set_thread(struct daybook_fuse_thread *thread);

// The kernel's lock on its queue, which the following read(2) takes, orders the store before whatever is read.
static inline void daybook_fuse_begin_turn(uint64_t *turn) { __atomic_store_n(turn, (*turn + 2) | 1, __ATOMIC_RELEASE); }
/// Has no effect on a turn that has ended.
static inline void daybook_fuse_end_turn(uint64_t *turn) { __atomic_store_n(turn, (*turn + 1) & ~(uint64_t)1, __ATOMIC_RELEASE); }
static inline uint64_t daybook_fuse_load_turn(const uint64_t *turn) { return __atomic_load_n(turn, __ATOMIC_ACQUIRE); }

// --- raw requests (raw_request.c) -----------------------------------------------------------------------------

enum { DAYBOOK_FUSE_WRITE_HEADER = 80 };

/// FUSE_WRITE_KILL_SUIDGID of write_flags.
enum { DAYBOOK_FUSE_WRITE_KILL_SUIDGID = 4 };

/// FUSE_SETXATTR_ACL_KILL_SGID of setxattr_flags.
enum { DAYBOOK_FUSE_SETXATTR_KILL_SGID = 1 };

/// Opcodes that the request loop itself must know.
enum daybook_fuse_opcode {
    DAYBOOK_FUSE_INIT = 26,
    DAYBOOK_FUSE_SYNCFS = 50,
    DAYBOOK_FUSE_TMPFILE = 51,
    DAYBOOK_FUSE_STATX = 52,
};

/// What a raw request begins with, and the parameters of TMPFILE behind it.
struct daybook_fuse_raw {
    uint32_t length, opcode;
    uint64_t unique, node;
    uint32_t uid, gid, pid;
    uint16_t extension, padding;
    /// Of TMPFILE.
    uint32_t flags, mode, umask, open_flags;
};

static inline uint32_t daybook_fuse_opcode(const void *request) { return ((const uint32_t *)request)[1]; }
static inline uint64_t daybook_fuse_unique(const void *request) { return ((const uint64_t *)request)[1]; }

/// The thread that sent the request; 0 for one that the kernel sends of its own accord (FORGET, writeback, RELEASE).
static inline uint32_t daybook_fuse_sender(const void *request) {
    uint32_t opcode = daybook_fuse_opcode(request);
    return opcode == 2 || opcode == 42 || opcode == 18 || opcode == 36 ? 0 : ((const uint32_t *)request)[8];
}

/// Notes what libfuse will not pass on, then lets it decode the request and call the handler.
void daybook_fuse_process(struct fuse_session *session, struct daybook_fuse_thread *thread, void *request, size_t size);

/// Gives a SETXATTR the form of old that libfuse expects, without the flags that it does not pass on; returns those. `size`
/// becomes that of the shorter request.
uint32_t daybook_fuse_shorten_setxattr(void *request, size_t *size);

/// Answers a request that libfuse never saw. `error` is a positive errno, or 0. Returns 0 or a negative errno.
int daybook_fuse_reply_raw(int descriptor, uint64_t unique, int error);

/// Answers TMPFILE. Returns 0 or a negative errno: -ENOENT when the kernel did not take the answer.
int daybook_fuse_reply_temporary(int descriptor, uint64_t unique, const struct fuse_entry_param *entry);

/// Answers STATX: `status` and the birth time, to be trusted for `valid` seconds.
int daybook_fuse_reply_statx(
    int descriptor, uint64_t unique, const struct stat *status, const struct timespec *born, double valid);

/// Routes the session's I/O through this shim, so that the answer to INIT can ask for what libfuse 3.14 cannot.
int daybook_fuse_install_io(struct fuse_session *session);

/// Whether this libfuse is one whose answer to INIT we know how to complete.
bool daybook_fuse_can_complete_init(void);

/// The flags of the answer to INIT, `answered` by libfuse, completed from what the kernel `offered`.
uint32_t daybook_fuse_completed_flags(uint32_t answered, uint32_t offered);

// --- libfuse --------------------------------------------------------------------------------------------------

struct fuse_session *_Nullable daybook_fuse_session_new(
    const char *options, const struct fuse_lowlevel_ops *operations, void *server);

/// Passes libfuse's own messages on. `report` is called from any thread.
void daybook_fuse_set_log(void (*_Nullable report)(int level, const char *message));

/// As fuse_add_direntry, for a name that does not end in NUL. `kind` is d_type. Zero: it does not fit.
size_t daybook_fuse_add_entry(
    char *buffer, size_t size, const char *name, size_t length, uint64_t inode, uint32_t kind, uint64_t offset);
/// As fuse_add_direntry_plus.
size_t daybook_fuse_add_entry_plus(
    char *buffer, size_t size, const char *name, size_t length, const struct fuse_entry_param *entry, uint64_t offset);

// --- Linux ----------------------------------------------------------------------------------------------------

// Constants that the importer drops.
static const int32_t daybook_fuse_seek_data = 3, daybook_fuse_seek_hole = 4;
static const int32_t daybook_fuse_xattr_create = 1, daybook_fuse_xattr_replace = 2;

/// ioctl(2) that has a mounted filesystem answer every request that it was sent before (Drain.swift).
enum { DAYBOOK_FUSE_DRAIN = 0x4401 };

/// DRAIN on an open directory: the number of requests that the server has answered, modulo 2^31, or -1 with errno set.
int daybook_fuse_drain(int descriptor);
/// A directory, opened to be synced; -1 with errno set.
int daybook_fuse_open_directory(const char *path);
/// syncfs(2). Returns 0, or -1 with errno set.
int daybook_fuse_syncfs(int descriptor);
/// Tells the kernel that this process is part of writing back: its allocations must not wait for writeback.
int daybook_fuse_become_io_flusher(void);
/// The name that ps(1) shows for the process, from its main thread.
void daybook_fuse_name_process(const char *name);
/// O_NONBLOCK on a descriptor.
int daybook_fuse_set_nonblocking(int descriptor);
/// Waits until `*word` is no longer `expected`, a wake-up, or `nanoseconds` (negative: no limit).
/// Returns false when the time ran out.
bool daybook_fuse_futex_wait(uint32_t *word, uint32_t expected, int64_t nanoseconds);
void daybook_fuse_futex_wake_one(uint32_t *word);

static inline uint32_t daybook_fuse_load(uint32_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
static inline bool daybook_fuse_exchange(uint32_t *word, uint32_t expected, uint32_t desired) {
    return __atomic_compare_exchange_n(word, &expected, desired, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
static inline uint32_t daybook_fuse_add(uint32_t *word, uint32_t value) {
    return __atomic_add_fetch(word, value, __ATOMIC_ACQ_REL);
}

/// Passes the time of a short spin without starving the sibling hyperthread.
static inline void daybook_fuse_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/// A descriptor that becomes readable when SIGINT, SIGTERM or SIGHUP is pending; -1 with errno set. Block them first.
int daybook_fuse_signal_descriptor(void);
/// Blocks SIGINT, SIGTERM and SIGHUP in this thread and those it starts; ignores SIGPIPE.
void daybook_fuse_block_signals(void);
/// Takes a pending signal off the descriptor; 0 when there is none.
int daybook_fuse_take_signal(int descriptor);

/// Starts /proc/self/exe in a session of its own: standard input and output at /dev/null, standard error shared,
/// `writer` as descriptor `status`, all others closed. Returns 0 or the errno.
int daybook_fuse_spawn_daemon(
    char *_Nullable const *_Nonnull arguments, char *_Nullable const *_Nonnull environment, int writer, int status,
    pid_t *child);

/// Monotonic nanoseconds.
uint64_t daybook_fuse_now(void);

#pragma clang assume_nonnull end

#endif
