// Operations: every request of the kernel, decoded, given to one operation of the volume, and answered.
//
// No policy lives here: what is allowed, and what a change means, the volume decides. What does live here is what the
// protocol itself asks for:
// (O1) Every request is answered exactly once, or (FORGET) acknowledged to libfuse.
// (O2) An answer that carries an entry takes a reference to its inode; if the kernel did not take the answer, the
//      reference is given back.
// (O3) ENOSYS makes the kernel stop asking. It is used for that, and for nothing else: OPEN and OPENDIR here, FLUSH,
//      ACCESS and the locks by leaving them out. FSYNC is always answered.
// (O4) Replies that hold data are gathered in the thread's own memory and sent after the volume has returned, so that no
//      lock of the volume is held across the write to the kernel.

import CFuseShim
import Format
import Glibc
import Memory
import Volume

// MARK: the current thread

/// The server of the calling reader thread. Unretained: the server outlives its threads.
@inline(__always) private func withServer<R, E: Error>(_ body: (Server) throws(E) -> R) throws(E) -> R {
    try Unmanaged<Server>.fromOpaque(daybook_fuse_thread().pointee.server).lend(body)
}

@inline(__always) private func withVolume<R>(_ body: (Volume) throws(OperationError) -> R) throws(OperationError) -> R {
    try withServer { server throws(OperationError) in try server.volume.lend(body) }
}

/// The calling thread's memory for replies.
@inline(__always) private var replyMemory: RawBytes {
    let thread = daybook_fuse_thread()
    return RawBytes(base: thread.pointee.reply, count: thread.pointee.reply_size)
}

/// Bytes of a READ from which on a second thread is worth waking: reading as many takes longer than the wake-up.
private let longTransfer = 128 << 10

// MARK: shapes of answers

/// Runs `operation` and answers with its error, or success.
@inline(__always) private func answer(_ request: fuse_req_t, _ operation: (Volume) throws(OperationError) -> Void) {
    do throws(OperationError) {
        try withVolume(operation)
        fuse_reply_err(request, 0)
    } catch {
        fuse_reply_err(request, error.errno)
    }
}

@inline(__always) private func answerEntry(
    _ request: fuse_req_t, _ operation: (Volume) throws(OperationError) -> Attributes
) {
    do throws(OperationError) {
        let attributes = try withVolume(operation)
        var entry = fuse_entry_param(attributes)
        if fuse_reply_entry(request, &entry) == -ENOENT { giveBack(attributes.inode) }
    } catch {
        fuse_reply_err(request, error.errno)
    }
}

@inline(__always) private func answerAttributes(
    _ request: fuse_req_t, _ operation: (Volume) throws(OperationError) -> Attributes
) {
    do throws(OperationError) {
        var status = stat(try withVolume(operation))
        fuse_reply_attr(request, &status, cacheSeconds)
    } catch {
        fuse_reply_err(request, error.errno)
    }
}

/// Answers with the bytes that `operation` puts at the start of the thread's memory.
@inline(__always) private func answerBytes(
    _ request: fuse_req_t, _ operation: (Volume, RawBytes) throws(OperationError) -> Int
) {
    do throws(OperationError) {
        let memory = replyMemory
        let count = try withVolume { volume throws(OperationError) in try operation(volume, memory) }
        fuse_reply_buf(request, memory.pointer, count)
    } catch {
        fuse_reply_err(request, error.errno)
    }
}

/// As `answerBytes`, where `size` zero asks how many there are and too small a size is an error.
@inline(__always) private func answerSized(
    _ request: fuse_req_t, _ size: Int, _ operation: (Volume, RawBytes) throws(OperationError) -> Int
) {
    do throws(OperationError) {
        let memory = replyMemory
        let count = try withVolume { volume throws(OperationError) in try operation(volume, memory) }
        if size == 0 {
            fuse_reply_xattr(request, count)
        } else if count > size {
            fuse_reply_err(request, ERANGE)
        } else {
            fuse_reply_buf(request, memory.pointer, count)
        }
    } catch {
        fuse_reply_err(request, error.errno)
    }
}

/// Runs a change of contents that takes suid and sgid away. Its answer does not tell the kernel, which would go by the old mode,
/// also when it executes the file, for as long as it keeps the inode. So it is told to ask again, and before the answer: from
/// there on nobody may meet the old mode. Attributes alone are let go without a lock that the sender of the request could hold.
@inline(__always) private func withoutPrivileges<R>(
    _ inode: fuse_ino_t, _ operation: (Volume) throws(OperationError) -> R
) throws(OperationError) -> R {
    try withServer { server throws(OperationError) in
        try server.volume.lend { volume throws(OperationError) in
            let mode = try volume.attributes(InodeNumber(UInt64(inode))).item.mode
            defer { if mode & 0o6000 != 0 { fuse_lowlevel_notify_inval_inode(server.session, inode, -1, 0) } }
            return try operation(volume)
        }
    }
}

/// Copies what the volume shows to the thread's memory; an error if it is longer than that.
@inline(__always) private func gather(_ bytes: RawBytes, into memory: RawBytes) -> Int {
    guard bytes.count <= memory.count else { return -1 }
    memory.copy(bytes)
    return bytes.count
}

private func giveBack(_ inode: InodeNumber) { withServer { $0.volume.lend { $0.forget(inode, count: 1) } } }

// MARK: names

private func lookup(_ request: fuse_req_t, _ parent: fuse_ino_t, _ name: UnsafePointer<CChar>) {
    do throws(OperationError) {
        let attributes = try withVolume { volume throws(OperationError) in
            try volume.lookup(InodeNumber(UInt64(parent)), bytes(name))
        }
        var entry = fuse_entry_param(attributes)
        if fuse_reply_entry(request, &entry) == -ENOENT { giveBack(attributes.inode) }
    } catch {
        guard error == .notFound else {
            fuse_reply_err(request, error.errno)
            return
        }
        var entry = fuse_entry_param.negative
        fuse_reply_entry(request, &entry)
    }
}

/// CREATE. The kernel has just seen that there is no such name and holds the directory's lock, so `.exists` is not
/// expected; it is answered as open(2) would, in case that ever changes.
private func create(
    _ request: fuse_req_t, _ parent: fuse_ino_t, _ name: UnsafePointer<CChar>, _ mode: UInt32,
    _ file: UnsafeMutablePointer<fuse_file_info>
) {
    let flags = file.pointee.flags
    let who = caller(request)
    do throws(OperationError) {
        let attributes = try withVolume { volume throws(OperationError) in
            let directory = InodeNumber(UInt64(parent))
            do throws(OperationError) {
                return try volume.make(
                    directory, bytes(name), mode: S_IFREG | mode & 0o7777, device: 0, target: none, who)
            } catch {
                guard error == .exists && flags & O_EXCL == 0 else { throw error }
                let found = try volume.lookup(directory, bytes(name))
                guard flags & O_TRUNC != 0 && found.item.isRegular else { return found }
                var change = AttributeChange()
                change.size = 0
                change.killPrivileges = true
                do throws(OperationError) { return try volume.setAttributes(found.inode, change, who) } catch {
                    volume.forget(found.inode, count: 1)
                    throw error
                }
            }
        }
        var entry = fuse_entry_param(attributes)
        var opened = fuse_file_info()
        opened.fh = 0
        opened.keep_cache = 1
        if fuse_reply_create(request, &entry, &opened) == -ENOENT { giveBack(attributes.inode) }
    } catch {
        fuse_reply_err(request, error.errno)
    }
}

/// No bytes. The address is never used.
private var none: RawBytes { RawBytes(base: UnsafeMutableRawPointer(bitPattern: 16)!, count: 0) }

// MARK: attributes

private func setattr(_ request: fuse_req_t, _ inode: fuse_ino_t, _ status: stat, _ which: Int32) {
    let which = UInt32(bitPattern: which)
    func asked(_ bit: Int32) -> Bool { which & UInt32(bitPattern: bit) != 0 }
    var change = AttributeChange()
    if asked(FUSE_SET_ATTR_MODE) { change.mode = status.st_mode }
    if asked(FUSE_SET_ATTR_UID) { change.uid = status.st_uid }
    if asked(FUSE_SET_ATTR_GID) { change.gid = status.st_gid }
    if asked(FUSE_SET_ATTR_SIZE) { change.size = UInt64(bitPattern: Int64(status.st_size)) }
    if asked(FUSE_SET_ATTR_ATIME_NOW) {
        change.accessed = currentTime()
    } else if asked(FUSE_SET_ATTR_ATIME) {
        change.accessed = status.st_atim.timestamp
    }
    if asked(FUSE_SET_ATTR_MTIME_NOW) {
        change.modified = currentTime()
    } else if asked(FUSE_SET_ATTR_MTIME) {
        change.modified = status.st_mtim.timestamp
    }
    // FATTR_KILL_SUIDGID of the protocol, which comes with a size. Without anything to set the kernel asks for the same: before
    // fallocate and copy_file_range, and for chown(2) that names neither owner nor group. The change time is the volume's own.
    change.killPrivileges = asked(FUSE_SET_ATTR_KILL_SUID) || which & ~UInt32(FUSE_SET_ATTR_CTIME) == 0
    let who = caller(request)
    answerAttributes(request) { volume throws(OperationError) in
        try volume.setAttributes(InodeNumber(UInt64(inode)), change, who)
    }
}

// MARK: directories

/// READDIR and READDIRPLUS. An entry that the volume was shown and took (`true`) is in the reply, and the reverse: its
/// reference would otherwise be lost or never given.
private func list(_ request: fuse_req_t, _ directory: fuse_ino_t, _ size: Int, _ offset: off_t, plus: Bool) {
    answerBytes(request) { volume, memory throws(OperationError) in
        let limit = min(size, memory.count)
        let base = memory.pointer.assumingMemoryBound(to: CChar.self)
        var used = 0
        try volume.list(InodeNumber(UInt64(directory)), from: UInt64(bitPattern: Int64(offset)), attributes: plus) { entry in
            let name = UnsafePointer(entry.name.pointer.assumingMemoryBound(to: CChar.self))
            let count: Int
            if plus {
                var parameters: fuse_entry_param
                if let attributes = entry.attributes {
                    parameters = fuse_entry_param(attributes)
                } else {
                    // `.` and `..`: no node, hence no reference.
                    parameters = fuse_entry_param()
                    parameters.attr.st_ino = UInt(entry.inode.value)
                    parameters.attr.st_mode = UInt32(entry.kind) << 12
                }
                count = daybook_fuse_add_entry_plus(
                    base + used, limit - used, name, entry.name.count, &parameters, entry.offset)
            } else {
                count = daybook_fuse_add_entry(
                    base + used, limit - used, name, entry.name.count, entry.inode.value, UInt32(entry.kind), entry.offset)
            }
            used += count
            return count > 0
        }
        return used
    }
}

// MARK: extended attributes

private func getxattr(_ request: fuse_req_t, _ inode: fuse_ino_t, _ name: UnsafePointer<CChar>, _ size: Int) {
    answerSized(request, size) { volume, memory throws(OperationError) in
        let count = try volume.xattr(InodeNumber(UInt64(inode)), bytes(name)) { gather($0, into: memory) }
        guard count >= 0 else { throw .argumentTooLong }
        return count
    }
}

private func setxattr(
    _ request: fuse_req_t, _ inode: fuse_ino_t, _ name: UnsafePointer<CChar>, _ value: RawBytes, _ flags: Int32
) {
    let create = flags & daybook_fuse_xattr_create != 0
    let replace = flags & daybook_fuse_xattr_replace != 0
    let kill = daybook_fuse_thread().pointee.setxattr_flags & UInt32(DAYBOOK_FUSE_SETXATTR_KILL_SGID) != 0
    let who = caller(request)
    answer(request) { volume throws(OperationError) in
        try volume.setXattr(
            InodeNumber(UInt64(inode)), bytes(name), value, create: create, replace: replace, killSetGroup: kill, who)
    }
}

// MARK: durability

private func sync(_ request: fuse_req_t) {
    withServer { server in
        if server.volume.lend({ $0.isCommitted }) {
            fuse_reply_err(request, 0)
        } else {
            server.commits.ask(CommitWaiter(request: request, unique: 0)) { server.loop.leaveForLong(server.commits) }
        }
    }
}

// MARK: the connection

/// INIT: what we ask of the kernel. Three more bits are asked for by the shim (raw_request.c).
func negotiate(_ connection: inout fuse_conn_info) {
    func ask(_ capability: Int32) {
        let bit = UInt32(bitPattern: capability)
        if connection.capable & bit != 0 { connection.want |= bit }
    }
    func decline(_ capability: Int32) { connection.want &= ~UInt32(bitPattern: capability) }

    for capability in [
        FUSE_CAP_ASYNC_READ, FUSE_CAP_PARALLEL_DIROPS, FUSE_CAP_EXPORT_SUPPORT,
        FUSE_CAP_CACHE_SYMLINKS, FUSE_CAP_READDIRPLUS, FUSE_CAP_READDIRPLUS_AUTO, FUSE_CAP_EXPLICIT_INVAL_DATA,
    ] { ask(Int32(capability)) }

    // Without OPEN there is no request that a truncating open could ride on: with it truncations would be lost.
    decline(Int32(FUSE_CAP_ATOMIC_O_TRUNC))
    // Nobody else changes the data.
    decline(Int32(FUSE_CAP_AUTO_INVAL_DATA))
    // Having ended one of these, the kernel keeps what somebody read into its cache meanwhile: old contents, for good.
    decline(Int32(FUSE_CAP_ASYNC_DIO))
    // Measured: no gain.
    decline(Int32(FUSE_CAP_SPLICE_READ))
    decline(Int32(FUSE_CAP_SPLICE_WRITE))
    decline(Int32(FUSE_CAP_SPLICE_MOVE))
    // The first version has the server clear suid on every write, root's included; the second is asked for instead.
    decline(Int32(FUSE_CAP_HANDLE_KILLPRIV))
    // With it write(2) ends without our having been asked: on a full filesystem, with an acknowledgement that cannot be kept.
    decline(Int32(FUSE_CAP_WRITEBACK_CACHE))

    connection.max_write = UInt32(Server.maximumTransfer)
    connection.max_background = UInt32(backgroundRequests)
    connection.congestion_threshold = 48
    connection.time_gran = 1
}

/// With access control lists the umask is ours to apply: where a default list is inherited it does not count.
private func negotiateLists(_ server: Server, _ connection: inout fuse_conn_info) {
    let lists = UInt32(FUSE_CAP_POSIX_ACL | FUSE_CAP_DONT_MASK)
    server.volume.lend { volume in
        if volume.hasAccessControlLists && connection.capable & lists == lists {
            connection.want |= lists
        } else {
            volume.ignoreAccessControlLists()
        }
    }
}

// MARK: the table

/// Absent on purpose: flush (nothing to do at close, and its absence saves a message), access (default_permissions),
/// getlk, setlk and flock (the kernel's own locks are right for a single owner), bmap, poll.
func makeOperations() -> fuse_lowlevel_ops {
    var table = fuse_lowlevel_ops()

    table.`init` = { userdata, connection in
        Unmanaged<Server>.fromOpaque(userdata!).lend { server in
            negotiate(&connection!.pointee)
            negotiateLists(server, &connection!.pointee)
        }
    }
    // For a plain mount from fuse_session_destroy only, when all is done; were it a fuseblk one, umount(8) would wait
    // here for the clean checkpoint.
    table.destroy = { userdata in Unmanaged<Server>.fromOpaque(userdata!).lend { $0.closeVolume() } }

    table.lookup = { request, parent, name in lookup(request!, parent, name!) }
    table.forget = { request, inode, count in
        withServer { $0.volume.lend { $0.forget(InodeNumber(UInt64(inode)), count: count) } }
        fuse_reply_none(request)
    }
    table.forget_multi = { request, count, list in
        withServer { server in
            server.volume.lend { volume in
                for index in 0..<count { volume.forget(InodeNumber(list![index].ino), count: list![index].nlookup) }
            }
        }
        fuse_reply_none(request)
    }

    table.getattr = { request, inode, _ in
        answerAttributes(request!) { volume throws(OperationError) in try volume.attributes(InodeNumber(UInt64(inode))) }
    }
    table.setattr = { request, inode, status, which, _ in setattr(request!, inode, status!.pointee, which) }
    table.readlink = { request, inode in
        answerBytes(request!) { volume, memory throws(OperationError) in
            let count = try volume.readLink(InodeNumber(UInt64(inode))) { gather($0, into: memory) }
            guard count >= 0 else { throw .nameTooLong }
            return count
        }
    }

    table.mknod = { request, parent, name, mode, device in
        let who = caller(request!)
        // Programs may leave the type out for a regular file.
        let mode = mode & S_IFMT == 0 ? S_IFREG | mode : mode
        answerEntry(request!) { volume throws(OperationError) in
            try volume.make(
                InodeNumber(UInt64(parent)), bytes(name!), mode: mode, device: UInt32(truncatingIfNeeded: device),
                target: none, who)
        }
    }
    table.mkdir = { request, parent, name, mode in
        let who = caller(request!)
        answerEntry(request!) { volume throws(OperationError) in
            try volume.make(
                InodeNumber(UInt64(parent)), bytes(name!), mode: S_IFDIR | mode & 0o7777, device: 0, target: none, who)
        }
    }
    table.symlink = { request, target, parent, name in
        let who = caller(request!)
        answerEntry(request!) { volume throws(OperationError) in
            try volume.make(
                InodeNumber(UInt64(parent)), bytes(name!), mode: S_IFLNK | 0o777, device: 0, target: bytes(target!), who)
        }
    }
    table.link = { request, inode, parent, name in
        let who = caller(request!)
        answerEntry(request!) { volume throws(OperationError) in
            try volume.link(InodeNumber(UInt64(inode)), InodeNumber(UInt64(parent)), bytes(name!), who)
        }
    }
    table.create = { request, parent, name, mode, file in create(request!, parent, name!, mode, file!) }
    table.unlink = { request, parent, name in
        let who = caller(request!)
        answer(request!) { volume throws(OperationError) in
            try volume.unlink(InodeNumber(UInt64(parent)), bytes(name!), who)
        }
    }
    table.rmdir = { request, parent, name in
        let who = caller(request!)
        answer(request!) { volume throws(OperationError) in
            try volume.removeDirectory(InodeNumber(UInt64(parent)), bytes(name!), who)
        }
    }
    table.rename = { request, parent, name, newParent, newName, flags in
        let who = caller(request!)
        answer(request!) { volume throws(OperationError) in
            try volume.rename(
                InodeNumber(UInt64(parent)), bytes(name!), to: InodeNumber(UInt64(newParent)), bytes(newName!), flags: flags,
                who)
        }
    }

    // ENOSYS: the kernel opens by itself from now on, with its caches kept. It would then answer reads of which we never
    // hear, so when access times are to be exact each open lets go of what is cached.
    table.open = { request, _, file in
        if withServer({ $0.options.strictAccessTimes }) {
            fuse_reply_open(request, file)
        } else {
            fuse_reply_err(request, ENOSYS)
        }
    }
    table.opendir = { request, _, _ in fuse_reply_err(request, ENOSYS) }
    table.release = { request, _, _ in fuse_reply_err(request, 0) }

    table.read = { request, inode, size, offset, _ in
        answerBytes(request!) { volume, memory throws(OperationError) in
            guard size <= memory.count else { throw .invalid }
            if size >= longTransfer { withServer { $0.loop.leaveForTransfer() } }
            return try volume.read(
                InodeNumber(UInt64(inode)), at: UInt64(bitPattern: Int64(offset)), into: memory.slice(0, size))
        }
    }
    table.write = { request, inode, data, size, offset, _ in
        let who = caller(request!)
        let kill = daybook_fuse_thread().pointee.write_flags & UInt32(DAYBOOK_FUSE_WRITE_KILL_SUIDGID) != 0
        let payload = RawBytes(base: UnsafeMutableRawPointer(mutating: data!), count: size)
        func write(_ volume: Volume) throws(OperationError) {
            try volume.write(
                InodeNumber(UInt64(inode)), at: UInt64(bitPattern: Int64(offset)), payload, killPrivileges: kill, who)
        }
        do throws(OperationError) {
            if kill { try withoutPrivileges(inode, write) } else { try withVolume(write) }
            fuse_reply_write(request, size)
        } catch {
            fuse_reply_err(request, error.errno)
        }
    }

    table.fsync = { request, _, _, _ in sync(request!) }
    table.fsyncdir = { request, _, _, _ in sync(request!) }
    table.ioctl = { request, _, command, _, _, _, _, _, _ in
        guard Int(command) == DAYBOOK_FUSE_DRAIN else {
            fuse_reply_err(request, ENOTTY)
            return
        }
        let answered = withServer { $0.loop.drain() }
        fuse_reply_ioctl(request, answered, nil, 0)
    }
    table.readdir = { request, inode, size, offset, _ in list(request!, inode, size, offset, plus: false) }
    table.readdirplus = { request, inode, size, offset, _ in list(request!, inode, size, offset, plus: true) }

    table.statfs = { request, _ in
        let statistics = withServer { $0.volume.lend { $0.statistics() } }
        var status = statvfs()
        status.f_bsize = UInt(blockSize)
        status.f_frsize = UInt(blockSize)
        status.f_blocks = UInt(statistics.blocks)
        status.f_bfree = UInt(statistics.free)
        status.f_bavail = UInt(statistics.available)
        status.f_files = UInt(statistics.inodes)
        status.f_ffree = UInt(statistics.freeInodes)
        status.f_namemax = UInt(Limit.name)
        fuse_reply_statfs(request, &status)
    }

    table.setxattr = { request, inode, name, value, size, flags in
        setxattr(
            request!, inode, name!,
            value.map { RawBytes(base: UnsafeMutableRawPointer(mutating: $0), count: size) } ?? none, flags)
    }
    table.getxattr = { request, inode, name, size in getxattr(request!, inode, name!, size) }
    table.listxattr = { request, inode, size in
        let who = caller(request!)
        answerSized(request!, size) { volume, memory throws(OperationError) in
            let names = try volume.listXattrs(InodeNumber(UInt64(inode)), who)
            guard names.count <= memory.count else { throw .argumentTooLong }
            memory.copy(names)
            return names.count
        }
    }
    table.removexattr = { request, inode, name in
        let who = caller(request!)
        answer(request!) { volume throws(OperationError) in
            try volume.removeXattr(InodeNumber(UInt64(inode)), bytes(name!), who)
        }
    }

    table.fallocate = { request, inode, mode, offset, length, _ in
        guard offset >= 0 && length > 0 else {
            fuse_reply_err(request, EINVAL)
            return
        }
        let who = caller(request!)
        do throws(OperationError) {
            try withoutPrivileges(inode) { volume throws(OperationError) in
                try volume.fallocate(
                    InodeNumber(UInt64(inode)), mode: mode, offset: UInt64(offset), length: UInt64(length), who)
            }
            fuse_reply_err(request, 0)
        } catch {
            fuse_reply_err(request, error.errno)
        }
    }
    table.lseek = { request, inode, offset, whence, _ in
        guard whence == daybook_fuse_seek_data || whence == daybook_fuse_seek_hole else {
            fuse_reply_err(request, EINVAL)
            return
        }
        guard offset >= 0 else {
            fuse_reply_err(request, ENXIO)
            return
        }
        do throws(OperationError) {
            let found = try withVolume { volume throws(OperationError) in
                try volume.seek(InodeNumber(UInt64(inode)), from: UInt64(offset), to: whence == daybook_fuse_seek_data ? .data : .hole)
            }
            fuse_reply_lseek(request, Int(truncatingIfNeeded: found))
        } catch {
            fuse_reply_err(request, error.errno)
        }
    }
    table.copy_file_range = { request, source, sourceOffset, _, destination, offset, _, length, flags in
        guard flags == 0 && sourceOffset >= 0 && offset >= 0 else {
            fuse_reply_err(request, EINVAL)
            return
        }
        let who = caller(request!)
        do throws(OperationError) {
            let copied = try withoutPrivileges(destination) { volume throws(OperationError) in
                try volume.copyRange(
                    from: InodeNumber(UInt64(source)), at: UInt64(sourceOffset), to: InodeNumber(UInt64(destination)),
                    at: UInt64(offset), length: UInt64(length), who)
            }
            fuse_reply_write(request, Int(truncatingIfNeeded: copied))
        } catch {
            fuse_reply_err(request, error.errno)
        }
    }
    return table
}
