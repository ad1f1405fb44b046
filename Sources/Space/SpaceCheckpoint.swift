// SpaceCheckpoint: writing the space state that belongs to one checkpoint.
//
//   dead list ─► checkpoint item, chunk items ─► blocks for bitmaps, tree nodes and pending list ─► bitmaps ─► nodes ─► list
//
// Giving blocks to bitmaps and nodes changes bitmaps and nodes; so all blocks are taken first, in rounds, until taking them
// asks for no more. A round only adds regions, and those are few.
//
// The map to be written is that of the frozen sequence, plus the checkpoint's own blocks, less what was pending (P1).
// Operations go on changing the map in memory meanwhile; `bits` is the frozen copy.

import Device
public import Format
public import Memory
import Tree

/// The space state frozen together with the main tree.
public struct FrozenSpace: Sendable {
    var bits: [Int: RegionBits]
    var dead: [DeadEntry]
    var sharings: [Sharing]
    var chunks: [UInt64: ChunkItem]
}

/// What the superblock has to say of a written space state.
public struct WrittenSpace: Sendable {
    public let checkpoint: CheckpointItem
    public let root: ChildReference
    public let level: UInt8
    public let pendingList: BlockNumber
    public let pendingCRC: UInt32
    public let historyBlocks: UInt64
    let frozen: FrozenTree
    let pending: [BlockRun]
    let listBlocks: [BlockRun]
}

extension Space {
    /// Takes what belongs to the frozen sequence. With the lock held.
    public func freeze() -> FrozenSpace {
        var frozen = FrozenSpace(bits: map.snapshot(), dead: dead, sharings: sharings, chunks: openedChunks)
        // Chunks taken ahead of use are named by nothing on disk yet: after a crash they are free, and replay claims each
        // when it meets the header that names it.
        for chunk in spareChunks {
            let region = Int(chunk.value) / Region.blocks
            for block in 0..<Int(chunkBlocks) { frozen.bits[region]?.clear(Int(chunk.value) % Region.blocks + block) }
        }
        settlingBlocks = dead.reduce(0) { $0 + UInt64($1.count) }
        dead = []
        sharings = []
        openedChunks = [:]
        if !frozen.sharings.isEmpty { hasShares = true }
        return frozen
    }

    /// Blocks that a checkpoint needs for `nodes` of the main tree; nil when the image is full in spite of its reserve.
    public func take(_ kind: SpaceClass, _ count: Int, _ frozen: inout FrozenSpace, lock: Lock) throws(Failure) -> [BlockNumber] {
        var blocks: [BlockNumber] = []
        blocks.reserveCapacity(count)
        func some() -> BlockRun? {
            lock.withLock {
                let run = map.allocate(kind, wanted: UInt64(count - blocks.count))
                owed -= min(owed, Int(run?.count ?? 0))
                return run
            }
        }
        while blocks.count < count {
            var run = some()
            if run == nil {
                try back(atLeast: count - blocks.count, lock: lock)
                run = some()
            }
            guard let run else { throw .damaged("no space left for a checkpoint") }
            for block in run.start.value..<run.end {
                try change(BlockNumber(block), &frozen, used: true)
                blocks.append(BlockNumber(block))
            }
        }
        return blocks
    }

    /// Sets or clears one bit of the frozen map. A region that was unchanged at the freeze is as the last checkpoint wrote it.
    private func change(_ block: BlockNumber, _ frozen: inout FrozenSpace, used: Bool) throws(Failure) {
        let region = Int(block.value) / Region.blocks
        let bit = Int(block.value) % Region.blocks
        if frozen.bits[region] == nil {
            let item = try regionItem(region)
            let buffer = AlignedBuffer(count: blockSize)
            do throws(DeviceError) { try device.read(item.bitmap, into: buffer.bytes) } catch { throw .device(error) }
            do throws(FormatError) {
                try Region.validate(buffer.bytes, region: UInt64(region), item: item, id: id, blockCount: map.blockCount)
            } catch { throw .damaged(error.description) }
            frozen.bits[region] = RegionBits(buffer.bytes)
        }
        if used { frozen.bits[region]!.set(bit) } else { frozen.bits[region]!.clear(bit) }
    }

    /// Writes the space state of `checkpoint`, whose main tree is already written. `nodes` are the dead nodes of the interval.
    public func write(
        _ checkpoint: CheckpointItem, deadNodes: [ChildReference], _ frozen: inout FrozenSpace, lock: Lock
    ) throws(Failure) -> WrittenSpace {
        var item = checkpoint
        // A second checkpoint of the same sequence (a clean close with nothing new) takes the place of the first in the index, and must
        // keep what the first knew to have died in its interval (invariant 9).
        let replaced = try checkpointItem(item.sequence)
        try writeDeadList(&item, replaced, deadNodes, &frozen, lock: lock)
        let newlyDead = item.deadBlocks - min(item.deadBlocks, replaced?.deadBlocks ?? 0)
        try put(Key(.checkpoint, item.sequence.value), CheckpointItem.size) { item.store($0) }
        for (serial, chunk) in frozen.chunks { try put(Key(.chunk, serial), ChunkItem.size) { chunk.store($0) } }
        // The journal may have gone on elsewhere since the first: a recovery found nothing, and began an epoch in a chunk of its own. If
        // this is the oldest checkpoint retained, only the other slot still needs the chunks before that.
        if let replaced, replaced.journal.serial < item.journal.serial, try checkpoints().first?.sequence == item.sequence {
            for (serial, chunk) in try chunks() where serial < item.journal.serial {
                superseded.append(BlockRun(start: chunk.address, count: chunkBlocks))
                try remove(Key(.chunk, serial))
            }
        }
        for run in pending {
            for block in run.start.value..<run.end { try change(BlockNumber(block), &frozen, used: false) }
        }

        // Rounds: see above.
        var placed: [Int: BlockNumber] = [:]
        var blocks: [BlockNumber] = []
        while true {
            for region in frozen.bits.keys.sorted() where placed[region] == nil {
                placed[region] = BlockNumber(0)
                try supersedeBitmap(region)
            }
            let lists = ListChain.blocksNeeded(
                items: superseded.count + tree.deadNodes.count, itemSize: ListChain.runSize)
            let needed = placed.count + tree.dirtyCount + lists
            if blocks.count >= needed { break }
            blocks += try take(.space, needed - blocks.count, &frozen, lock: lock)
        }

        var next = 0
        let buffer = AlignedBuffer(count: blockSize)
        for region in placed.keys.sorted() {
            let at = blocks[next]
            next += 1
            let bits = frozen.bits[region]!
            bits.store(buffer.bytes)
            let crc = Region.seal(buffer.bytes, region: UInt64(region), address: at, id: id)
            do throws(DeviceError) { try device.write(at, buffer.bytes) } catch { throw .device(error) }
            try put(Key(.region, UInt64(region)), RegionItem.size) {
                RegionItem(bitmap: at, crc: crc, free: UInt32(bits.free)).store($0)
            }
        }
        let frozenTree = tree.freeze()
        let nodes = Array(blocks[next..<next + frozenTree.count])
        next += frozenTree.count
        let outdated = superseded + frozenTree.deadNodes.map { BlockRun(start: $0.address, count: 1) }
        let listBlocks = Array(blocks[next...])
        let list: (head: BlockNumber, crc: UInt32)
        do throws(DeviceError) {
            try frozenTree.write(tree, to: nodes, birth: item.sequence) { (block, bytes) throws(DeviceError) in
                try device.write(block, bytes)
            }
            list = try ListChain.write(
                outdated.count, itemSize: ListChain.runSize, magic: magicPending, to: listBlocks, id: id, device: device
            ) { index, bytes in
                bytes.set(u64: outdated[index].start.value, at: 0)
                bytes.set(u64: outdated[index].count, at: 8)
            }
        } catch { throw .device(error) }
        let history = lock.withLock {
            historyBlocks += newlyDead
            settlingBlocks = 0
            return historyBlocks
        }
        return WrittenSpace(
            checkpoint: item, root: frozenTree.sealedRoot, level: frozenTree.level, pendingList: list.head, pendingCRC: list.crc,
            historyBlocks: history, frozen: frozenTree, pending: outdated,
            listBlocks: listBlocks.map { BlockRun(start: $0, count: 1) })
    }

    private func supersedeBitmap(_ region: Int) throws(Failure) {
        let key = Key(.region, UInt64(region))
        let old: RawBytes?
        do throws(TreeError) { old = try tree.find(key) } catch { throw Failure(error) }
        if let old, let item = RegionItem(old) { superseded.append(BlockRun(start: item.bitmap, count: 1)) }
        try put(key, RegionItem.size) { RegionItem(bitmap: BlockNumber(0), crc: 0, free: 0).store($0) }
    }

    private func checkpointItem(_ sequence: SequenceNumber) throws(Failure) -> CheckpointItem? {
        let value: RawBytes?
        do throws(TreeError) { value = try tree.find(Key(.checkpoint, sequence.value)) } catch { throw Failure(error) }
        guard let value, value.count == CheckpointItem.size else { return nil }
        return CheckpointItem(value)
    }

    private func writeDeadList(
        _ item: inout CheckpointItem, _ replaced: CheckpointItem?, _ deadNodes: [ChildReference], _ frozen: inout FrozenSpace,
        lock: Lock
    ) throws(Failure) {
        var entries = try settle(frozen.dead, frozen.sharings)
        let sharing = try findShares()
        lock.withLock { hasShares = sharing }
        entries += deadNodes.map {
            DeadEntry(start: $0.address, count: 1, kind: .node, birth: $0.birth, death: item.sequence)
        }
        if let replaced, replaced.deadList.value != 0 {
            if entries.isEmpty {
                item.deadList = replaced.deadList
                item.deadListCRC = replaced.deadListCRC
                item.deadEntries = replaced.deadEntries
                item.deadBlocks = replaced.deadBlocks
                return
            }
            do throws(ListError) {
                let list = try ListChain.readDead(replaced.deadList, crc: replaced.deadListCRC, id: id, device: device)
                entries += list.entries
                superseded += list.blocks.map { BlockRun(start: $0, count: 1) }
            } catch { throw Failure(error) }
        }
        entries.sort { $0.start < $1.start }
        var merged: [DeadEntry] = []
        merged.reserveCapacity(entries.count)
        for entry in entries {
            if let last = merged.last, last.start.value + UInt64(last.count) == entry.start.value, last.kind == entry.kind,
                last.birth == entry.birth, last.death == entry.death
            {
                merged[merged.count - 1].count += entry.count
            } else {
                merged.append(entry)
            }
        }
        guard !merged.isEmpty else { return }
        let needed = ListChain.blocksNeeded(items: merged.count, itemSize: DeadEntry.size)
        let blocks = try take(.space, needed, &frozen, lock: lock)
        do throws(DeviceError) {
            let list = try ListChain.write(
                merged.count, itemSize: DeadEntry.size, magic: magicDeadList, to: blocks, id: id, device: device
            ) { merged[$0].store($1) }
            item.deadList = list.head
            item.deadListCRC = list.crc
        } catch { throw .device(error) }
        item.deadEntries = UInt32(clamping: merged.count)
        item.deadBlocks = merged.reduce(0) { $0 + UInt64($1.count) }
    }

    /// The slot that names `written` is flushed: nothing names the blocks pending before it any more. With the lock held.
    public func finish(_ written: WrittenSpace) throws(Failure) {
        for run in pending { try release(run) }
        pending = written.pending
        superseded = written.listBlocks
        tree.finish(written.frozen)
        tree.cache.trim()
    }
}

extension RegionBits {
    init(_ page: RawBytes) {
        words = (0..<Region.blocks / 64).map { page.u64(at: Region.bits + $0 * 8) }
        classes = (0..<Region.zones).map { Region.zoneClass(page, $0) }
    }
}
