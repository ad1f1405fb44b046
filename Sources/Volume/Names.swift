// Names: entries of directories, extended attributes, symlink targets; reading only.

public import Format
public import Memory
import Tree

extension View {
    // MARK: entries

    /// The entry `name` of `directory`: its offset, inode and type.
    func entry(
        _ directory: InodeNumber, _ name: RawBytes
    ) throws(ViewError) -> (offset: UInt64, inode: InodeNumber, kind: UInt8)? {
        let base = NameHash.offset(name, seed: superblock.seed)
        var offset = base
        while let found = try next(Key(directory, .entry, offset)) {
            guard found.key.isOf(directory, .entry), found.key.low < base + NameHash.ordinals else { return nil }
            guard let item = EntryItem(found.value) else { throw damagedEntry(found.key) }
            if item.name.equals(name) { return (found.key.low, item.inode, item.kind) }
            offset = found.key.low + 1
        }
        return nil
    }

    private func damagedEntry(_ key: Key) -> ViewError { .damaged("directory entry \(key) is malformed") }

    /// An unused offset for a new entry `name`.
    func freeOffset(_ directory: InodeNumber, _ type: ItemType, _ name: RawBytes) throws(ViewError) -> UInt64 {
        let base = NameHash.offset(name, seed: superblock.seed)
        var offset = base
        while let found = try next(Key(directory, type, offset)), found.key.isOf(directory, type), found.key.low == offset {
            offset += 1
            guard offset < base + NameHash.ordinals else { throw .refused(.noSpace) }
        }
        return offset
    }

    /// The inode that `name` leads to. `.` names the inode itself, whatever it is: so file handles are resolved.
    public func lookup(_ parent: InodeNumber, _ name: RawBytes) throws(ViewError) -> Attributes {
        guard name.count <= Limit.name else { throw .refused(.nameTooLong) }
        // A file handle (NFS, open_by_handle_at(2)) becomes an inode again by a look-up of `.` in it, whatever its type.
        if name.count == 1 && name.u8(at: 0) == 0x2e {
            let found = try attributes(parent)
            guard found.item.links > 0 else { throw .refused(.notFound) }
            return found
        }
        if name.count == 2 && name.u8(at: 0) == 0x2e && name.u8(at: 1) == 0x2e {
            let directory = try directory(parent)
            return try attributes(parent == .root ? .root : directory.parent)
        }
        // Only a directory has entries; what else the parent may be matters when there is none.
        guard let entry = try entry(parent, name) else {
            _ = try directory(parent)
            throw .refused(.notFound)
        }
        guard let bytes = try inodeBytes(entry.inode) else {
            throw .damaged("directory \(parent): entry '\(name.text)' leads to inode \(entry.inode), which does not exist")
        }
        return Attributes(inode: entry.inode, item: InodeItem(bytes))
    }

    /// Calls `emit` for the entries after offset `from`, `.` and `..` first, until it returns false.
    public func list(
        _ directory: InodeNumber, from: UInt64, attributes wanted: Bool, _ emit: (DirectoryEntry) -> Bool
    ) throws(ViewError) {
        let item = try self.directory(directory)
        func dot(_ name: [UInt8], _ inode: InodeNumber, _ offset: UInt64) -> Bool {
            name.withRawBytes { bytes in
                emit(DirectoryEntry(
                    name: bytes, inode: inode, kind: FileKind.directory.rawValue, offset: offset, attributes: nil))
            }
        }
        if from < 1 { guard dot([0x2e], directory, 1) else { return } }
        if from < 2 { guard dot([0x2e, 0x2e], item.parent, 2) else { return } }
        // Behind the last offset there is, which only a hostile image uses, comes nothing: not the first again.
        guard from < .max else { return }
        try tree.scan(from: Key(directory, .entry, from + 1), mapping: ViewError.tree) {
            (key, value) throws(ViewError) -> Bool in
            guard key.isOf(directory, .entry) else { return false }
            guard let entry = EntryItem(value) else { throw damagedEntry(key) }
            let attributes = wanted ? try self.attributes(entry.inode) : nil
            return emit(DirectoryEntry(
                name: entry.name, inode: entry.inode, kind: entry.kind, offset: key.low, attributes: attributes))
        }
    }

    func isEmpty(_ directory: InodeNumber) throws(ViewError) -> Bool {
        guard let found = try next(Key(directory, .entry)) else { return true }
        return !found.key.isOf(directory, .entry)
    }

    // MARK: paths

    /// A path that leads to the inode, from the root, or nil when none is known (it has no name, or the hint is stale, or they lead in
    /// a circle, which is asked of every record of a log and has to be seen soon).
    public func path(_ inode: InodeNumber) throws(ViewError) -> [UInt8]? {
        if inode == .root { return [0x2f] }
        var parts: [[UInt8]] = []
        var at = inode
        var marker = inode
        var limit = 1
        while at != .root {
            if parts.count > 0 && at == marker { return nil }
            if parts.count == limit {
                marker = at
                limit *= 2
            }
            guard let item = try item(at), item.parent != .none, parts.count < 4096,
                let value = try find(Key(item.parent, .entry, item.parentEntry)), let entry = EntryItem(value),
                entry.inode == at
            else { return nil }
            parts.append(entry.name.array)
            at = item.parent
        }
        return Array(parts.reversed().map { [0x2f] + $0 }.joined())
    }

    // MARK: symlinks

    /// The target of a symlink.
    public func target(_ inode: InodeNumber) throws(ViewError) -> [UInt8] {
        let item = try attributes(inode).item
        guard item.kind == .symlink else { throw .refused(.invalid) }
        return try pieces(inode, length: Int(clamping: item.length))
    }

    func pieces(_ owner: InodeNumber, length: Int) throws(ViewError) -> [UInt8] {
        var bytes: [UInt8] = []
        guard length <= Limit.xattrValue else { throw .damaged("pieces of \(owner): impossible length \(length)") }
        bytes.reserveCapacity(length)
        var index: UInt64 = 0
        while bytes.count < length {
            guard let piece = try find(Key(owner, .piece, index)), piece.count > 0, piece.count <= length - bytes.count else {
                throw .damaged("piece \(index) of \(owner) is missing or malformed")
            }
            bytes += piece.array
            index += 1
        }
        return bytes
    }

    // MARK: extended attributes

    func xattr(_ inode: InodeNumber, _ name: RawBytes) throws(ViewError) -> (offset: UInt64, item: XattrItem)? {
        let base = NameHash.offset(name, seed: superblock.seed)
        var offset = base
        while let found = try next(Key(inode, .xattr, offset)) {
            guard found.key.isOf(inode, .xattr), found.key.low < base + NameHash.ordinals else { return nil }
            guard let item = XattrItem(found.value) else { throw .damaged("extended attribute \(found.key) is malformed") }
            if item.name.equals(name) { return (found.key.low, item) }
            offset = found.key.low + 1
        }
        return nil
    }

    /// The same of an inode whose item is at hand: nothing is looked up if it has no attributes.
    func xattr(
        _ inode: InodeNumber, _ item: InodeItem, _ name: [UInt8]
    ) throws(ViewError) -> (offset: UInt64, item: XattrItem)? {
        guard item.xattrs > 0 else { return nil }
        return try name.withRawBytes { (name) throws(ViewError) in try xattr(inode, name) }
    }

    /// The value of an extended attribute, or `.noAttribute`.
    public func xattrValue(_ inode: InodeNumber, _ name: RawBytes) throws(ViewError) -> [UInt8] {
        let item = try attributes(inode).item
        guard item.xattrs > 0, let found = try xattr(inode, name) else { throw .refused(.noAttribute) }
        return try xattrValue(found.item)
    }

    func xattrValue(_ item: XattrItem) throws(ViewError) -> [UInt8] {
        if item.pieces == .none { return item.inline.array }
        return try pieces(item.pieces, length: item.valueLength)
    }

    /// Names of the extended attributes, or of those that `accept` lets pass, each ended by NUL.
    public func xattrNames(_ inode: InodeNumber, accept: (RawBytes) -> Bool = { _ in true }) throws(ViewError) -> [UInt8] {
        var names: [UInt8] = []
        guard try attributes(inode).item.xattrs > 0 else { return [] }
        try tree.scan(from: Key(inode, .xattr), mapping: ViewError.tree) { (key, value) throws(ViewError) -> Bool in
            guard key.isOf(inode, .xattr) else { return false }
            guard let item = XattrItem(value) else { throw .damaged("extended attribute \(key) is malformed") }
            if accept(item.name) {
                names += item.name.array
                names.append(0)
            }
            return true
        }
        return names
    }
}
