// SpaceItems: the values of the space tree, and the two kinds of block that it points to (Docs/FORMAT.md, "Space").
//
//   superblock slot ─► space tree ─┬─ region r     ─► bitmap block r
//                                  ├─ checkpoint C ─► root of the main tree at C, journal position, dead list ─► blocks
//                                  └─ chunk s      ─► journal chunk
//                  └─► pending list ─► blocks that only the other slot still names

public import Memory

/// Blocks of one region: what one bitmap block describes.
public enum Region {
    /// Blocks of one zone: allocation keeps lifetimes apart zone by zone.
    public static let zoneBlocks = 1024
    public static let zones = 31
    public static let blocks = zones * zoneBlocks
    static let classes = 64
    public static let bits = 128

    /// Bitmap block: header, one class byte a zone at 64, one bit a block from 128, lowest bit first, set when used.
    public static func seal(_ page: RawBytes, region: UInt64, address: BlockNumber, id: FilesystemID) -> UInt32 {
        page.zero(0, classes)
        page.zero(classes + zones, bits - classes - zones)
        page.set(u32: magicBitmap, at: 0)
        page.set(u64: region, at: 8)
        page.set(u64: address.value, at: 16)
        page.set(u64: id.high, at: 24)
        page.set(u64: id.low, at: 32)
        let sum = page.crc32c(skipping: 4)
        page.set(u32: sum, at: 4)
        return sum
    }

    /// `blockCount`: of the filesystem. Nothing can live in a zone behind its end.
    public static func validate(
        _ page: RawBytes, region: UInt64, item: RegionItem, id: FilesystemID, blockCount: UInt64
    ) throws(FormatError) {
        func fail(_ what: String) -> FormatError { FormatError("bitmap of region \(region) at \(item.bitmap): \(what)") }
        guard page.u32(at: 0) == magicBitmap else { throw fail("not a bitmap") }
        let sum = page.crc32c(skipping: 4)
        guard sum == item.crc, sum == page.u32(at: 4) else { throw fail("checksum \(hex(sum)), expected \(hex(item.crc))") }
        guard page.u64(at: 8) == region, page.u64(at: 16) == item.bitmap.value,
            page.u64(at: 24) == id.high, page.u64(at: 32) == id.low
        else { throw fail("belongs elsewhere") }
        let beyond = blockCount > region * UInt64(blocks) ? (blockCount - region * UInt64(blocks) + UInt64(zoneBlocks) - 1) / UInt64(zoneBlocks) : 0
        for zone in 0..<zones where zoneClass(page, zone) != 0 {
            guard zoneClass(page, zone) <= highestClass, zone < beyond else { throw fail("zone \(zone) is of class \(zoneClass(page, zone))") }
        }
    }

    /// Of a zone: 0 empty, 1 journal, 2 nodes, 3 data, 4 space state.
    static let highestClass: UInt8 = 4

    public static func zoneClass(_ page: RawBytes, _ zone: Int) -> UInt8 { page.u8(at: classes + zone) }
    public static func setZoneClass(_ page: RawBytes, _ zone: Int, _ value: UInt8) { page.set(u8: value, at: classes + zone) }
}

/// Where a region's bitmap is: 24 bytes.
public struct RegionItem: Sendable, Equatable {
    public static let size = 24
    public var bitmap: BlockNumber
    public var crc: UInt32
    /// Free blocks in the region.
    public var free: UInt32

    public init(bitmap: BlockNumber, crc: UInt32, free: UInt32) {
        self.bitmap = bitmap
        self.crc = crc
        self.free = free
    }
    public init?(_ bytes: RawBytes) {
        guard bytes.count == Self.size else { return nil }
        bitmap = BlockNumber(bytes.u64(at: 0))
        crc = bytes.u32(at: 8)
        free = bytes.u32(at: 12)
    }
    public func store(_ bytes: RawBytes) {
        bytes.zero()
        bytes.set(u64: bitmap.value, at: 0)
        bytes.set(u32: crc, at: 8)
        bytes.set(u32: free, at: 12)
    }
}

/// Blocks in a row that several extents hold: 16 bytes.
public struct ShareItem: Sendable, Equatable {
    public static let size = 16
    /// Blocks.
    public var count: UInt32
    /// Extents that hold them, less one: never 0.
    public var further: UInt32

    public init(count: UInt32, further: UInt32) {
        self.count = count
        self.further = further
    }
    public init?(_ bytes: RawBytes) {
        guard bytes.count == Self.size, bytes.u32(at: 0) > 0, bytes.u32(at: 4) > 0, bytes.u64(at: 8) == 0 else { return nil }
        count = bytes.u32(at: 0)
        further = bytes.u32(at: 4)
    }
    public func store(_ bytes: RawBytes) {
        bytes.set(u32: count, at: 0)
        bytes.set(u32: further, at: 4)
        bytes.set(u64: 0, at: 8)
    }
}

/// A chunk of the journal: 32 bytes.
public struct ChunkItem: Sendable, Equatable {
    public static let size = 32
    public var address: BlockNumber
    /// The sequence that its first frame begins with, or will.
    public var first: SequenceNumber
    public var epoch: UInt64

    public init(address: BlockNumber, first: SequenceNumber, epoch: UInt64) {
        self.address = address
        self.first = first
        self.epoch = epoch
    }
    public init?(_ bytes: RawBytes) {
        guard bytes.count == Self.size else { return nil }
        address = BlockNumber(bytes.u64(at: 0))
        first = SequenceNumber(bytes.u64(at: 8))
        epoch = bytes.u64(at: 16)
    }
    public func store(_ bytes: RawBytes) {
        bytes.zero()
        bytes.set(u64: address.value, at: 0)
        bytes.set(u64: first.value, at: 8)
        bytes.set(u64: epoch, at: 16)
    }
}

/// A place between two frames, with all that the next frame must agree with: 64 bytes.
public struct JournalPosition: Sendable, Equatable {
    public static let size = 64
    public var chunk: BlockNumber
    public var serial: UInt64
    /// Blocks from the chunk's start; the header is block 0.
    public var block: UInt32
    public var epoch: UInt64
    public var nonce: UInt64
    /// Hash of the frame before.
    public var chain: UInt64
    /// The sequence of the next record.
    public var next: SequenceNumber

    public init(
        chunk: BlockNumber, serial: UInt64, block: UInt32, epoch: UInt64, nonce: UInt64, chain: UInt64, next: SequenceNumber
    ) {
        self.chunk = chunk
        self.serial = serial
        self.block = block
        self.epoch = epoch
        self.nonce = nonce
        self.chain = chain
        self.next = next
    }
    public init(_ bytes: RawBytes) {
        chunk = BlockNumber(bytes.u64(at: 0))
        serial = bytes.u64(at: 8)
        block = bytes.u32(at: 16)
        epoch = bytes.u64(at: 24)
        nonce = bytes.u64(at: 32)
        chain = bytes.u64(at: 40)
        next = SequenceNumber(bytes.u64(at: 48))
    }
    public func store(_ bytes: RawBytes) {
        bytes.zero(0, Self.size)
        bytes.set(u64: chunk.value, at: 0)
        bytes.set(u64: serial, at: 8)
        bytes.set(u32: block, at: 16)
        bytes.set(u64: epoch, at: 24)
        bytes.set(u64: nonce, at: 32)
        bytes.set(u64: chain, at: 40)
        bytes.set(u64: next.value, at: 48)
    }
}

/// The state at one sequence, written out: 192 bytes.
public struct CheckpointItem: Sendable, Equatable {
    public static let size = 192
    public var sequence: SequenceNumber
    /// Commit time of the last frame it contains.
    public var time: Timestamp
    public var root: ChildReference
    public var rootLevel: UInt8
    public var nextInode: UInt64
    public var inodes: UInt64
    /// Data blocks that belong to files.
    public var dataBlocks: UInt64
    /// Where the journal goes on after `sequence`.
    public var journal: JournalPosition
    /// What died in the interval that this checkpoint ends; block 0 when nothing did.
    public var deadList: BlockNumber
    public var deadListCRC: UInt32
    public var deadEntries: UInt32
    /// Blocks that those entries hold.
    public var deadBlocks: UInt64

    public init(
        sequence: SequenceNumber, time: Timestamp, root: ChildReference, rootLevel: UInt8, nextInode: UInt64, inodes: UInt64,
        dataBlocks: UInt64, journal: JournalPosition
    ) {
        self.sequence = sequence
        self.time = time
        self.root = root
        self.rootLevel = rootLevel
        self.nextInode = nextInode
        self.inodes = inodes
        self.dataBlocks = dataBlocks
        self.journal = journal
        deadList = BlockNumber(0)
        deadListCRC = 0
        deadEntries = 0
        deadBlocks = 0
    }

    /// Whether numbers may be counted on from here without overflowing, and agree with each other as far as can be seen here.
    public var isPlausible: Bool {
        sequence.value < Limit.count && journal.next.value == sequence.value + 1 && journal.serial < Limit.count
            && journal.epoch < Limit.count && rootLevel <= NodeLayout.plausibleLevel && nextInode <= Limit.inode
            && inodes <= Limit.inode && deadBlocks < Limit.count
    }

    public init(_ bytes: RawBytes) {
        sequence = SequenceNumber(bytes.u64(at: 0))
        time = Timestamp(nanoseconds: bytes.i64(at: 8))
        root = ChildReference(bytes.slice(16, 20))
        rootLevel = bytes.u8(at: 36)
        nextInode = bytes.u64(at: 40)
        inodes = bytes.u64(at: 48)
        dataBlocks = bytes.u64(at: 56)
        journal = JournalPosition(bytes.slice(64, JournalPosition.size))
        deadList = BlockNumber(bytes.u64(at: 128))
        deadListCRC = bytes.u32(at: 136)
        deadEntries = bytes.u32(at: 140)
        deadBlocks = bytes.u64(at: 144)
    }

    /// Whether its root can be followed. Whatever else is wrong shows when it is.
    public var isPossible: Bool { root.isPossible && rootLevel <= NodeLayout.maximumLevel }

    public func store(_ bytes: RawBytes) {
        bytes.zero(0, Self.size)
        bytes.set(u64: sequence.value, at: 0)
        bytes.set(i64: time.nanoseconds, at: 8)
        root.store(bytes.slice(16, 20))
        bytes.set(u8: rootLevel, at: 36)
        bytes.set(u64: nextInode, at: 40)
        bytes.set(u64: inodes, at: 48)
        bytes.set(u64: dataBlocks, at: 56)
        journal.store(bytes.slice(64, JournalPosition.size))
        bytes.set(u64: deadList.value, at: 128)
        bytes.set(u32: deadListCRC, at: 136)
        bytes.set(u32: deadEntries, at: 140)
        bytes.set(u64: deadBlocks, at: 144)
    }
}

/// Blocks that nothing at or after `death` needs: 32 bytes in a dead list.
public struct DeadEntry: Sendable, Equatable {
    public static let size = 32

    public enum Kind: UInt32, Sendable {
        /// Needed by every sequence in [birth, death).
        case data = 0
        /// A node of the main tree: needed by roots in [birth, death).
        case node = 1
    }

    public var start: BlockNumber
    public var count: UInt32
    public var kind: UInt32
    public var birth: SequenceNumber
    public var death: SequenceNumber

    public init(start: BlockNumber, count: UInt32, kind: Kind, birth: SequenceNumber, death: SequenceNumber) {
        self.start = start
        self.count = count
        self.kind = kind.rawValue
        self.birth = birth
        self.death = death
    }
    public init(_ bytes: RawBytes) {
        start = BlockNumber(bytes.u64(at: 0))
        count = bytes.u32(at: 8)
        kind = bytes.u32(at: 12)
        birth = SequenceNumber(bytes.u64(at: 16))
        death = SequenceNumber(bytes.u64(at: 24))
    }
    public func store(_ bytes: RawBytes) {
        bytes.set(u64: start.value, at: 0)
        bytes.set(u32: count, at: 8)
        bytes.set(u32: kind, at: 12)
        bytes.set(u64: birth.value, at: 16)
        bytes.set(u64: death.value, at: 24)
    }
}

/// A block of a list (dead entries or pending runs): header of 64 bytes, then items; the next block's CRC is held here.
///
///   0 magic  4 CRC  8 own address  16 filesystem ID  32 next block (0: last)  40 its CRC  44 items here  48..64 zero
public enum ListBlock {
    public static let header = 64

    public static func capacity(itemSize: Int) -> Int { (blockSize - header) / itemSize }

    public static func seal(
        _ page: RawBytes, magic: UInt32, address: BlockNumber, id: FilesystemID, next: BlockNumber, nextCRC: UInt32, count: Int
    ) -> UInt32 {
        page.zero(0, header)
        page.set(u32: magic, at: 0)
        page.set(u64: address.value, at: 8)
        page.set(u64: id.high, at: 16)
        page.set(u64: id.low, at: 24)
        page.set(u64: next.value, at: 32)
        page.set(u32: nextCRC, at: 40)
        page.set(u32: UInt32(count), at: 44)
        let sum = page.crc32c(skipping: 4)
        page.set(u32: sum, at: 4)
        return sum
    }

    /// Checks the block; returns the number of items and what follows.
    public static func validate(
        _ page: RawBytes, magic: UInt32, itemSize: Int, address: BlockNumber, crc: UInt32, id: FilesystemID
    ) throws(FormatError) -> (count: Int, next: BlockNumber, nextCRC: UInt32) {
        func fail(_ what: String) -> FormatError { FormatError("list block at \(address): \(what)") }
        guard page.u32(at: 0) == magic else { throw fail("wrong magic") }
        let sum = page.crc32c(skipping: 4)
        guard sum == crc, sum == page.u32(at: 4) else { throw fail("checksum \(hex(sum)), expected \(hex(crc))") }
        guard page.u64(at: 8) == address.value, page.u64(at: 16) == id.high, page.u64(at: 24) == id.low else {
            throw fail("belongs elsewhere")
        }
        let count = Int(page.u32(at: 44))
        guard count <= capacity(itemSize: itemSize) else { throw fail("\(count) items") }
        return (count, BlockNumber(page.u64(at: 32)), page.u32(at: 40))
    }
}
