// RawOperations: requests that libfuse 3.14 does not know, decoded by hand and answered on the descriptor.

import CFuseShim
import Format
import Glibc
import Memory
import Volume

/// Carries out a request that libfuse would refuse; false if it is not one of these.
func serveRaw(_ server: Server, _ request: UnsafeRawPointer) -> Bool {
    switch daybook_fuse_opcode(request) {
    case DAYBOOK_FUSE_SYNCFS.rawValue: syncFilesystem(server, request)
    case DAYBOOK_FUSE_TMPFILE.rawValue: makeTemporary(server, request.assumingMemoryBound(to: daybook_fuse_raw.self))
    case DAYBOOK_FUSE_STATX.rawValue: statx(server, request.assumingMemoryBound(to: daybook_fuse_raw.self))
    default: return false
    }
    return true
}

private func syncFilesystem(_ server: Server, _ request: UnsafeRawPointer) {
    let waiter = CommitWaiter(request: nil, unique: daybook_fuse_unique(request))
    if server.volume.lend({ $0.isCommitted }) {
        server.commits.answer(waiter, 0)
    } else {
        server.commits.ask(waiter) { server.loop.leaveForLong(server.commits) }
    }
}

/// O_TMPFILE.
private func makeTemporary(_ server: Server, _ request: UnsafePointer<daybook_fuse_raw>) {
    let raw = request.pointee
    let who = Caller(uid: raw.uid, gid: raw.gid, pid: raw.pid, umask: raw.umask)
    do throws(OperationError) {
        let attributes = try server.volume.lend { volume throws(OperationError) in
            try volume.makeTemporary(InodeNumber(raw.node), mode: S_IFREG | raw.mode & 0o7777, who)
        }
        var entry = fuse_entry_param(attributes)
        if daybook_fuse_reply_temporary(server.loop.descriptor, raw.unique, &entry) == -ENOENT {
            server.volume.lend { $0.forget(attributes.inode, count: 1) }
        }
    } catch {
        _ = daybook_fuse_reply_raw(server.loop.descriptor, raw.unique, error.errno)
    }
}

/// statx(2) that asks for the birth time.
private func statx(_ server: Server, _ request: UnsafePointer<daybook_fuse_raw>) {
    let (node, unique) = (request.pointee.node, request.pointee.unique)
    do throws(OperationError) {
        let attributes = try server.volume.lend { volume throws(OperationError) in try volume.attributes(InodeNumber(node)) }
        var status = stat(attributes)
        var born = timespec(attributes.item.born)
        _ = daybook_fuse_reply_statx(server.loop.descriptor, unique, &status, &born, cacheSeconds)
    } catch {
        _ = daybook_fuse_reply_raw(server.loop.descriptor, unique, error.errno)
    }
}
