// AccessControlList: POSIX access control lists (acl(5)), in the form that Linux gives them as extended attributes. Pure: bytes and
// modes in, bytes and modes out.
//
//   attribute   │ version: 2, u32 │ entry │ entry │ …        entry   │ tag u16 │ permissions u16 │ ID u32 │
//
// Entries stand in the order of their tags: owner, users by ID, owning group, groups by ID, mask, others. The mask bounds what
// users and groups by ID and the owning group may do, and it is what a mode's group bits stand for when there is one.
//
// (L1) A value of this type is valid: owner, owning group and others once each, the mask at most once, and at least once where
//      there is anybody by ID; nobody twice.

public import Memory

public struct AccessControlList: Equatable, Sendable {
    public enum Tag: UInt16, Sendable {
        case owner = 0x01
        case user = 0x02
        case owningGroup = 0x04
        case group = 0x08
        case mask = 0x10
        case others = 0x20

        /// The entry names somebody by ID.
        var isNamed: Bool { self == .user || self == .group }
    }

    public struct Entry: Hashable, Sendable {
        public let tag: Tag
        /// Read 4, write 2, execute 1.
        public fileprivate(set) var permissions: UInt16
        /// Of a user or a group; of others `noID`.
        public let id: UInt32
        public init(tag: Tag, permissions: UInt16, id: UInt32 = noID) {
            self.tag = tag
            self.permissions = permissions
            self.id = tag.isNamed ? id : AccessControlList.noID
        }
    }

    public static let noID: UInt32 = .max
    private static let version: UInt32 = 2
    private static let headerSize = 4
    private static let entrySize = 8
    /// Bytes of the longest list: the kernel takes and asks for no more than a page.
    public static let maximumSize = 4096

    public private(set) var entries: [Entry]

    /// Nil unless the entries are a valid list (L1).
    public init?(_ entries: [Entry]) {
        func count(_ tag: Tag) -> Int { entries.count { $0.tag == tag } }
        let named = entries.filter(\.tag.isNamed)
        guard Self.headerSize + entries.count * Self.entrySize <= Self.maximumSize,
            entries.allSatisfy({ $0.permissions & ~7 == 0 }),
            zip(entries, entries.dropFirst()).allSatisfy({ $0.tag.rawValue <= $1.tag.rawValue }),
            count(.owner) == 1, count(.owningGroup) == 1, count(.others) == 1, count(.mask) <= 1,
            named.isEmpty || count(.mask) == 1, named.allSatisfy({ $0.id != Self.noID }),
            Set(named.map { UInt64($0.tag.rawValue) << 32 | UInt64($0.id) }).count == named.count
        else { return nil }
        self.entries = entries
    }

    // MARK: bytes

    /// Nil unless the bytes are those of a valid list.
    public init?(_ bytes: RawBytes) {
        guard bytes.count >= Self.headerSize, bytes.count <= Self.maximumSize, bytes.u32(at: 0) == Self.version,
            (bytes.count - Self.headerSize) % Self.entrySize == 0
        else { return nil }
        var entries: [Entry] = []
        for at in stride(from: Self.headerSize, to: bytes.count, by: Self.entrySize) {
            guard let tag = Tag(rawValue: bytes.u16(at: at)) else { return nil }
            entries.append(Entry(tag: tag, permissions: bytes.u16(at: at + 2), id: bytes.u32(at: at + 4)))
        }
        self.init(entries)
    }

    /// Whether the bytes are those of no list at all: to set it is to remove what is there.
    public static func isNone(_ bytes: RawBytes) -> Bool {
        bytes.count == 0 || bytes.count == headerSize && bytes.u32(at: 0) == version
    }

    public var bytes: [UInt8] {
        let bytes = [UInt8](repeating: 0, count: Self.headerSize + entries.count * Self.entrySize)
        bytes.withRawBytes { bytes in
            bytes.set(u32: Self.version, at: 0)
            var at = Self.headerSize
            for entry in entries {
                bytes.set(u16: entry.tag.rawValue, at: at)
                bytes.set(u16: entry.permissions, at: at + 2)
                bytes.set(u32: entry.id, at: at + 4)
                at += Self.entrySize
            }
        }
        return bytes
    }

    // MARK: lists and modes

    /// Whether a mode says all of it: nobody by ID, and no mask.
    public var isEquivalentToMode: Bool { entries.count == 3 }

    /// The permission bits of a file that has this access list.
    public var permissions: UInt32 {
        entries.reduce(0) { bits, entry in
            switch entry.tag {
            case .owner: bits | UInt32(entry.permissions) << 6
            case groupClass: bits | UInt32(entry.permissions) << 3
            case .others: bits | UInt32(entry.permissions)
            default: bits
            }
        }
    }

    /// The entry that a mode's group bits stand for.
    private var groupClass: Tag { entries.contains { $0.tag == .mask } ? .mask : .owningGroup }

    /// This access list after chmod(2) to `mode`.
    public func changed(to mode: UInt32) -> AccessControlList { combined(with: mode) { $1 } }

    /// The access list of a file made with `mode` where this is the default list: each may do what both allow.
    public func inherited(by mode: UInt32) -> AccessControlList { combined(with: mode) { $0 & $1 } }

    private func combined(with mode: UInt32, _ combine: (UInt16, UInt16) -> UInt16) -> AccessControlList {
        let groupClass = groupClass
        var list = self
        for index in entries.indices {
            let bits: UInt32
            switch entries[index].tag {
            case .owner: bits = mode >> 6
            case groupClass: bits = mode >> 3
            case .others: bits = mode
            default: continue
            }
            list.entries[index].permissions = combine(entries[index].permissions, UInt16(bits & 7))
        }
        return list
    }
}
