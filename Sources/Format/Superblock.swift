// Superblock: where everything is found. Two slots, at blocks 0 and 8, are written alternately; the one of the higher
// generation that checks out is the newest. The last block of the image keeps a copy of identity and geometry (never
// of a root) for repair.
//
// (S1) A slot for checkpoint C is written only after all frames up to C, C's nodes, posted data and space tree are
//      flushed.  (S2) It is written over the slot that does not hold the newest valid generation.

public import Memory

public struct Superblock: Sendable, Equatable {
    public static let slots: [BlockNumber] = [BlockNumber(0), BlockNumber(8)]
    /// Blocks before the first that may be allocated.
    public static let reservedBlocks: UInt64 = 16
    public static let version: UInt32 = 1
    public static let labelBytes = 64
    /// 256 TiB. A bit for each block is held in memory, so a larger number, in a file of holes, would be one to run out of it by.
    public static let maximumBlocks: UInt64 = 1 << 36
    static let crc = 12

    /// Feature bits that this code knows. An unknown incompatible bit refuses the image, an unknown read-only one
    /// refuses writing to it.
    public static let knownReadOnlyCompatible: UInt64 = 0
    public static let knownIncompatible: UInt64 = 0

    public static let flagClean: UInt64 = 1
    /// Corruption was met: read-only until fsck has looked.
    public static let flagDamaged: UInt64 = 2

    public var compatible: UInt64 = 0
    public var readOnlyCompatible: UInt64 = 0
    public var incompatible: UInt64 = 0
    public var id: FilesystemID
    public var label: String
    public var blockCount: UInt64
    /// Blocks of one journal chunk: a power of two from 256 to 1024.
    public var chunkBlocks: UInt32
    public var seed: HashSeed
    public var generation: UInt64 = 0
    public var epoch: UInt64 = 1
    public var nonce: UInt64
    public var flags: UInt64 = 0
    public var created: Timestamp
    public var written: Timestamp
    /// Zero keeps all history that fits; else seconds after which it may be given up.
    public var retention: UInt64 = 0
    /// Oldest retained checkpoint: no point before it can be opened.
    public var horizon: SequenceNumber
    public var checkpoint: CheckpointItem
    public var spaceRoot: ChildReference
    public var spaceLevel: UInt8 = 0
    public var pendingList: BlockNumber = BlockNumber(0)
    public var pendingCRC: UInt32 = 0
    /// Blocks held only by history at this checkpoint.
    public var historyBlocks: UInt64 = 0
    /// Where the last recovery ended the journal of the epoch before; `cut.epoch` 0 when there was none.
    public var cut: JournalPosition

    public init(
        id: FilesystemID, label: String, blockCount: UInt64, chunkBlocks: UInt32, seed: HashSeed, nonce: UInt64,
        created: Timestamp, checkpoint: CheckpointItem, spaceRoot: ChildReference
    ) {
        self.id = id
        self.label = label
        self.blockCount = blockCount
        self.chunkBlocks = chunkBlocks
        self.seed = seed
        self.nonce = nonce
        self.created = created
        written = created
        horizon = checkpoint.sequence
        self.checkpoint = checkpoint
        self.spaceRoot = spaceRoot
        cut = JournalPosition(
            chunk: BlockNumber(0), serial: 0, block: 0, epoch: 0, nonce: 0, chain: 0, next: SequenceNumber(0))
    }

    public var isClean: Bool { flags & Self.flagClean != 0 }

    /// What the last block keeps: identity and geometry, as of the making of the filesystem, and no roots.
    public var identity: Superblock {
        var copy = self
        let nowhere = JournalPosition(
            chunk: BlockNumber(0), serial: 0, block: 0, epoch: 0, nonce: 0, chain: 0, next: SequenceNumber(0))
        let nothing = ChildReference(address: BlockNumber(0), birth: SequenceNumber(0), crc: 0)
        copy.checkpoint = CheckpointItem(
            sequence: SequenceNumber(0), time: created, root: nothing, rootLevel: 0, nextInode: 0, inodes: 0,
            dataBlocks: 0, journal: nowhere)
        copy.spaceRoot = nothing
        copy.spaceLevel = 0
        copy.pendingList = BlockNumber(0)
        copy.pendingCRC = 0
        copy.historyBlocks = 0
        copy.generation = 0
        copy.epoch = 1
        copy.flags = Superblock.flagClean
        copy.written = created
        copy.horizon = SequenceNumber(0)
        copy.cut = nowhere
        return copy
    }

    /// Regions that bitmaps describe; the last may be short.
    public var regions: Int { Int((blockCount + UInt64(Region.blocks) - 1) / UInt64(Region.blocks)) }

    public func store(_ page: RawBytes, slot: Int) {
        page.zero()
        page.set(u64: magicSuperblock, at: 0)
        page.set(u32: Self.version, at: 8)
        page.set(u64: compatible, at: 16)
        page.set(u64: readOnlyCompatible, at: 24)
        page.set(u64: incompatible, at: 32)
        page.set(u64: id.high, at: 40)
        page.set(u64: id.low, at: 48)
        page.copy(Array(label.utf8.prefix(Self.labelBytes)), to: 56)
        page.set(u64: blockCount, at: 120)
        page.set(u32: UInt32(blockSize), at: 128)
        page.set(u32: chunkBlocks, at: 132)
        page.set(u32: UInt32(Region.blocks), at: 136)
        page.set(u32: UInt32(slot), at: 140)
        page.set(u64: seed.k0, at: 144)
        page.set(u64: seed.k1, at: 152)
        page.set(u64: generation, at: 160)
        page.set(u64: epoch, at: 168)
        page.set(u64: nonce, at: 176)
        page.set(u64: flags, at: 184)
        page.set(i64: created.nanoseconds, at: 192)
        page.set(i64: written.nanoseconds, at: 200)
        page.set(u64: retention, at: 208)
        page.set(u64: horizon.value, at: 216)
        checkpoint.store(page.slice(224, CheckpointItem.size))
        spaceRoot.store(page.slice(416, ChildReference.size))
        page.set(u8: spaceLevel, at: 436)
        page.set(u64: pendingList.value, at: 440)
        page.set(u32: pendingCRC, at: 448)
        page.set(u64: historyBlocks, at: 456)
        cut.store(page.slice(464, JournalPosition.size))
        page.set(u32: page.crc32c(skipping: Self.crc), at: Self.crc)
    }

    /// Whether the block begins as a Daybook superblock does, valid or not.
    public static func looksLikeOne(_ page: RawBytes) -> Bool { page.u64(at: 0) == magicSuperblock }

    /// The filesystem that the block says it belongs to, valid or not.
    public static func namedID(_ page: RawBytes) -> FilesystemID { FilesystemID(high: page.u64(at: 40), low: page.u64(at: 48)) }

    /// Decodes a slot, or the identity copy in the last block (slot 2).
    public init(_ page: RawBytes, slot: Int) throws(FormatError) {
        func fail(_ what: String, isUnknown: Bool = false) -> FormatError {
            FormatError("superblock slot \(slot): \(what)", isUnknown: isUnknown)
        }
        guard Self.looksLikeOne(page) else { throw fail("no Daybook superblock") }
        let sum = page.crc32c(skipping: Self.crc)
        guard sum == page.u32(at: Self.crc) else {
            throw fail("checksum \(hex(sum)), stored \(hex(page.u32(at: Self.crc)))")
        }
        guard page.u32(at: 8) == Self.version else {
            throw fail("format version \(page.u32(at: 8)) is not known", isUnknown: true)
        }
        incompatible = page.u64(at: 32)
        guard incompatible & ~Self.knownIncompatible == 0 else {
            throw fail("unknown features \(hex(incompatible))", isUnknown: true)
        }
        guard page.u32(at: 140) == UInt32(slot) else { throw fail("belongs to slot \(page.u32(at: 140))") }
        guard page.u32(at: 128) == UInt32(blockSize), page.u32(at: 136) == UInt32(Region.blocks) else {
            throw fail("unknown block or region size")
        }
        compatible = page.u64(at: 16)
        readOnlyCompatible = page.u64(at: 24)
        id = Self.namedID(page)
        let text = page.slice(56, Self.labelBytes).array.prefix { $0 != 0 }
        label = String(decoding: text, as: UTF8.self)
        blockCount = page.u64(at: 120)
        chunkBlocks = page.u32(at: 132)
        guard blockCount >= 1024, blockCount <= Self.maximumBlocks, [256, 512, 1024].contains(chunkBlocks) else {
            throw fail("impossible geometry: \(blockCount) blocks, chunks of \(chunkBlocks)")
        }
        seed = HashSeed(k0: page.u64(at: 144), k1: page.u64(at: 152))
        generation = page.u64(at: 160)
        epoch = page.u64(at: 168)
        nonce = page.u64(at: 176)
        flags = page.u64(at: 184)
        created = Timestamp(nanoseconds: page.i64(at: 192))
        written = Timestamp(nanoseconds: page.i64(at: 200))
        retention = page.u64(at: 208)
        horizon = SequenceNumber(page.u64(at: 216))
        checkpoint = CheckpointItem(page.slice(224, CheckpointItem.size))
        spaceRoot = ChildReference(page.slice(416, ChildReference.size))
        spaceLevel = page.u8(at: 436)
        pendingList = BlockNumber(page.u64(at: 440))
        pendingCRC = page.u32(at: 448)
        historyBlocks = page.u64(at: 456)
        cut = JournalPosition(page.slice(464, JournalPosition.size))
        guard page.slice(528, blockSize - 528).isZero else { throw fail("reserved bytes are not zero") }
        guard horizon <= checkpoint.sequence else { throw fail("horizon after its checkpoint") }
        // The identity copy has no state.
        guard slot < Self.slots.count else { return }
        guard Self.isPossible(counters: [generation, epoch, checkpoint.sequence.value] + [checkpoint.journal, cut].flatMap {
            [$0.epoch, $0.serial, $0.next.value]
        }), epoch > 0, cut.epoch == 0 || cut.next.value > 0 else { throw fail("impossible counters") }
        guard checkpoint.nextInode <= 1 << 56, checkpoint.inodes <= 1 << 56, checkpoint.dataBlocks <= blockCount,
            historyBlocks <= blockCount
        else { throw fail("impossible totals") }
        guard isPlace(checkpoint.root.address), isPlace(spaceRoot.address), isPlace(checkpoint.journal.chunk),
            pendingList.value == 0 || isPlace(pendingList), checkpoint.deadList.value == 0 || isPlace(checkpoint.deadList)
        else { throw fail("names blocks outside of the filesystem") }
        guard spaceLevel <= NodeLayout.plausibleLevel, checkpoint.isPossible, checkpoint.isPlausible else {
            throw fail("impossible numbers")
        }
    }

    /// No counter comes near this bound; so one may be added to whatever was read.
    private static func isPossible(counters: [UInt64]) -> Bool { counters.allSatisfy { $0 < 1 << 62 } }

    /// Whether a block may be one that was given out.
    private func isPlace(_ block: BlockNumber) -> Bool {
        block.value >= Self.reservedBlocks && block.value < blockCount
    }
}
