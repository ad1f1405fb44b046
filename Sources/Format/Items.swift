// Items: the values of the main tree, byte by byte (Docs/FORMAT.md, "Items").

public import Memory

public enum FileKind: UInt8, Sendable {
    case fifo = 1, characterDevice = 2, directory = 4, blockDevice = 6, regular = 8, symlink = 10, socket = 12

    /// From the type bits of a mode, as in stat(2); nil for none of these.
    @inlinable public init?(mode: UInt32) { self.init(rawValue: UInt8(truncatingIfNeeded: (mode >> 12) & 15)) }
}

/// A file's attributes: 128 bytes.
public struct InodeItem: Sendable, Equatable {
    public static let size = 128

    /// Type and permissions, as in stat(2).
    public var mode: UInt32
    public var uid: UInt32
    public var gid: UInt32
    public var links: UInt32
    /// Bytes. Of a directory: the number of its entries.
    public var length: UInt64
    /// 4 KiB blocks of data that belong to the file, preallocated ones included.
    public var blocks: UInt64
    public var accessed: Timestamp
    public var modified: Timestamp
    public var changed: Timestamp
    public var born: Timestamp
    public var device: UInt32
    public var flags: UInt32
    /// A directory's parent; of others the directory of one of its names, a hint for showing paths.
    public var parent: InodeNumber
    /// The offset of that name among the parent's entries. A hint: verify that the entry names this inode.
    public var parentEntry: UInt64
    /// Number of extended attributes.
    public var xattrs: UInt32

    public init(mode: UInt32, uid: UInt32, gid: UInt32, links: UInt32, time: Timestamp) {
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.links = links
        length = 0
        blocks = 0
        accessed = time
        modified = time
        changed = time
        born = time
        device = 0
        flags = 0
        parent = .none
        parentEntry = 0
        xattrs = 0
    }

    @inlinable public init(_ bytes: RawBytes) {
        mode = bytes.u32(at: 0)
        uid = bytes.u32(at: 4)
        gid = bytes.u32(at: 8)
        links = bytes.u32(at: 12)
        length = bytes.u64(at: 16)
        blocks = bytes.u64(at: 24)
        accessed = Timestamp(nanoseconds: bytes.i64(at: 32))
        modified = Timestamp(nanoseconds: bytes.i64(at: 40))
        changed = Timestamp(nanoseconds: bytes.i64(at: 48))
        born = Timestamp(nanoseconds: bytes.i64(at: 56))
        device = bytes.u32(at: 64)
        flags = bytes.u32(at: 68)
        parent = InodeNumber(bytes.u64(at: 72))
        parentEntry = bytes.u64(at: 80)
        xattrs = bytes.u32(at: 88)
    }

    @inlinable public func store(_ bytes: RawBytes) {
        bytes.set(u32: mode, at: 0)
        bytes.set(u32: uid, at: 4)
        bytes.set(u32: gid, at: 8)
        bytes.set(u32: links, at: 12)
        bytes.set(u64: length, at: 16)
        bytes.set(u64: blocks, at: 24)
        bytes.set(i64: accessed.nanoseconds, at: 32)
        bytes.set(i64: modified.nanoseconds, at: 40)
        bytes.set(i64: changed.nanoseconds, at: 48)
        bytes.set(i64: born.nanoseconds, at: 56)
        bytes.set(u32: device, at: 64)
        bytes.set(u32: flags, at: 68)
        bytes.set(u64: parent.value, at: 72)
        bytes.set(u64: parentEntry, at: 80)
        bytes.set(u32: xattrs, at: 88)
        bytes.zero(92, 36)
    }

    /// Checks what a reader relies on. `inode` is for the message.
    public static func validate(_ bytes: RawBytes, inode: InodeNumber) throws(FormatError) {
        guard bytes.count == size else { throw FormatError("inode \(inode): item of \(bytes.count) bytes") }
        guard FileKind(mode: bytes.u32(at: 0)) != nil else {
            throw FormatError("inode \(inode): unknown file type in mode \(String(bytes.u32(at: 0), radix: 8))")
        }
        // Blocks are added up, of a thousand inodes and more.
        guard bytes.u64(at: 16) <= Limit.fileSize, bytes.u64(at: 24) <= Limit.fileSize >> UInt64(blockShift), bytes.u32(at: 88) < 1 << 31 else {
            throw FormatError("inode \(inode): impossible length, or number of blocks or attributes")
        }
        guard bytes.slice(92, 36).isZero else { throw FormatError("inode \(inode): reserved bytes are not zero") }
    }

    @inlinable public var kind: FileKind { FileKind(mode: mode) ?? .regular }
    @inlinable public var isDirectory: Bool { mode & 0o170000 == 0o040000 }
    @inlinable public var isRegular: Bool { mode & 0o170000 == 0o100000 }
}

/// A directory entry: 16 bytes and the name.
public struct EntryItem: Sendable {
    public static let header = 16
    public let inode: InodeNumber
    public let kind: UInt8
    public let name: RawBytes

    @inlinable public init?(_ bytes: RawBytes) {
        guard bytes.count > Self.header, Int(bytes.u8(at: 9)) == bytes.count - Self.header else { return nil }
        inode = InodeNumber(bytes.u64(at: 0))
        kind = bytes.u8(at: 8)
        name = bytes.from(Self.header)
    }

    @inlinable public static func size(nameLength: Int) -> Int { header + nameLength }

    @inlinable public static func store(_ bytes: RawBytes, inode: InodeNumber, kind: UInt8, name: RawBytes) {
        bytes.zero(0, header)
        bytes.set(u64: inode.value, at: 0)
        bytes.set(u8: kind, at: 8)
        bytes.set(u8: UInt8(name.count), at: 9)
        bytes.copy(name, to: header)
    }
}

/// An extended attribute: 24 bytes, the name, and the value unless it is held in pieces.
public struct XattrItem: Sendable {
    public static let header = 24
    /// Values up to this many bytes are held in the item.
    public static let inlineValue = 512

    public let nameLength: Int
    public let valueLength: Int
    /// Whose pieces hold the value; none when it is inline.
    public let pieces: InodeNumber
    public let name: RawBytes
    /// Empty when the value is held in pieces.
    public let inline: RawBytes

    public init?(_ bytes: RawBytes) {
        guard bytes.count > Self.header else { return nil }
        nameLength = Int(bytes.u8(at: 12))
        valueLength = Int(bytes.u32(at: 8))
        pieces = InodeNumber(bytes.u64(at: 0))
        let rest = bytes.count - Self.header
        guard nameLength > 0, nameLength <= rest, valueLength <= Limit.xattrValue else { return nil }
        guard rest == nameLength + (pieces == .none ? valueLength : 0) else { return nil }
        name = bytes.slice(Self.header, nameLength)
        inline = bytes.from(Self.header + nameLength)
    }

    public static func size(nameLength: Int, valueLength: Int) -> Int {
        header + nameLength + (valueLength <= inlineValue ? valueLength : 0)
    }

    public static func store(_ bytes: RawBytes, name: RawBytes, value: RawBytes, pieces: InodeNumber) {
        bytes.zero(0, header)
        bytes.set(u64: pieces.value, at: 0)
        bytes.set(u32: UInt32(value.count), at: 8)
        bytes.set(u8: UInt8(name.count), at: 12)
        bytes.copy(name, to: header)
        if pieces == .none { bytes.copy(value, to: header + name.count) }
    }
}

public enum Piece {
    /// Bytes of a symlink target or attribute value in one item.
    public static let size = 1024
}

/// A run of a file's blocks: 40 bytes, then a CRC32C for each block unless nothing was written there yet.
public struct ExtentItem: Sendable, Equatable {
    public static let header = 40
    /// Blocks that one written item may describe (so that it fits a node several times).
    public static let maximumBlocks: UInt64 = 128

    public static let flagUnwritten: UInt8 = 1

    /// First home block.
    public var start: BlockNumber
    /// The record that put these blocks here; the oldest, when neighbours were merged.
    public var birth: SequenceNumber
    /// File blocks described.
    public var blocks: UInt32
    /// Blocks occupied on disk (equal to `blocks`; smaller once compressed).
    public var stored: UInt32
    /// Blocks of the stored run that lie before the described ones.
    public var within: UInt32
    public var encoding: UInt8
    public var flags: UInt8

    @inlinable public init(start: BlockNumber, birth: SequenceNumber, blocks: UInt32, flags: UInt8) {
        self.start = start
        self.birth = birth
        self.blocks = blocks
        stored = blocks
        within = 0
        encoding = 0
        self.flags = flags
    }

    @inlinable public init(_ bytes: RawBytes) {
        start = BlockNumber(bytes.u64(at: 0))
        birth = SequenceNumber(bytes.u64(at: 8))
        blocks = bytes.u32(at: 16)
        stored = bytes.u32(at: 20)
        within = bytes.u32(at: 24)
        encoding = bytes.u8(at: 28)
        flags = bytes.u8(at: 29)
    }

    @inlinable public func storeHeader(_ bytes: RawBytes) {
        bytes.zero(0, Self.header)
        bytes.set(u64: start.value, at: 0)
        bytes.set(u64: birth.value, at: 8)
        bytes.set(u32: blocks, at: 16)
        bytes.set(u32: stored, at: 20)
        bytes.set(u32: within, at: 24)
        bytes.set(u8: encoding, at: 28)
        bytes.set(u8: flags, at: 29)
    }

    @inlinable public var isUnwritten: Bool { flags & Self.flagUnwritten != 0 }
    @inlinable public var size: Int { Self.header + (isUnwritten ? 0 : Int(blocks) * 4) }
    @inlinable public static func crc(_ bytes: RawBytes, _ index: Int) -> UInt32 { bytes.u32(at: header + index * 4) }

    /// Checks what a reader relies on: sizes, a place inside the image, no unknown encoding.
    public static func validate(_ bytes: RawBytes, key: Key, blockCount: UInt64) throws(FormatError) {
        func fail(_ what: String) -> FormatError { FormatError("extent \(key): \(what)") }
        guard bytes.count >= header else { throw fail("\(bytes.count) bytes") }
        let item = ExtentItem(bytes)
        guard item.encoding == 0, item.flags & ~flagUnwritten == 0, bytes.slice(30, 10).isZero else {
            throw fail("unknown encoding or flags")
        }
        guard item.blocks > 0, item.isUnwritten || UInt64(item.blocks) <= maximumBlocks else {
            throw fail("\(item.blocks) blocks")
        }
        guard bytes.count == item.size, item.stored == item.blocks, item.within == 0 else { throw fail("wrong size") }
        guard item.start.value > 0, item.start.value < blockCount, UInt64(item.blocks) <= blockCount - item.start.value
        else { throw fail("\(item.blocks) blocks from \(item.start) lie outside of the image") }
        guard key.low < Limit.fileSize >> UInt64(blockShift), key.low + UInt64(item.blocks) <= 1 << 51 else {
            throw fail("beyond the largest file")
        }
    }
}
