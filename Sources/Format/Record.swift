// Record: one change, complete and decided (Docs/FORMAT.md, "Records").
//
//   0      4    6     8        16   24  28  32  36     40
//   ├length┼type┼flags┼sequence┼time┼uid┼gid┼pid┼detail┤ payload, zero-padded to a multiple of 8
//
// A record holds results, not intentions: inode numbers, offsets of entries, modes, homes and CRCs are in it, so that
// applying it decides nothing (invariant 7).
//
// (R1) Numbers, names and layouts below are permanent. An unknown type is refused, never skipped.

public import Memory

public enum RecordType: UInt16, Sendable, CaseIterable {
    case create = 1
    case mkdir = 2
    case mknod = 3
    case symlink = 4
    case link = 5
    case unlink = 6
    case rmdir = 7
    case rename = 8
    case setattr = 9
    case truncate = 10
    case write = 11
    case fallocate = 12
    case setxattr = 13
    case removexattr = 14
    case access = 15
    case reclaim = 16
    case horizon = 17
    /// An inode without a name (O_TMPFILE).
    case tmpfile = 18
    // Reserved: no code writes or accepts them yet.
    case tag = 32
    case note = 33
    case rollback = 34
    case restore = 35
    /// Blocks of one file become part of another one as well (copy_file_range).
    case clone = 36

    /// The operation's name, as `daybook log` shows it.
    public var name: String { "\(self)" }
}

public struct RecordHeader: Sendable {
    public static let size = 40

    /// Of truncate: extents beyond the new end are left to be reclaimed.
    public static let flagTrim: UInt16 = 1

    public var type: RecordType
    public var flags: UInt16
    public var sequence: SequenceNumber
    public var time: Timestamp
    public var uid: UInt32
    public var gid: UInt32
    public var pid: UInt32

    public init(
        type: RecordType, sequence: SequenceNumber, time: Timestamp, uid: UInt32, gid: UInt32, pid: UInt32, flags: UInt16 = 0
    ) {
        self.type = type
        self.flags = flags
        self.sequence = sequence
        self.time = time
        self.uid = uid
        self.gid = gid
        self.pid = pid
    }

    public func store(_ bytes: RawBytes) {
        bytes.set(u32: UInt32(bytes.count), at: 0)
        bytes.set(u16: type.rawValue, at: 4)
        bytes.set(u16: flags, at: 6)
        bytes.set(u64: sequence.value, at: 8)
        bytes.set(i64: time.nanoseconds, at: 16)
        bytes.set(u32: uid, at: 24)
        bytes.set(u32: gid, at: 28)
        bytes.set(u32: pid, at: 32)
        bytes.set(u32: 0, at: 36)
    }
}

/// One record in place: its header decoded, its payload borrowed.
public struct Record: Sendable {
    public let header: RecordHeader
    /// The whole record, header and padding included.
    public let bytes: RawBytes
    @inlinable public var payload: RawBytes { bytes.from(RecordHeader.size) }
    @inlinable public var sequence: SequenceNumber { header.sequence }
    @inlinable public var type: RecordType { header.type }

    public static func size(payload: Int) -> Int { (RecordHeader.size + payload + 7) & ~7 }

    /// Decodes the record at the start of `bytes`, checking all lengths inside of it.
    public init(_ bytes: RawBytes) throws(FormatError) {
        guard bytes.count >= RecordHeader.size else { throw FormatError("record: cut off in its header") }
        let length = Int(bytes.u32(at: 0))
        guard length >= RecordHeader.size, length <= bytes.count, length % 8 == 0 else {
            throw FormatError("record: impossible length \(length)")
        }
        guard let type = RecordType(rawValue: bytes.u16(at: 4)) else {
            throw FormatError("record: unknown type \(bytes.u16(at: 4))")
        }
        guard bytes.u32(at: 36) == 0 else { throw FormatError("record: reserved bytes are not zero") }
        header = RecordHeader(
            type: type, sequence: SequenceNumber(bytes.u64(at: 8)), time: Timestamp(nanoseconds: bytes.i64(at: 16)),
            uid: bytes.u32(at: 24), gid: bytes.u32(at: 28), pid: bytes.u32(at: 32), flags: bytes.u16(at: 6))
        self.bytes = bytes.slice(0, length)
        do throws(FormatError) { try validatePayload() } catch {
            throw FormatError("record \(header.sequence) (\(type.name)): \(error.description)")
        }
    }

    private func validatePayload() throws(FormatError) {
        let ok: Bool
        switch type {
        case .create, .mkdir, .mknod, .symlink, .tmpfile: ok = MakePayload(payload) != nil
        case .link, .unlink, .rmdir: ok = NamePayload(payload) != nil
        case .rename: ok = RenamePayload(payload) != nil
        case .setattr: ok = AttributesPayload(payload) != nil
        case .truncate, .write, .fallocate:
            guard let content = ContentPayload(payload) else { throw FormatError("malformed") }
            try content.validateSegments()
            ok = true
        case .setxattr, .removexattr: ok = XattrPayload(payload) != nil
        case .access: ok = payload.count >= 16
        case .reclaim: ok = ReclaimPayload(payload) != nil
        case .horizon: ok = payload.count >= 8
        case .clone:
            guard let clone = ClonePayload(payload) else { throw FormatError("malformed") }
            try clone.content.validateSegments()
            ok = true
        case .tag, .note, .rollback, .restore: throw FormatError("of a type that this version does not know")
        }
        guard ok else { throw FormatError("malformed") }
    }
}

@inline(__always) private func validName(_ length: Int) -> Bool { length > 0 && length <= Limit.name }

/// create, mkdir, mknod, symlink, tmpfile: 56 bytes, name, target.
public struct MakePayload: Sendable {
    public static let fixed = 56
    public let parent: InodeNumber
    public let entry: UInt64
    public let inode: InodeNumber
    public let mode: UInt32
    public let uid: UInt32
    public let gid: UInt32
    public let device: UInt32
    public let name: RawBytes
    public let target: RawBytes

    public init?(_ bytes: RawBytes) {
        guard bytes.count >= Self.fixed else { return nil }
        parent = InodeNumber(bytes.u64(at: 0))
        entry = bytes.u64(at: 8)
        inode = InodeNumber(bytes.u64(at: 16))
        mode = bytes.u32(at: 24)
        uid = bytes.u32(at: 28)
        gid = bytes.u32(at: 32)
        device = bytes.u32(at: 36)
        let nameLength = Int(bytes.u16(at: 40))
        let targetLength = Int(bytes.u16(at: 42))
        guard nameLength <= Limit.name, targetLength <= Limit.symlinkTarget else { return nil }
        guard bytes.count >= Self.fixed + nameLength + targetLength, bytes.slice(44, 12).isZero else { return nil }
        guard FileKind(mode: mode) != nil, inode.value > 1, inode.value < Limit.inode else { return nil }
        name = bytes.slice(Self.fixed, nameLength)
        target = bytes.slice(Self.fixed + nameLength, targetLength)
    }

    public static func size(name: Int, target: Int) -> Int { fixed + name + target }

    public static func store(
        _ bytes: RawBytes, parent: InodeNumber, entry: UInt64, inode: InodeNumber, mode: UInt32, uid: UInt32, gid: UInt32,
        device: UInt32, name: RawBytes, target: RawBytes
    ) {
        bytes.set(u64: parent.value, at: 0)
        bytes.set(u64: entry, at: 8)
        bytes.set(u64: inode.value, at: 16)
        bytes.set(u32: mode, at: 24)
        bytes.set(u32: uid, at: 28)
        bytes.set(u32: gid, at: 32)
        bytes.set(u32: device, at: 36)
        bytes.set(u16: UInt16(name.count), at: 40)
        bytes.set(u16: UInt16(target.count), at: 42)
        bytes.copy(name, to: fixed)
        bytes.copy(target, to: fixed + name.count)
    }
}

/// link, unlink, rmdir: 32 bytes and the name.
public struct NamePayload: Sendable {
    public static let fixed = 32
    public let parent: InodeNumber
    public let entry: UInt64
    public let inode: InodeNumber
    public let name: RawBytes

    public init?(_ bytes: RawBytes) {
        guard bytes.count >= Self.fixed else { return nil }
        parent = InodeNumber(bytes.u64(at: 0))
        entry = bytes.u64(at: 8)
        inode = InodeNumber(bytes.u64(at: 16))
        let length = Int(bytes.u16(at: 24))
        guard validName(length), bytes.count >= Self.fixed + length else { return nil }
        name = bytes.slice(Self.fixed, length)
    }

    public static func store(_ bytes: RawBytes, parent: InodeNumber, entry: UInt64, inode: InodeNumber, name: RawBytes) {
        bytes.set(u64: parent.value, at: 0)
        bytes.set(u64: entry, at: 8)
        bytes.set(u64: inode.value, at: 16)
        bytes.set(u16: UInt16(name.count), at: 24)
        bytes.copy(name, to: fixed)
    }
}

/// rename: 72 bytes and both names.
public struct RenamePayload: Sendable {
    public static let fixed = 72
    public static let noReplace: UInt32 = 1
    public static let exchange: UInt32 = 2
    public static let whiteout: UInt32 = 4

    public let parent: InodeNumber
    public let entry: UInt64
    public let inode: InodeNumber
    public let newParent: InodeNumber
    public let newEntry: UInt64
    /// The inode that the new name led to before, replaced or exchanged; none if there was none.
    public let other: InodeNumber
    /// The new character device left at the old name under RENAME_WHITEOUT; else none.
    public let whiteoutInode: InodeNumber
    public let flags: UInt32
    public let name: RawBytes
    public let newName: RawBytes

    public init?(_ bytes: RawBytes) {
        guard bytes.count >= Self.fixed else { return nil }
        parent = InodeNumber(bytes.u64(at: 0))
        entry = bytes.u64(at: 8)
        inode = InodeNumber(bytes.u64(at: 16))
        newParent = InodeNumber(bytes.u64(at: 24))
        newEntry = bytes.u64(at: 32)
        other = InodeNumber(bytes.u64(at: 40))
        whiteoutInode = InodeNumber(bytes.u64(at: 48))
        flags = bytes.u32(at: 56)
        let length = Int(bytes.u16(at: 60))
        let newLength = Int(bytes.u16(at: 62))
        guard validName(length), validName(newLength), bytes.count >= Self.fixed + length + newLength,
            whiteoutInode.value < Limit.inode
        else { return nil }
        name = bytes.slice(Self.fixed, length)
        newName = bytes.slice(Self.fixed + length, newLength)
    }

    public static func store(
        _ bytes: RawBytes, parent: InodeNumber, entry: UInt64, inode: InodeNumber, newParent: InodeNumber, newEntry: UInt64,
        other: InodeNumber, whiteoutInode: InodeNumber, flags: UInt32, name: RawBytes, newName: RawBytes
    ) {
        bytes.set(u64: parent.value, at: 0)
        bytes.set(u64: entry, at: 8)
        bytes.set(u64: inode.value, at: 16)
        bytes.set(u64: newParent.value, at: 24)
        bytes.set(u64: newEntry, at: 32)
        bytes.set(u64: other.value, at: 40)
        bytes.set(u64: whiteoutInode.value, at: 48)
        bytes.set(u32: flags, at: 56)
        bytes.set(u16: UInt16(name.count), at: 60)
        bytes.set(u16: UInt16(newName.count), at: 62)
        bytes.copy(name, to: fixed)
        bytes.copy(newName, to: fixed + name.count)
    }
}

/// setattr: 48 bytes. The change time is the record's.
public struct AttributesPayload: Sendable {
    public static let fixed = 48
    public static let mode: UInt32 = 1
    public static let uid: UInt32 = 2
    public static let gid: UInt32 = 4
    public static let accessed: UInt32 = 8
    public static let modified: UInt32 = 16

    public let inode: InodeNumber
    /// Which of the following count.
    public let mask: UInt32
    public let mode: UInt32
    public let uid: UInt32
    public let gid: UInt32
    public let accessed: Timestamp
    public let modified: Timestamp

    public init(
        inode: InodeNumber, mask: UInt32, mode: UInt32, uid: UInt32, gid: UInt32, accessed: Timestamp, modified: Timestamp
    ) {
        self.inode = inode
        self.mask = mask
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.accessed = accessed
        self.modified = modified
    }

    public init?(_ bytes: RawBytes) {
        guard bytes.count >= Self.fixed else { return nil }
        inode = InodeNumber(bytes.u64(at: 0))
        mask = bytes.u32(at: 8)
        mode = bytes.u32(at: 12)
        uid = bytes.u32(at: 16)
        gid = bytes.u32(at: 20)
        accessed = Timestamp(nanoseconds: bytes.i64(at: 24))
        modified = Timestamp(nanoseconds: bytes.i64(at: 32))
        guard mask & ~31 == 0, mask & Self.mode == 0 || FileKind(mode: mode) != nil else { return nil }
    }

    public func store(_ bytes: RawBytes) {
        bytes.set(u64: inode.value, at: 0)
        bytes.set(u32: mask, at: 8)
        bytes.set(u32: mode, at: 12)
        bytes.set(u32: uid, at: 16)
        bytes.set(u32: gid, at: 20)
        bytes.set(i64: accessed.nanoseconds, at: 24)
        bytes.set(i64: modified.nanoseconds, at: 32)
    }
}

/// setxattr, removexattr: 32 bytes, name, value.
public struct XattrPayload: Sendable {
    public static let fixed = 32
    public let inode: InodeNumber
    public let entry: UInt64
    /// Whose pieces hold the value; none when the item does.
    public let pieces: InodeNumber
    public let name: RawBytes
    public let value: RawBytes

    public init?(_ bytes: RawBytes) {
        guard bytes.count >= Self.fixed else { return nil }
        inode = InodeNumber(bytes.u64(at: 0))
        entry = bytes.u64(at: 8)
        pieces = InodeNumber(bytes.u64(at: 16))
        let nameLength = Int(bytes.u16(at: 24))
        let valueLength = Int(bytes.u32(at: 28))
        guard validName(nameLength), valueLength <= Limit.xattrValue,
            bytes.count >= Self.fixed + nameLength + valueLength, pieces.value < Limit.inode,
            (pieces == .none) == (valueLength <= XattrItem.inlineValue)
        else { return nil }
        name = bytes.slice(Self.fixed, nameLength)
        value = bytes.slice(Self.fixed + nameLength, valueLength)
    }

    public static func store(
        _ bytes: RawBytes, inode: InodeNumber, entry: UInt64, pieces: InodeNumber, name: RawBytes, value: RawBytes
    ) {
        bytes.set(u64: inode.value, at: 0)
        bytes.set(u64: entry, at: 8)
        bytes.set(u64: pieces.value, at: 16)
        bytes.set(u16: UInt16(name.count), at: 24)
        bytes.set(u32: UInt32(value.count), at: 28)
        bytes.copy(name, to: fixed)
        bytes.copy(value, to: fixed + name.count)
    }
}

/// reclaim: 8 bytes, then 24 for each inode.
public struct ReclaimPayload: Sendable {
    public static let fixed = 8
    public static let item = 24
    /// Extents that one record frees, at most (invariant 12).
    public static let maximumExtents = 1024

    public let count: Int
    let bytes: RawBytes

    public init?(_ bytes: RawBytes) {
        guard bytes.count >= Self.fixed else { return nil }
        count = Int(bytes.u32(at: 0))
        guard count > 0, count <= 4096, bytes.count >= Self.fixed + count * Self.item else { return nil }
        self.bytes = bytes
    }

    /// What becomes of the inode once its extents from a block on are freed.
    public enum Outcome: UInt32, Sendable {
        /// More extents are left to free.
        case partly = 0
        /// The inode goes, with its attributes.
        case remove = 1
        /// The inode stays; what lay beyond its end is gone.
        case trimmed = 2
    }

    /// The inode, the file block from which on its extents are freed, and the outcome.
    public func entry(_ index: Int) -> (inode: InodeNumber, fromBlock: UInt64, outcome: Outcome)? {
        let at = Self.fixed + index * Self.item
        guard let outcome = Outcome(rawValue: bytes.u32(at: at + 16)) else { return nil }
        return (InodeNumber(bytes.u64(at: at)), bytes.u64(at: at + 8), outcome)
    }

    public static func store(_ bytes: RawBytes, _ index: Int, inode: InodeNumber, fromBlock: UInt64, outcome: Outcome) {
        bytes.set(u32: UInt32(index + 1), at: 0)
        let at = fixed + index * item
        bytes.set(u64: inode.value, at: at)
        bytes.set(u64: fromBlock, at: at + 8)
        bytes.set(u32: outcome.rawValue, at: at + 16)
    }
}
