// AttributeOperations: stat, setattr, symlinks, extended attributes.

public import Format
import Journal
public import Memory

extension Volume {
    public func attributes(_ inode: InodeNumber) throws(OperationError) -> Attributes {
        try operate { () throws(ViewError) in try view.attributes(inode) }
    }

    /// Changes attributes; a change of size is a record of its own, written first.
    public func setAttributes(
        _ inode: InodeNumber, _ change: AttributeChange, _ caller: Caller
    ) throws(OperationError) -> Attributes {
        if let size = change.size { try truncate(inode, to: size, killPrivileges: change.killPrivileges, caller) }
        return try mutate(deletes: true) { () throws(ViewError) in
            let item = try view.attributes(inode).item
            var mask: UInt32 = 0
            var mode = item.mode
            if let wanted = change.mode {
                mask |= AttributesPayload.mode
                mode = (item.mode & 0o170000) | (wanted & 0o7777)
            }
            if change.uid != nil || change.gid != nil || (change.killPrivileges && change.size == nil) {
                // chown clears suid, and sgid of what may be executed by its group (chown(2)).
                let cleared = change.mode == nil ? withoutPrivileges(mode, item, caller) : mode
                if cleared != mode {
                    mask |= AttributesPayload.mode
                    mode = cleared
                }
            }
            if change.uid != nil { mask |= AttributesPayload.uid }
            if change.gid != nil { mask |= AttributesPayload.gid }
            if change.accessed != nil { mask |= AttributesPayload.accessed }
            if change.modified != nil { mask |= AttributesPayload.modified }
            if mask != 0 {
                let payload = AttributesPayload(
                    inode: inode, mask: mask, mode: mode, uid: change.uid ?? item.uid, gid: change.gid ?? item.gid,
                    accessed: change.accessed ?? item.accessed, modified: change.modified ?? item.modified)
                try perform(.setattr, payload: AttributesPayload.fixed, caller, time: now()) { payload.store($0) }
            }
            return try view.attributes(inode)
        }
    }

    /// The mode without suid, and without sgid where the group may execute or `caller` is neither root nor of the group (groups that
    /// it has beside its own are not known here, and do not count).
    func withoutPrivileges(_ mode: UInt32, _ item: InodeItem, _ caller: Caller) -> UInt32 {
        guard item.isRegular else { return mode }
        var mode = mode & ~0o4000
        if mode & 0o0010 != 0 || (caller.uid != 0 && caller.gid != item.gid) { mode &= ~0o2000 }
        return mode
    }

    /// The mode after a change of contents of which the kernel does not say whether suid and sgid are to go: root keeps them.
    func modeAfterChange(_ item: InodeItem, _ caller: Caller) -> UInt32 {
        caller.uid == 0 ? item.mode : withoutPrivileges(item.mode, item, caller)
    }

    /// Gives a symlink's target to `body`.
    public func readLink<R>(_ inode: InodeNumber, _ body: (RawBytes) -> R) throws(OperationError) -> R {
        let target = try operate { () throws(ViewError) in try view.target(inode) }
        return target.withRawBytes(body)
    }

    // MARK: extended attributes

    /// Gives an attribute's value to `body`.
    public func xattr<R>(_ inode: InodeNumber, _ name: RawBytes, _ body: (RawBytes) -> R) throws(OperationError) -> R {
        let value = try operate { () throws(ViewError) in try view.xattrValue(inode, name) }
        return value.withRawBytes(body)
    }

    /// Names, each ended by NUL.
    public func listXattrs(_ inode: InodeNumber) throws(OperationError) -> [UInt8] {
        try operate { () throws(ViewError) in try view.xattrNames(inode) }
    }

    public func setXattr(
        _ inode: InodeNumber, _ name: RawBytes, _ value: RawBytes, create: Bool, replace: Bool, _ caller: Caller
    ) throws(OperationError) {
        try mutate(blocks: 24) { () throws(ViewError) in
            guard name.count > 0, name.count <= Limit.name else { throw .refused(.rangeTooSmall) }
            guard value.count <= Limit.xattrValue else { throw .refused(.argumentTooLong) }
            _ = try view.attributes(inode)
            let old = try view.xattr(inode, name)
            if old != nil && create { throw .refused(.exists) }
            if old == nil && replace { throw .refused(.noAttribute) }
            let entry: UInt64
            if let old { entry = old.offset } else { entry = try view.freeOffset(inode, .xattr, name) }
            guard view.nextInode < Limit.inode else { throw .refused(.noSpace) }
            // A large value is held in pieces under a number of its own, so that replacing it cannot mix the two.
            let pieces = value.count > XattrItem.inlineValue ? InodeNumber(view.nextInode) : .none
            try perform(
                .setxattr, payload: XattrPayload.fixed + name.count + value.count, caller, time: now()
            ) { bytes in
                XattrPayload.store(bytes, inode: inode, entry: entry, pieces: pieces, name: name, value: value)
            }
        }
    }

    public func removeXattr(_ inode: InodeNumber, _ name: RawBytes, _ caller: Caller) throws(OperationError) {
        try mutate(deletes: true) { () throws(ViewError) in
            guard try view.attributes(inode).item.xattrs > 0, let old = try view.xattr(inode, name) else {
                throw .refused(.noAttribute)
            }
            let empty: [UInt8] = []
            try perform(.removexattr, payload: XattrPayload.fixed + name.count, caller, time: now()) { bytes in
                empty.withRawBytes {
                    XattrPayload.store(bytes, inode: inode, entry: old.offset, pieces: .none, name: name, value: $0)
                }
            }
        }
    }
}
