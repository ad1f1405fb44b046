// NameOperations: look-ups, and everything that makes, moves or removes names.

public import Format
import Journal
public import Memory

extension Volume {
    // MARK: references

    /// The inode that `name` leads to; counts one reference.
    public func lookup(_ parent: InodeNumber, _ name: RawBytes) throws(OperationError) -> Attributes {
        try operate { () throws(ViewError) in
            let found = try view.lookup(parent, name)
            references.add(found.inode.value)
            return found
        }
    }

    /// Takes `count` references back. An inode without names and references is reclaimed.
    public func forget(_ inode: InodeNumber, count: UInt64) {
        lock.lock()
        defer { lock.unlock() }
        guard references.remove(inode.value, count) else { return }
        if orphans.contains(inode.value) {
            reclaimable.append(inode.value)
            roomExhausted = false
            // In batches: one record for many is cheaper, and nobody waits for it.
            if reclaimable.count == 64 { lock.broadcast() }
        }
    }

    // MARK: listing

    /// Calls `emit` for the entries after offset `from` (0 to begin; `.` and `..` come first) until it returns false. With
    /// `attributes`, each entry taken counts one reference, `.` and `..` excepted.
    public func list(
        _ directory: InodeNumber, from: UInt64, attributes: Bool, _ emit: (DirectoryEntry) -> Bool
    ) throws(OperationError) {
        // What was emitted before a node had to be read is not emitted again.
        var next = from
        var touched = from > 0
        try operate { () throws(ViewError) in
            if !touched { try touchAccessTime(directory) }
            touched = true
            try view.list(directory, from: next, attributes: attributes) { entry in
                guard emit(entry) else { return false }
                next = entry.offset
                if let found = entry.attributes { references.add(found.inode.value) }
                return true
            }
        }
    }

    // MARK: making

    private func checkName(_ name: RawBytes) throws(ViewError) {
        guard name.count > 0 else { throw .refused(.notFound) }
        guard name.count <= Limit.name else { throw .refused(.nameTooLong) }
        // `.` and `..` exist in every directory.
        if name.count <= 2, name.u8(at: 0) == 0x2e, name.count == 1 || name.u8(at: 1) == 0x2e { throw .refused(.exists) }
    }

    /// The directory, still linked, and `name` not in it.
    private func checkAbsent(_ parent: InodeNumber, _ name: RawBytes) throws(ViewError) -> InodeItem {
        try checkName(name)
        let directory = try view.directory(parent)
        guard directory.links > 0 else { throw .refused(.notFound) }
        guard try view.entry(parent, name) == nil else { throw .refused(.exists) }
        return directory
    }

    /// Makes a file of the type that `mode` says: regular, directory, device, fifo, socket, or symlink to `target`. Counts one
    /// reference. In a setgid directory the group is the directory's, and directories inherit the bit. The permissions are what
    /// the directory's default access control list leaves of those in `mode`, else the caller's umask.
    public func make(
        _ parent: InodeNumber, _ name: RawBytes, mode: UInt32, device: UInt32, target: RawBytes, _ caller: Caller
    ) throws(OperationError) -> Attributes {
        try mutate(blocks: 8) { () throws(ViewError) in
            guard let kind = FileKind(mode: mode) else { throw .refused(.invalid) }
            guard target.count <= Limit.symlinkTarget else { throw .refused(.nameTooLong) }
            if kind == .symlink && target.count == 0 { throw .refused(.notFound) }
            let directory = try checkAbsent(parent, name)
            if kind == .directory && directory.links >= Limit.links { throw .refused(.tooManyLinks) }
            guard view.nextInode < Limit.inode else { throw .refused(.noSpace) }
            let entry = try view.freeOffset(parent, .entry, name)
            let inode = InodeNumber(view.nextInode)
            try view.bringInNew(inode)
            var mode = mode
            var group = caller.gid
            if directory.mode & 0o2000 != 0 {
                group = directory.gid
                if kind == .directory { mode |= 0o2000 }
            }
            let inherited = try inherit(parent, directory, &mode, caller)
            let type: RecordType = switch kind {
            case .regular: .create
            case .directory: .mkdir
            case .symlink: .symlink
            default: .mknod
            }
            let payload = MakePayload.size(name: name.count, target: target.count)
            let time = now()
            if !inherited.isEmpty { try makeRoom(inherited.reduce(Record.size(payload: payload)) { $0 + $1.room }) }
            try perform(type, payload: payload, caller, time: time) { bytes in
                MakePayload.store(
                    bytes, parent: parent, entry: entry, inode: inode, mode: mode, uid: caller.uid, gid: group,
                    device: device, name: name, target: target)
            }
            for change in inherited { try perform(change, inode, caller, time: time) }
            references.add(inode.value)
            return try view.attributes(inode)
        }
    }

    /// Makes a regular file without a name, on the filesystem of `directory` (O_TMPFILE). Counts one reference; once the last is
    /// given back the file is gone, unless `link` gave it a name.
    public func makeTemporary(
        _ directory: InodeNumber, mode: UInt32, _ caller: Caller
    ) throws(OperationError) -> Attributes {
        try mutate(blocks: 8) { () throws(ViewError) in
            guard FileKind(mode: mode) == .regular else { throw .refused(.invalid) }
            let parent = try view.directory(directory)
            guard parent.links > 0 else { throw .refused(.notFound) }
            guard view.nextInode < Limit.inode else { throw .refused(.noSpace) }
            let inode = InodeNumber(view.nextInode)
            try view.bringInNew(inode)
            try view.bringInOrphan(inode)
            let group = parent.mode & 0o2000 != 0 ? parent.gid : caller.gid
            var mode = mode
            let inherited = try inherit(directory, parent, &mode, caller)
            let payload = MakePayload.size(name: 0, target: 0)
            let time = now()
            if !inherited.isEmpty { try makeRoom(inherited.reduce(Record.size(payload: payload)) { $0 + $1.room }) }
            let empty: [UInt8] = []
            try perform(.tmpfile, payload: payload, caller, time: time) { bytes in
                empty.withRawBytes { none in
                    MakePayload.store(
                        bytes, parent: directory, entry: 0, inode: inode, mode: mode, uid: caller.uid, gid: group, device: 0,
                        name: none, target: none)
                }
            }
            for change in inherited { try perform(change, inode, caller, time: time) }
            references.add(inode.value)
            orphans.insert(inode.value)
            return try view.attributes(inode)
        }
    }

    /// Another name for an inode, or the first for one without; counts one reference.
    public func link(
        _ inode: InodeNumber, _ parent: InodeNumber, _ name: RawBytes, _ caller: Caller
    ) throws(OperationError) -> Attributes {
        // Its orphan item goes with the first name, and must not be the one that says what is left to trim.
        try finishTrim(inode)
        return try mutate(blocks: 4) { () throws(ViewError) in
            try finishTrimNow(inode)
            let item = try view.attributes(inode).item
            if item.isDirectory { throw .refused(.notPermitted) }
            guard item.links < Limit.links else { throw .refused(.tooManyLinks) }
            // The kernel lets only O_TMPFILE's files have a name again: of others the last name stays gone.
            _ = try checkAbsent(parent, name)
            let entry = try view.freeOffset(parent, .entry, name)
            if item.links == 0 { try view.bringInOrphan(inode) }
            try perform(.link, payload: NamePayload.fixed + name.count, caller, time: now()) { bytes in
                NamePayload.store(bytes, parent: parent, entry: entry, inode: inode, name: name)
            }
            if item.links == 0 { orphans.remove(inode.value) }
            references.add(inode.value)
            return try view.attributes(inode)
        }
    }

    // MARK: removing

    public func unlink(_ parent: InodeNumber, _ name: RawBytes, _ caller: Caller) throws(OperationError) {
        try mutate(deletes: true) { () throws(ViewError) in
            let (entry, item) = try existing(parent, name)
            if item.isDirectory { throw .refused(.isDirectory) }
            if item.links == 1 { try view.bringInOrphan(entry.inode) }
            try perform(.unlink, payload: NamePayload.fixed + name.count, caller, time: now()) { bytes in
                NamePayload.store(bytes, parent: parent, entry: entry.offset, inode: entry.inode, name: name)
            }
            if item.links == 1 { orphaned(entry.inode) }
        }
    }

    public func removeDirectory(_ parent: InodeNumber, _ name: RawBytes, _ caller: Caller) throws(OperationError) {
        try mutate(deletes: true) { () throws(ViewError) in
            if name.count == 1, name.u8(at: 0) == 0x2e { throw .refused(.invalid) }
            if name.count == 2, name.u8(at: 0) == 0x2e, name.u8(at: 1) == 0x2e { throw .refused(.notEmpty) }
            let (entry, item) = try existing(parent, name)
            guard item.isDirectory else { throw .refused(.notDirectory) }
            guard item.length == 0 else { throw .refused(.notEmpty) }
            try view.bringInOrphan(entry.inode)
            try perform(.rmdir, payload: NamePayload.fixed + name.count, caller, time: now()) { bytes in
                NamePayload.store(bytes, parent: parent, entry: entry.offset, inode: entry.inode, name: name)
            }
            orphaned(entry.inode)
        }
    }

    private func existing(
        _ parent: InodeNumber, _ name: RawBytes
    ) throws(ViewError) -> (entry: (offset: UInt64, inode: InodeNumber, kind: UInt8), item: InodeItem) {
        guard name.count <= Limit.name else { throw .refused(.nameTooLong) }
        _ = try view.directory(parent)
        guard let entry = try view.entry(parent, name) else { throw .refused(.notFound) }
        guard let item = try view.item(entry.inode) else {
            throw .damaged("directory \(parent): entry '\(name.text)' leads to inode \(entry.inode), which does not exist")
        }
        return (entry, item)
    }

    /// The inode has lost its last name: it is reclaimed as soon as nobody holds it.
    private func orphaned(_ inode: InodeNumber) {
        orphans.insert(inode.value)
        guard !references.isHeld(inode.value) else { return }
        reclaimable.append(inode.value)
        roomExhausted = false
    }

    // MARK: moving

    public func rename(
        _ parent: InodeNumber, _ name: RawBytes, to newParent: InodeNumber, _ newName: RawBytes, flags: UInt32,
        _ caller: Caller
    ) throws(OperationError) {
        try mutate(blocks: 4) { () throws(ViewError) in
            guard flags & ~7 == 0, flags & RenameFlags.exchange == 0 || flags == RenameFlags.exchange else {
                throw .refused(.invalid)
            }
            let (entry, item) = try existing(parent, name)
            let newDirectory = try view.directory(newParent)
            guard newDirectory.links > 0 else { throw .refused(.notFound) }
            guard newName.count > 0, newName.count <= Limit.name else { throw .refused(.nameTooLong) }
            let target = try view.entry(newParent, newName)
            if item.isDirectory, try isAncestor(entry.inode, of: newParent) { throw .refused(.invalid) }
            if target != nil && flags & RenameFlags.noReplace != 0 { throw .refused(.exists) }
            var other = InodeNumber.none
            var lastLink = false
            if let target {
                guard let targetItem = try view.item(target.inode) else {
                    throw .damaged("inode \(target.inode), named in directory \(newParent), does not exist")
                }
                other = target.inode
                if flags & RenameFlags.exchange != 0 {
                    if targetItem.isDirectory, try isAncestor(target.inode, of: parent) { throw .refused(.invalid) }
                } else {
                    // Two names of one file: nothing to do, and both stay (rename(2)).
                    if target.inode == entry.inode && flags & RenameFlags.whiteout == 0 { return }
                    if item.isDirectory && !targetItem.isDirectory { throw .refused(.notDirectory) }
                    if !item.isDirectory && targetItem.isDirectory { throw .refused(.isDirectory) }
                    if targetItem.isDirectory && targetItem.length > 0 { throw .refused(.notEmpty) }
                    lastLink = targetItem.isDirectory || targetItem.links == 1
                }
            } else if flags & RenameFlags.exchange != 0 {
                throw .refused(.notFound)
            }
            if item.isDirectory && parent != newParent && newDirectory.links >= Limit.links { throw .refused(.tooManyLinks) }
            let newEntry: UInt64
            if let target { newEntry = target.offset } else { newEntry = try view.freeOffset(newParent, .entry, newName) }
            guard view.nextInode < Limit.inode else { throw .refused(.noSpace) }
            let whiteout = flags & RenameFlags.whiteout != 0 ? InodeNumber(view.nextInode) : .none
            if whiteout != .none { try view.bringInNew(whiteout) }
            if lastLink { try view.bringInOrphan(other) }
            try perform(
                .rename, payload: RenamePayload.fixed + name.count + newName.count, caller, time: now()
            ) { bytes in
                RenamePayload.store(
                    bytes, parent: parent, entry: entry.offset, inode: entry.inode, newParent: newParent, newEntry: newEntry,
                    other: other, whiteoutInode: whiteout, flags: flags, name: name, newName: newName)
            }
            if lastLink { orphaned(other) }
        }
    }

    /// Whether `directory` is `inode` or lies below it.
    private func isAncestor(_ inode: InodeNumber, of directory: InodeNumber) throws(ViewError) -> Bool {
        var at = directory
        var steps = 0
        while at != .root {
            if at == inode { return true }
            guard let item = try view.item(at), item.isDirectory, steps < 1 << 20 else {
                throw .damaged("directory \(at) has no way to the root")
            }
            at = item.parent
            if at == .none { return false }
            steps += 1
        }
        return inode == .root
    }
}
