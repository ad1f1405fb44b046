// AccessControl: access control lists of files: set, removed, kept in step with the mode, inherited. By them the kernel decides who
// may do what; what they are is decided here, and computed in AccessControlList.
//
//   set, remove ──► access list, mode          chmod ──► mode, access list
//   make ──► mode, access list, and of a directory the default list: from the default list of the parent, else mode and umask
//
// (C1) A file has an access list only if its mode cannot say the same. The mode's permission bits are those of the list.
// (C2) Only directories have a default list; symlinks have neither.
// (C3) Whatever changes list and mode, and what is made with what it inherits, is one operation (O3): the power may fail at any
//      moment, and no file is ever open to somebody whom its list was to keep out.
//
// Mounted with `noacl`, or by a kernel that does not enforce them, lists are neither shown nor changed nor inherited.

import Format
import Journal
import Memory

enum AccessControlKind {
    /// Who may do what with the file.
    case access
    /// What files made in the directory inherit.
    case `default`

    var name: [UInt8] { self == .access ? Self.accessName : Self.defaultName }
    private static let accessName = Array("system.posix_acl_access".utf8)
    private static let defaultName = Array("system.posix_acl_default".utf8)
}

/// An extended attribute to be set or, without a value, removed; planned before its operation's first record (O1).
struct XattrChange {
    let offset: UInt64
    let name: [UInt8]
    let value: [UInt8]?
    /// Bytes of its record.
    var room: Int { Record.size(payload: XattrPayload.fixed + name.count + (value?.count ?? 0)) }
}

extension Volume {
    /// From now on as with the mount option `noacl`: the kernel does not enforce lists. Before the first request.
    public func ignoreAccessControlLists() { lock.withLock { usesAccessControlLists = false } }
    /// Whether lists are to be enforced.
    public var hasAccessControlLists: Bool { lock.withLock { usesAccessControlLists } }

    /// Which list an attribute holds; nil if none. Refuses other attributes of the system's. With the lock held.
    func accessControlKind(_ name: RawBytes) throws(ViewError) -> AccessControlKind? {
        guard XattrNamespace.system.holds(name) else { return nil }
        if usesAccessControlLists {
            for kind in [AccessControlKind.access, .default] where kind.name.withRawBytes({ $0.equals(name) }) { return kind }
        }
        throw .refused(.notSupported)
    }

    /// The list of a file, and where it is.
    private func accessControlList(
        _ inode: InodeNumber, _ item: InodeItem, _ kind: AccessControlKind
    ) throws(ViewError) -> (offset: UInt64, list: AccessControlList)? {
        guard usesAccessControlLists, let found = try view.xattr(inode, item, kind.name) else { return nil }
        let value = try view.xattrValue(found.item)
        guard let list = value.withRawBytes({ AccessControlList($0) }) else {
            throw .damaged("inode \(inode): its access control list \(kind) is malformed")
        }
        return (found.offset, list)
    }

    // MARK: setting

    /// Sets or removes a list. `killSetGroup`: who asks is neither in the file's group nor privileged, so sgid goes with it.
    func setAccessControlList(
        _ inode: InodeNumber, _ item: InodeItem, _ kind: AccessControlKind, _ value: RawBytes, killSetGroup: Bool, _ caller: Caller
    ) throws(ViewError) {
        guard item.kind != .symlink else { throw .refused(.notSupported) }
        if AccessControlList.isNone(value) { return try removeAccessControlList(inode, item, kind, caller) }
        guard kind == .access || item.isDirectory else { throw .refused(.accessDenied) }
        guard value.count <= AccessControlList.maximumSize else { throw .refused(.argumentTooLong) }
        guard let list = AccessControlList(value) else { throw .refused(.invalid) }
        var plan = AttributePlan()
        var stored: [UInt8]? = list.bytes
        if kind == .access {
            if list.isEquivalentToMode { stored = nil }
            var mode = item.mode & ~0o777 | list.permissions
            if killSetGroup { mode &= ~0o2000 }
            if mode != item.mode { plan.attributes = AttributesPayload(inode: inode, item, mode: mode) }
        }
        plan.xattr = try planXattr(inode, item, kind, stored)
        try perform(plan, inode, caller)
    }

    /// Without the list the mode's bits stay as they are. Nothing to remove is nothing to do.
    func removeAccessControlList(
        _ inode: InodeNumber, _ item: InodeItem, _ kind: AccessControlKind, _ caller: Caller
    ) throws(ViewError) {
        var plan = AttributePlan()
        plan.xattr = try planXattr(inode, item, kind, nil)
        try perform(plan, inode, caller)
    }

    /// Nil if there is nothing to remove.
    private func planXattr(
        _ inode: InodeNumber, _ item: InodeItem, _ kind: AccessControlKind, _ value: [UInt8]?
    ) throws(ViewError) -> XattrChange? {
        let name = kind.name
        try checkPieces(value?.count ?? 0)
        if let old = try view.xattr(inode, item, name) { return XattrChange(offset: old.offset, name: name, value: value) }
        guard let value else { return nil }
        let offset = try name.withRawBytes { (name) throws(ViewError) in try view.freeOffset(inode, .xattr, name) }
        return XattrChange(offset: offset, name: name, value: value)
    }

    /// How the access list follows a change of mode; nil if it need not.
    func planAccessControlList(_ inode: InodeNumber, _ item: InodeItem, mode: UInt32) throws(ViewError) -> XattrChange? {
        guard item.xattrs > 0, item.kind != .symlink, let (offset, list) = try accessControlList(inode, item, .access) else {
            return nil
        }
        let changed = list.changed(to: mode)
        guard changed != list else { return nil }
        let value = changed.bytes
        try checkPieces(value.count)
        return XattrChange(offset: offset, name: AccessControlKind.access.name, value: value)
    }

    // MARK: inheriting

    /// The lists of a file about to be made in `parent`. Its `mode` becomes what the default list leaves of it or, where there is
    /// none, the umask. A directory without attributes costs nothing here.
    func inherit(
        _ parent: InodeNumber, _ directory: InodeItem, _ mode: inout UInt32, _ caller: Caller
    ) throws(ViewError) -> [XattrChange] {
        guard FileKind(mode: mode) != .symlink else { return [] }
        guard directory.xattrs > 0, let (_, list) = try accessControlList(parent, directory, .default) else {
            mode &= ~(caller.umask & 0o777)
            return []
        }
        let access = list.inherited(by: mode)
        var inherited: [XattrChange] = []
        func add(_ kind: AccessControlKind, _ list: AccessControlList) throws(ViewError) {
            let value = list.bytes
            let name = kind.name
            var offset = name.withRawBytes { NameHash.offset($0, seed: superblock.seed) }
            // Nothing else is there yet, so another ordinal is free.
            if inherited.last?.offset == offset { offset += 1 }
            try checkPieces(value.count)
            inherited.append(XattrChange(offset: offset, name: name, value: value))
        }
        if !access.isEquivalentToMode { try add(.access, access) }
        if FileKind(mode: mode) == .directory { try add(.default, list) }
        mode = mode & ~0o777 | access.permissions
        return inherited
    }
}
