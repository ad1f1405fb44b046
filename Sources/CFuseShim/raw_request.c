// The raw protocol, where libfuse 3.14 says too little.
//
// It drops FUSE_PARALLEL_DIROPS from the answer to INIT, and knows nothing of FUSE_HANDLE_KILLPRIV_V2 and
// FUSE_SETXATTR_EXT. Without the second every write(2) costs a GETXATTR of security.capability; without the third nobody
// says whether sgid may outlive a new access control list. So the answer is completed on its way out, with bits that the
// kernel offered, and the duties that come with them are taken up here:
// - a WRITE that is to clear suid and sgid says so in write_flags, which libfuse does not pass on. (FATTR_KILL_SUIDGID of
//   SETATTR it does pass on, and an OPEN or CREATE that truncates is never sent: FUSE_ATOMIC_O_TRUNC is off, so the kernel
//   sends SETATTR.)
// - a SETXATTR is longer than libfuse expects, by the flags that say this of sgid.
//
// (R1) Only the answer to INIT is touched, only by the thread that processes INIT, only in a libfuse whose source was
//      read (3.14.x). In another the mount works, with more messages.
// (R2) Requests reach libfuse as it expects them: a SETXATTR is shortened if, and only if, the longer one was asked for.

#define _GNU_SOURCE
#include "fuse_shim.h"

#include <errno.h>
#include <linux/fuse.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

_Static_assert(sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in) == DAYBOOK_FUSE_WRITE_HEADER, "payload of WRITE");
_Static_assert(sizeof(struct fuse_init_out) == 64, "fuse_init_out");
_Static_assert(offsetof(struct fuse_in_header, opcode) == 4 && offsetof(struct fuse_in_header, unique) == 8 &&
                   offsetof(struct fuse_in_header, pid) == 32,
               "header");
_Static_assert(FUSE_FORGET == 2 && FUSE_BATCH_FORGET == 42 && FUSE_RELEASE == 18 && FUSE_INTERRUPT == 36, "opcodes");
_Static_assert((int)FUSE_INIT == (int)DAYBOOK_FUSE_INIT, "opcode");
_Static_assert(FUSE_WRITE_KILL_SUIDGID == DAYBOOK_FUSE_WRITE_KILL_SUIDGID, "write flag");
_Static_assert(FUSE_SETXATTR_ACL_KILL_SGID == DAYBOOK_FUSE_SETXATTR_KILL_SGID, "setxattr flag");

_Thread_local struct daybook_fuse_thread *daybook_fuse_thread_state;

// The kernel was asked for the longer SETXATTR. Written while INIT is processed, before there is a second thread; a process
// has one session.
static bool setxattr_is_longer;

void daybook_fuse_set_thread(struct daybook_fuse_thread *thread) { daybook_fuse_thread_state = thread; }

bool daybook_fuse_can_complete_init(void) { return fuse_version() == 314; }

uint32_t daybook_fuse_completed_flags(uint32_t answered, uint32_t offered) {
    return answered | (offered & (FUSE_PARALLEL_DIROPS | FUSE_HANDLE_KILLPRIV_V2 | FUSE_SETXATTR_EXT));
}

uint32_t daybook_fuse_shorten_setxattr(void *request, size_t *size) {
    struct fuse_in_header *header = request;
    struct fuse_setxattr_in *arguments = (struct fuse_setxattr_in *)(header + 1);
    const size_t front = sizeof *header + FUSE_COMPAT_SETXATTR_IN_SIZE, cut = sizeof *arguments - FUSE_COMPAT_SETXATTR_IN_SIZE;
    if (*size < front + cut) return 0;
    uint32_t flags = arguments->setxattr_flags;
    memmove((char *)request + front, (char *)request + front + cut, *size - front - cut);
    *size -= cut;
    header->len -= cut;
    return flags;
}

void daybook_fuse_process(struct fuse_session *session, struct daybook_fuse_thread *thread, void *request, size_t size) {
    struct fuse_in_header *header = request;
    switch (header->opcode) {
    case FUSE_WRITE:
        thread->write_flags = ((struct fuse_write_in *)(header + 1))->write_flags;
        break;
    case FUSE_SETXATTR:
        // Not told, we take everybody but root for an outsider to the file's group.
        thread->setxattr_flags = setxattr_is_longer ? daybook_fuse_shorten_setxattr(request, &size)
                                 : header->uid      ? FUSE_SETXATTR_ACL_KILL_SGID
                                                    : 0;
        break;
    case FUSE_INIT:
        thread->offered = ((struct fuse_init_in *)(header + 1))->flags;
        break;
    }
    struct fuse_buf buffer = {.size = size, .mem = request};
    fuse_session_process_buf(session, &buffer);
    thread->offered = 0;
}

static ssize_t reply(int descriptor, struct iovec *vector, int count, void *userdata) {
    (void)userdata;
    struct daybook_fuse_thread *thread = daybook_fuse_thread_state;
    if (thread && thread->offered && count == 2 && vector[1].iov_len == sizeof(struct fuse_init_out)) {
        struct fuse_init_out *answer = vector[1].iov_base;
        answer->flags = daybook_fuse_completed_flags(answer->flags, thread->offered);
        setxattr_is_longer = answer->flags & FUSE_SETXATTR_EXT;
    }
    return writev(descriptor, vector, count);
}

static ssize_t receive(int descriptor, void *buffer, size_t size, void *userdata) {
    (void)userdata;
    return read(descriptor, buffer, size);
}

int daybook_fuse_install_io(struct fuse_session *session) {
    static const struct fuse_custom_io io = {.writev = reply, .read = receive};
    return daybook_fuse_can_complete_init() ? fuse_session_custom_io(session, &io, fuse_session_fd(session)) : 0;
}

static int send_reply(int descriptor, uint64_t unique, const void *body, size_t size) {
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + size), .unique = unique};
    struct iovec vector[2] = {{&header, sizeof header}, {(void *)body, size}};
    return writev(descriptor, vector, 2) < 0 ? -errno : 0;
}

static void fill_attributes(struct fuse_attr *to, const struct stat *from) {
    to->ino = from->st_ino;
    to->size = (uint64_t)from->st_size;
    to->blocks = (uint64_t)from->st_blocks;
    to->atime = (uint64_t)from->st_atim.tv_sec;
    to->mtime = (uint64_t)from->st_mtim.tv_sec;
    to->ctime = (uint64_t)from->st_ctim.tv_sec;
    to->atimensec = (uint32_t)from->st_atim.tv_nsec;
    to->mtimensec = (uint32_t)from->st_mtim.tv_nsec;
    to->ctimensec = (uint32_t)from->st_ctim.tv_nsec;
    to->mode = from->st_mode;
    to->nlink = (uint32_t)from->st_nlink;
    to->uid = from->st_uid;
    to->gid = from->st_gid;
    to->rdev = (uint32_t)from->st_rdev;
    to->blksize = (uint32_t)from->st_blksize;
}

int daybook_fuse_reply_temporary(int descriptor, uint64_t unique, const struct fuse_entry_param *entry) {
    struct {
        struct fuse_entry_out entry;
        struct fuse_open_out open;
    } answer = {
        .entry = {.nodeid = entry->ino, .generation = entry->generation, .attr_valid = (uint64_t)entry->attr_timeout},
        .open = {.open_flags = FOPEN_KEEP_CACHE},
    };
    fill_attributes(&answer.entry.attr, &entry->attr);
    return send_reply(descriptor, unique, &answer, sizeof answer);
}

// struct fuse_statx_out of newer kernel headers (protocol 7.39).
struct statx_time {
    int64_t seconds;
    uint32_t nanoseconds;
    int32_t reserved;
};
struct statx_answer {
    uint64_t valid;
    uint32_t valid_nanoseconds, flags;
    uint64_t spare[2];
    uint32_t mask, block_size;
    uint64_t attributes;
    uint32_t links, uid, gid;
    uint16_t mode, spare0;
    uint64_t inode, size, blocks, attributes_mask;
    struct statx_time accessed, born, changed, modified;
    uint32_t device_major, device_minor, filesystem_major, filesystem_minor;
    uint64_t spare2[14];
};
_Static_assert(sizeof(struct statx_answer) == 288, "fuse_statx_out");
_Static_assert(sizeof(struct daybook_fuse_raw) == sizeof(struct fuse_in_header) + 16, "TMPFILE");

static struct statx_time statx_time(const struct timespec *time) {
    return (struct statx_time){.seconds = time->tv_sec, .nanoseconds = (uint32_t)time->tv_nsec};
}

int daybook_fuse_reply_statx(
    int descriptor, uint64_t unique, const struct stat *status, const struct timespec *born, double valid) {
    struct statx_answer answer = {
        .valid = (uint64_t)valid,
        // STATX_BASIC_STATS | STATX_BTIME
        .mask = 0xfff,
        .block_size = (uint32_t)status->st_blksize,
        .links = (uint32_t)status->st_nlink,
        .uid = status->st_uid,
        .gid = status->st_gid,
        .mode = (uint16_t)status->st_mode,
        .inode = status->st_ino,
        .size = (uint64_t)status->st_size,
        .blocks = (uint64_t)status->st_blocks,
        .accessed = statx_time(&status->st_atim),
        .born = statx_time(born),
        .changed = statx_time(&status->st_ctim),
        .modified = statx_time(&status->st_mtim),
        .device_major = major(status->st_rdev),
        .device_minor = minor(status->st_rdev),
    };
    return send_reply(descriptor, unique, &answer, sizeof answer);
}

int daybook_fuse_reply_raw(int descriptor, uint64_t unique, int error) {
    struct fuse_out_header header = {.len = sizeof header, .error = -error, .unique = unique};
    return write(descriptor, &header, sizeof header) < 0 ? -errno : 0;
}
