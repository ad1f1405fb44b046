// Space: the space state of one filesystem: the map of used blocks, the space tree, and what died.
//
// Lives of a block of file data or of the main tree:
//
//   free ──allocate──► used, live ──record or checkpoint replaces it──► used, in the dead list of its interval
//     ▲                                                                    │ the horizon passes the interval's end
//     └────────────────────────────────────────────────────────────────────┘ (record flushed)
//
// Lives of a block of the space state itself (bitmaps, space tree nodes, lists), which has no history:
//
//   free ──► used by checkpoint n ──checkpoint m replaces it──► pending: only the other slot names it
//     ▲                                                            │ checkpoint m+1 is durable: no slot does
//     └────────────────────────────────────────────────────────────┘
//
// (P1) The map on disk of checkpoint n counts as free what was pending before n: by the time that map is used, the slot
//      which still named those blocks has been overwritten.
// (P2) In memory the same blocks become free only after slot n is flushed.
// (P3) The space tree is changed by the checkpoint thread alone (or by recovery, before there are threads).
//
// See Docs/DESIGN.md, "Space", for what happens when power fails in between.

public import Device
public import Format
public import Memory
public import Tree

public final class Space: @unchecked Sendable {
    public let map: SpaceMap
    public let tree: Tree
    public let device: any BlockDevice
    public let id: FilesystemID

    /// What died since the last freeze: data by records; nodes are added by the checkpoint.
    public var dead: [DeadEntry] = []
    /// What was cloned since then.
    public var sharings: [Sharing] = []
    /// Whether some blocks had several extents at the last checkpoint: then not all that is let go of is free.
    public internal(set) var hasShares = false
    /// Blocks that only the slot to be overwritten next still names.
    public internal(set) var pending: [BlockRun] = []
    /// Blocks of the space state that the checkpoint before the coming one named and the coming one will not.
    public internal(set) var superseded: [BlockRun] = []
    /// Used by nothing but history.
    public internal(set) var historyBlocks: UInt64 = 0
    /// Blocks of data that died before the freeze of the checkpoint under way; they count as history once it has listed them. With
    /// the lock held.
    public internal(set) var settlingBlocks: UInt64 = 0
    /// How often blocks were given up: what was looked up before, and read without the lock, may be something else after.
    public private(set) var releases: UInt64 = 0
    /// Where `back` goes on looking, and whether it found that the host has nothing more to give. With the lock held.
    var backingCursor = 0
    public internal(set) var hostIsFull = false
    /// Blocks that the checkpoint under way has still to take: they are nobody else's. With the lock held.
    public var owed = 0
    /// Chunks taken ahead of use, as of the coming freeze.
    public var spareChunks: [BlockNumber] = []
    /// Chunks opened since the last checkpoint, by serial.
    public var openedChunks: [UInt64: ChunkItem] = [:]

    public init(map: SpaceMap, tree: Tree, device: any BlockDevice, id: FilesystemID) {
        self.map = map
        self.tree = tree
        self.device = device
        self.id = id
    }

    public enum Failure: Error, Sendable {
        case damaged(String)
        case device(DeviceError)

        public init(_ error: TreeError) {
            switch error {
            case .missing(let reference, _): self = .damaged("space tree node at \(reference.address) not read")
            case .damaged(let error): self = .damaged(error.description)
            case .device(let error): self = .device(error)
            }
        }
        init(_ error: ListError) {
            switch error {
            case .damaged(let error): self = .damaged(error.description)
            case .device(let error): self = .device(error)
            }
        }
    }

    /// Pages for the space tree: 2 MiB, enough for its upper levels at any size.
    public static func makeCache() -> PageCache { PageCache(limit: 512, reserved: 1 << 20) }

    /// Only the index (checkpoints, chunks), for readers that leave the map alone: it stays empty.
    public static func openIndex(_ superblock: Superblock, device: any BlockDevice) -> Space {
        let tree = Tree(
            cache: makeCache(), device: device, kind: .space, id: superblock.id, root: superblock.spaceRoot,
            level: superblock.spaceLevel)
        return Space(map: SpaceMap(blockCount: 0), tree: tree, device: device, id: superblock.id)
    }

    /// Loads the state that `superblock` names.
    public static func load(_ superblock: Superblock, device: any BlockDevice) throws(Failure) -> Space {
        let tree = Tree(
            cache: makeCache(), device: device, kind: .space, id: superblock.id, root: superblock.spaceRoot,
            level: superblock.spaceLevel)
        // A map takes memory for every block that the superblock claims: only if all of its bitmaps are there, too.
        let index = Space(map: SpaceMap(blockCount: 0), tree: tree, device: device, id: superblock.id)
        for region in 0..<superblock.regions { _ = try index.regionItem(region) }
        let map = SpaceMap(blockCount: superblock.blockCount)
        let space = Space(map: map, tree: tree, device: device, id: superblock.id)
        let buffer = AlignedBuffer(count: blockSize)
        for region in 0..<map.regions {
            let item = try space.regionItem(region)
            guard item.bitmap.value < device.blockCount else { throw .damaged("bitmap of region \(region) lies outside") }
            do throws(DeviceError) { try device.read(item.bitmap, into: buffer.bytes) } catch { throw .device(error) }
            do throws(FormatError) {
                try Region.validate(buffer.bytes, region: UInt64(region), item: item, id: superblock.id, blockCount: superblock.blockCount)
            } catch { throw .damaged(error.description) }
            do throws(SpaceError) { try map.load(region: region, buffer.bytes) } catch { throw .damaged(error.description) }
        }
        do throws(ListError) {
            let list = try ListChain.readPending(
                superblock.pendingList, crc: superblock.pendingCRC, id: superblock.id, device: device)
            space.pending = list.runs
            // The list's own blocks are given up by the next checkpoint.
            space.superseded = list.blocks.map { BlockRun(start: $0, count: 1) }
        } catch { throw Failure(error) }
        space.historyBlocks = min(superblock.historyBlocks, superblock.blockCount)
        space.hasShares = try space.findShares()
        return space
    }

    // MARK: the index

    func regionItem(_ region: Int) throws(Failure) -> RegionItem {
        let value: RawBytes?
        do throws(TreeError) { value = try tree.find(Key(.region, UInt64(region))) } catch { throw Failure(error) }
        guard let value, let item = RegionItem(value) else { throw .damaged("no item for region \(region)") }
        return item
    }

    /// The newest retained checkpoint at or before `sequence`.
    public func checkpoint(atOrBefore sequence: SequenceNumber) throws(Failure) -> CheckpointItem? {
        let found: (key: Key, value: RawBytes)?
        do throws(TreeError) { found = try tree.previous(Key(.checkpoint, sequence.value)) } catch { throw Failure(error) }
        guard let found, found.key.high == UInt64(SpaceItemType.checkpoint.rawValue) else { return nil }
        return try decode(found.key.low, found.value)
    }

    private func decode(_ sequence: UInt64, _ value: RawBytes) throws(Failure) -> CheckpointItem {
        guard value.count == CheckpointItem.size else { throw .damaged("checkpoint \(sequence): item of \(value.count) bytes") }
        let item = CheckpointItem(value)
        guard item.isPossible, item.isPlausible, item.sequence.value == sequence else { throw .damaged("checkpoint \(sequence): malformed") }
        return item
    }

    /// All retained checkpoints, oldest first.
    public func checkpoints() throws(Failure) -> [CheckpointItem] {
        var items: [CheckpointItem] = []
        try each(.checkpoint) { (low, value) throws(Failure) in items.append(try decode(low, value)) }
        return items
    }

    /// All chunks named by the last checkpoint, by serial.
    public func chunks() throws(Failure) -> [(serial: UInt64, item: ChunkItem)] {
        var items: [(serial: UInt64, item: ChunkItem)] = []
        try each(.chunk) { low, value in if let item = ChunkItem(value) { items.append((low, item)) } }
        return items
    }

    private func each(_ type: SpaceItemType, _ body: (UInt64, RawBytes) throws(Failure) -> Void) throws(Failure) {
        try tree.scan(from: Key(type, 0), mapping: Failure.init) { (key, value) throws(Failure) -> Bool in
            guard key.high == UInt64(type.rawValue) else { return false }
            try body(key.low, value)
            return true
        }
        tree.cache.trim()
    }

    // MARK: the horizon

    /// Gives up everything before checkpoint `to`: dead entries of the intervals that end at or before it, chunks before its
    /// position, and checkpoints before it. The horizon record must be flushed (or replayed). The map is changed under
    /// `lock`. Returns blocks made free.
    public func moveHorizon(to: SequenceNumber, lock: Lock) throws(Failure) -> UInt64 {
        let all = try checkpoints().filter { $0.sequence <= to }
        guard let last = all.last, last.sequence == to else {
            throw .damaged("horizon \(to) is not a retained checkpoint")
        }
        var runs: [BlockRun] = []
        var given: UInt64 = 0
        for item in all where item.deadList.value != 0 {
            do throws(ListError) {
                let list = try ListChain.readDead(item.deadList, crc: item.deadListCRC, id: id, device: device)
                runs += list.entries.map { BlockRun(start: $0.start, count: UInt64($0.count)) }
                superseded += list.blocks.map { BlockRun(start: $0, count: 1) }
            } catch { throw Failure(error) }
            given += item.deadBlocks
        }
        for (serial, chunk) in try chunks() where serial < last.journal.serial {
            runs.append(BlockRun(start: chunk.address, count: chunkBlocks))
            try remove(Key(.chunk, serial))
        }
        for item in all where item.sequence < to { try remove(Key(.checkpoint, item.sequence.value)) }
        // What led to the new horizon has been consumed (invariant 9).
        var kept = last
        kept.deadList = BlockNumber(0)
        kept.deadListCRC = 0
        kept.deadEntries = 0
        kept.deadBlocks = 0
        try put(Key(.checkpoint, to.value), CheckpointItem.size) { kept.store($0) }

        try lock.withLock { () throws(Failure) in
            releases += 1
            for run in runs { try release(run) }
            historyBlocks -= min(given, historyBlocks)
        }
        return runs.reduce(0) { $0 + $1.count }
    }

    /// Frees what is pending at once: no slot but the one loaded from is valid. Only before there are threads.
    public func releasePending() throws(Failure) {
        for run in pending { try release(run) }
        pending = []
    }

    /// Blocks of one chunk; set once at open.
    public var chunkBlocks: UInt64 = 1024

    func release(_ run: BlockRun) throws(Failure) {
        do throws(SpaceError) { try map.release(run) } catch { throw .damaged(error.description) }
    }

    func put(_ key: Key, _ count: Int, _ fill: (RawBytes) -> Void) throws(Failure) {
        do throws(TreeError) { fill(try tree.put(key, count: count)) } catch { throw Failure(error) }
    }

    func remove(_ key: Key) throws(Failure) {
        do throws(TreeError) { try tree.remove(key) } catch { throw Failure(error) }
    }
}
