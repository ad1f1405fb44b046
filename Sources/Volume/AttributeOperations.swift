// AttributeOperations: stat, setattr, symlinks, extended attributes.

public import Format
import Journal
public import Memory

extension Volume {
    public func attributes(_ inode: InodeNumber) throws(OperationError) -> Attributes {
        try operate { () throws(ViewError) in try view.attributes(inode) }
    }

    /// Changes attributes, the size among them: all at once.
    public func setAttributes(
        _ inode: InodeNumber, _ change: AttributeChange, _ caller: Caller
    ) throws(OperationError) -> Attributes {
        if let size = change.size {
            try truncate(inode, to: size, change, caller)
            return try attributes(inode)
        }
        return try mutate(deletes: true) { () throws(ViewError) in
            let item = try view.attributes(inode).item
            try perform(try plan(inode, item, change, caller), inode, caller)
            return try view.attributes(inode)
        }
    }

    /// What comes of a change of attributes other than the size. Of `item`, mode and owners count.
    func plan(
        _ inode: InodeNumber, _ item: InodeItem, _ change: AttributeChange, _ caller: Caller
    ) throws(ViewError) -> AttributePlan {
        var plan = AttributePlan()
        var mask: UInt32 = 0
        var mode = item.mode
        if let wanted = change.mode {
            mask |= AttributesPayload.mode
            mode = (item.mode & 0o170000) | (wanted & 0o7777)
            plan.xattr = try planAccessControlList(inode, item, mode: mode)
        }
        let kill = change.killPrivileges && change.size == nil
        if change.uid != nil || change.gid != nil || kill {
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
        if mask != 0 || kill {
            plan.attributes = AttributesPayload(
                inode: inode, mask: mask, mode: mode, uid: change.uid ?? item.uid, gid: change.gid ?? item.gid,
                accessed: change.accessed ?? item.accessed, modified: change.modified ?? item.modified)
        }
        return plan
    }

    /// The records of a plan, if any, in one frame.
    func perform(_ plan: AttributePlan, _ inode: InodeNumber, _ caller: Caller) throws(ViewError) {
        guard plan.attributes != nil || plan.xattr != nil else { return }
        try makeRoom(plan.room)
        let time = now()
        if let attributes = plan.attributes {
            try perform(.setattr, payload: AttributesPayload.fixed, caller, time: time) { attributes.store($0) }
        }
        if let xattr = plan.xattr { try perform(xattr, inode, caller, time: time) }
    }

    /// The mode without suid, and without sgid where the group may execute or who asks is a stranger to the group. To a directory
    /// they mean something else, and stay.
    func withoutPrivileges(_ mode: UInt32, _ item: InodeItem, _ caller: Caller) -> UInt32 {
        guard !item.isDirectory else { return mode }
        var mode = mode & ~0o4000
        if mode & 0o2000 != 0, mode & 0o010 != 0 || !keepsSetGroup(caller, item.gid) { mode &= ~0o2000 }
        return mode
    }

    /// Gives a symlink's target to `body`.
    public func readLink<R>(_ inode: InodeNumber, _ body: (RawBytes) -> R) throws(OperationError) -> R {
        let target = try operate { () throws(ViewError) in
            let target = try view.target(inode)
            try touchAccessTime(inode)
            return target
        }
        return target.withRawBytes(body)
    }

    // MARK: extended attributes

    /// Gives an attribute's value to `body`.
    public func xattr<R>(_ inode: InodeNumber, _ name: RawBytes, _ body: (RawBytes) -> R) throws(OperationError) -> R {
        let value = try operate { () throws(ViewError) in
            if inode == .root, VolumeFailure.attributeBytes.withRawBytes({ $0.equals(name) }) {
                guard let failed else { throw .refused(.noAttribute) }
                return failed.encoded
            }
            _ = try accessControlKind(name)
            return try view.xattrValue(inode, name)
        }
        return value.withRawBytes(body)
    }

    /// Names, each ended by NUL. Those in `trusted` are root's to see.
    public func listXattrs(_ inode: InodeNumber, _ caller: Caller) throws(OperationError) -> [UInt8] {
        try operate { () throws(ViewError) in
            try view.xattrNames(inode) {
                (usesAccessControlLists || !XattrNamespace.system.holds($0)) && (caller.uid == 0 || !XattrNamespace.trusted.holds($0))
            }
        }
    }

    /// `killSetGroup`: when it is the access list that is set, sgid goes, for who asks is not in the file's group.
    public func setXattr(
        _ inode: InodeNumber, _ name: RawBytes, _ value: RawBytes, create: Bool, replace: Bool, killSetGroup: Bool = false,
        _ caller: Caller
    ) throws(OperationError) {
        try mutate(blocks: 24) { () throws(ViewError) in
            guard name.count > 0, name.count <= Limit.name else { throw .refused(.rangeTooSmall) }
            guard let space = XattrNamespace.allCases.first(where: { $0.holds(name) }) else { throw .refused(.notSupported) }
            guard value.count <= Limit.xattrValue else { throw .refused(.argumentTooLong) }
            let item = try view.attributes(inode).item
            if let kind = try accessControlKind(name) {
                return try setAccessControlList(inode, item, kind, value, killSetGroup: killSetGroup, caller)
            }
            guard name.count > space.rawValue.utf8.count else { throw .refused(.invalid) }
            let old = try view.xattr(inode, name)
            if let old { try view.bringInPieces(old.item.pieces) }
            if value.count > XattrItem.inlineValue { try view.bringInNew(InodeNumber(view.nextInode)) }
            if old != nil && create { throw .refused(.exists) }
            if old == nil && replace { throw .refused(.noAttribute) }
            let offset: UInt64
            if let old { offset = old.offset } else { offset = try view.freeOffset(inode, .xattr, name) }
            try checkPieces(value.count)
            try performXattr(.setxattr, inode, offset, name, value, caller, time: now())
        }
    }

    public func removeXattr(_ inode: InodeNumber, _ name: RawBytes, _ caller: Caller) throws(OperationError) {
        try mutate(deletes: true) { () throws(ViewError) in
            let item = try view.attributes(inode).item
            if let kind = try accessControlKind(name) { return try removeAccessControlList(inode, item, kind, caller) }
            guard item.xattrs > 0, let old = try view.xattr(inode, name) else { throw .refused(.noAttribute) }
            try view.bringInPieces(old.item.pieces)
            let empty: [UInt8] = []
            try empty.withRawBytes { (none) throws(ViewError) in
                try performXattr(.removexattr, inode, old.offset, name, none, caller, time: now())
            }
        }
    }

    /// A large value takes a number of its own. An operation makes an inode and two of these at most.
    func checkPieces(_ count: Int) throws(ViewError) {
        guard count <= XattrItem.inlineValue || view.nextInode < Limit.inode - 2 else { throw .refused(.noSpace) }
    }

    func perform(_ change: XattrChange, _ inode: InodeNumber, _ caller: Caller, time: Timestamp) throws(ViewError) {
        try change.name.withRawBytes { (name) throws(ViewError) in
            try (change.value ?? []).withRawBytes { (value) throws(ViewError) in
                try performXattr(
                    change.value == nil ? .removexattr : .setxattr, inode, change.offset, name, value, caller, time: time)
            }
        }
    }

    private func performXattr(
        _ type: RecordType, _ inode: InodeNumber, _ offset: UInt64, _ name: RawBytes, _ value: RawBytes, _ caller: Caller,
        time: Timestamp
    ) throws(ViewError) {
        // A large value is held in pieces under a number of its own, so that replacing it cannot mix the two.
        let pieces = value.count > XattrItem.inlineValue ? InodeNumber(view.nextInode) : .none
        try perform(type, payload: XattrPayload.fixed + name.count + value.count, caller, time: time) { bytes in
            XattrPayload.store(bytes, inode: inode, entry: offset, pieces: pieces, name: name, value: value)
        }
    }
}

/// What a change of attributes, or of the access control list that goes with them, comes to; planned before the first record (O1).
struct AttributePlan {
    var attributes: AttributesPayload?
    var xattr: XattrChange?
    /// Bytes of its records.
    var room: Int { (attributes == nil ? 0 : Record.size(payload: AttributesPayload.fixed)) + (xattr?.room ?? 0) }
}

extension AttributesPayload {
    /// A change of nothing but the mode.
    init(inode: InodeNumber, _ item: InodeItem, mode: UInt32) {
        self.init(
            inode: inode, mask: Self.mode, mode: mode, uid: item.uid, gid: item.gid, accessed: item.accessed,
            modified: item.modified)
    }
}

/// The first part of an extended attribute's name (xattr(7)). The kernel keeps `trusted` to root, and lets `user` be set on files
/// and directories only.
enum XattrNamespace: String, CaseIterable {
    case user = "user."
    case trusted = "trusted."
    case security = "security."
    case system = "system."

    func holds(_ name: RawBytes) -> Bool {
        let prefix = rawValue.utf8
        return name.count >= prefix.count && prefix.enumerated().allSatisfy { name.u8(at: $0.offset) == $0.element }
    }
}
