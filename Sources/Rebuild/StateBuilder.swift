// StateBuilder: a new space state for a checkpoint, made from what the trees themselves say, and slots that name it.
//
//   trees, dead lists, chunks ─► used blocks, share counts ─► bitmaps, space tree ─► both slots
//
// (B1) New blocks are taken from those that nothing reaches: neither what is being built, nor `avoid`, which holds all that the image
//      reached before the repair and all that its journal is going to put to use.
// (B2) What the bitmaps say is used is what is reached from the checkpoints that are kept; so what `avoid` holds besides is free for
//      the journal's records to claim (invariant 7).
// (B3) Both slots name the new state; the one that held the newest is written last.

import Check
import Device
import Format
import Journal
import Memory
import Space
import Tree

struct StateBuilder {
    let device: OverlayDevice
    let isCancelled: () -> Bool
    /// Blocks that nothing new may be written to.
    var avoid: BlockSet

    // MARK: blocks

    private var cursor: UInt64 = Superblock.reservedBlocks

    init(_ device: OverlayDevice, avoid: BlockSet, isCancelled: @escaping () -> Bool) {
        self.device = device
        self.avoid = avoid
        self.isCancelled = isCancelled
    }

    /// A block that nothing reaches.
    mutating func pick() throws -> BlockNumber {
        while cursor < avoid.blockCount - 1 {
            let block = cursor
            cursor += 1
            if avoid.insert(block, 1) == nil { return BlockNumber(block) }
        }
        throw RepairFailure(.damaged, "no free block is left for the repair")
    }

    /// As many in a row, at a multiple of their number.
    mutating func pickChunk(_ size: UInt64) -> BlockNumber? {
        var at = (Superblock.reservedBlocks + size - 1) / size * size
        while at + size < avoid.blockCount {
            if (at..<at + size).allSatisfy({ !avoid.contains($0) }) {
                avoid.insert(at, size)
                return BlockNumber(at)
            }
            at += size
        }
        return nil
    }

    // MARK: what is used

    private struct Used {
        var all: BlockSet
        var runs: [(start: UInt64, count: UInt64, kind: SpaceClass)] = []
        /// Blocks with more than one extent: how many further ones.
        var further: [UInt64: UInt32] = [:]

        init(_ blockCount: UInt64) { all = BlockSet(blockCount: blockCount) }

        /// What is taken already is left to whoever took it.
        mutating func take(_ start: UInt64, _ count: UInt64, _ kind: SpaceClass) {
            guard start < all.blockCount, count <= all.blockCount - start else { return }
            var at = start
            while let first = all.firstMissing(at, start + count - at) {
                var end = first + 1
                while end < start + count, !all.contains(end) { end += 1 }
                all.insert(first, end - first)
                if let last = runs.last, last.kind == kind, last.start + last.count == first {
                    runs[runs.count - 1].count += end - first
                } else {
                    runs.append((first, end - first, kind))
                }
                at = end
                if at >= start + count { break }
            }
        }

        mutating func takeData(_ start: UInt64, _ count: UInt64) {
            guard start < all.blockCount, count <= all.blockCount - start else { return }
            if all.firstPresent(start, count) != nil {
                for block in start..<start + count where all.contains(block) { further[block, default: 0] += 1 }
            }
            take(start, count, .data)
        }
    }

    /// Chunks from that of the oldest checkpoint to that of the newest; then the successor.
    private func chunks(
        _ superblock: Superblock, from oldest: JournalPosition, to newest: JournalPosition
    ) throws -> [(serial: UInt64, header: ChunkHeader)] {
        var found: [(UInt64, ChunkHeader)] = []
        let page = AlignedBuffer(count: blockSize)
        var at = oldest.chunk
        var serial = oldest.serial
        while true {
            guard (try? device.read(at, into: page.bytes)) != nil, let header = ChunkHeader(page.bytes, at: at, id: superblock.id),
                header.position.serial == serial
            else { throw RepairFailure(.damaged, "journal chunk \(serial) at \(at) has no valid header") }
            found.append((serial, header))
            if serial == newest.serial { return found }
            guard serial < newest.serial else { throw RepairFailure(.damaged, "the journal's chunks are out of order") }
            at = header.successor
            serial += 1
        }
    }

    // MARK: building

    /// Writes the space state for `kept`, oldest first, of which the last is the newest checkpoint; and both slots. `clean`: the journal
    /// ends there. `cut`: what follows that position is not to be replayed.
    mutating func build(
        _ superblock: Superblock, newestSlot: Int, kept: [CheckpointItem], claims: BlockSet, clean: Bool, cut: JournalPosition? = nil
    ) throws -> Superblock {
        var items = kept
        items[0].deadList = BlockNumber(0)
        items[0].deadListCRC = 0
        items[0].deadEntries = 0
        items[0].deadBlocks = 0
        let newest = items[items.count - 1]
        let chunks = try chunks(superblock, from: items[0].journal, to: newest.journal)

        var used = Used(superblock.blockCount)
        used.take(0, Superblock.reservedBlocks, .space)
        used.take(superblock.blockCount - 1, 1, .space)
        for chunk in chunks { used.take(chunk.header.position.chunk.value, UInt64(superblock.chunkBlocks), .journal) }
        used.take(chunks.last!.header.successor.value, UInt64(superblock.chunkBlocks), .journal)
        try takeTree(newest, superblock, &used)
        for item in items where item.deadList.value != 0 {
            let list = try ListChain.readDead(item.deadList, crc: item.deadListCRC, id: superblock.id, device: device)
            for block in list.blocks { used.take(block.value, 1, .space) }
            for entry in list.entries {
                used.take(entry.start.value, UInt64(entry.count), entry.kind == DeadEntry.Kind.node.rawValue ? .node : .data)
            }
        }

        let map = SpaceMap.empty(blockCount: superblock.blockCount)
        for run in used.runs { try map.claim(BlockRun(start: BlockNumber(run.start), count: run.count), run.kind) }
        let space = Space(
            map: map, tree: Tree(cache: Space.makeCache(), device: device, kind: .space, id: superblock.id), device: device,
            id: superblock.id)
        space.chunkBlocks = UInt64(superblock.chunkBlocks)
        for item in items { item.store(try space.tree.put(Key(.checkpoint, item.sequence.value), count: CheckpointItem.size)) }
        for (serial, header) in chunks {
            ChunkItem(address: header.position.chunk, first: header.position.next, epoch: header.position.epoch)
                .store(try space.tree.put(Key(.chunk, serial), count: ChunkItem.size))
        }
        for (start, item) in Self.shares(used.further) { item.store(try space.tree.put(Key(.share, start), count: ShareItem.size)) }
        let lock = Lock()
        // The bitmaps are those of this moment (B2); what is taken from here on avoids the rest (B1).
        var frozen = space.freeze()
        let state: WrittenSpace
        do {
            try Self.claim(avoid, map)
            try Self.claim(claims, map)
            state = try space.write(newest, deadNodes: [], &frozen, lock: lock)
        } catch let error as Space.Failure {
            switch error {
            case .damaged(let text): throw RepairFailure(.damaged, text)
            case .device(let error): throw RepairFailure(.device, error.description)
            }
        }

        var next = superblock
        next.flags &= ~(Superblock.flagClean | Superblock.flagDamaged)
        if clean { next.flags |= Superblock.flagClean }
        next.horizon = items[0].sequence
        next.checkpoint = state.checkpoint
        next.spaceRoot = state.root
        next.spaceLevel = state.level
        next.pendingList = state.pendingList
        next.pendingCRC = state.pendingCRC
        next.historyBlocks = items.reduce(0) { $0 + $1.deadBlocks }
        if let cut { next.cut = cut }
        let page = AlignedBuffer(count: blockSize)
        for slot in [1 - newestSlot, newestSlot] {
            next.generation += 1
            next.store(page.bytes, slot: slot)
            try device.write(Superblock.slots[slot], page.bytes)
        }
        next.identity.store(page.bytes, slot: 2)
        try device.write(BlockNumber(superblock.blockCount - 1), page.bytes)
        return next
    }

    private func takeTree(_ item: CheckpointItem, _ superblock: Superblock, _ used: inout Used) throws {
        var damage: String?
        var collected = used
        let walk = NodeWalk(device: device, kind: .main, id: superblock.id, isCancelled: isCancelled)
        walk.claim = { reference, _ in
            guard reference.address.value < superblock.blockCount, !collected.all.contains(reference.address.value) else { return false }
            collected.take(reference.address.value, 1, .node)
            return true
        }
        walk.problem = { reference, problem in
            switch problem {
            case .damaged(let text), .order(let text): damage = damage ?? text
            }
        }
        walk.leaf = { page, range in
            for index in range {
                let key = NodeLayout.key(page, index)
                let value = NodeLayout.value(page, index)
                guard key.type == ItemType.extent.rawValue,
                    (try? ExtentItem.validate(value, key: key, blockCount: superblock.blockCount)) != nil
                else { continue }
                let extent = ExtentItem(value)
                // What is set aside is never shared; and, as it has no CRCs, a few bytes may claim a whole image, again and again.
                if extent.isUnwritten, collected.all.firstPresent(extent.start.value, UInt64(extent.blocks)) != nil {
                    damage = damage ?? "extent \(key): blocks that are used already are set aside"
                    continue
                }
                collected.takeData(extent.start.value, UInt64(extent.blocks))
            }
        }
        try walk.walk(item.root, level: item.rootLevel)
        if let damage { throw RepairFailure(.damaged, damage) }
        used = collected
    }

    /// Neighbours with the same count are one item.
    private static func shares(_ further: [UInt64: UInt32]) -> [(UInt64, ShareItem)] {
        var items: [(start: UInt64, item: ShareItem)] = []
        for (block, count) in further.sorted(by: { $0.key < $1.key }) {
            if let last = items.last, last.start + UInt64(last.item.count) == block, last.item.further == count {
                items[items.count - 1].item.count += 1
            } else {
                items.append((block, ShareItem(count: 1, further: count)))
            }
        }
        return items
    }

    /// Takes what of the set is free.
    private static func claim(_ set: BlockSet, _ map: SpaceMap) throws {
        for run in set.runs {
            for block in run.start.value..<run.end where !map.isUsed(BlockNumber(block)) {
                try map.claim(BlockRun(start: BlockNumber(block), count: 1), .data)
            }
        }
    }
}

extension BlockSet {
    /// The first block of the run that is in the set.
    func firstPresent(_ start: UInt64, _ length: UInt64) -> UInt64? {
        var block = start
        while block < start + length {
            // Pieces in which nothing is set are passed over whole.
            if words(region: Int(block / Self.pieceBlocks)) == nil {
                block = (block / Self.pieceBlocks + 1) * Self.pieceBlocks
                continue
            }
            if contains(block) { return block }
            block += 1
        }
        return nil
    }

    /// What is in the set, in order.
    var runs: [BlockRun] {
        var runs: [BlockRun] = []
        for region in 0..<Int((blockCount + Self.pieceBlocks - 1) / Self.pieceBlocks) {
            guard let words = words(region: region) else { continue }
            let first = UInt64(region) * Self.pieceBlocks
            for (index, word) in words.enumerated() where word != 0 {
                var rest = word
                while rest != 0 {
                    let from = rest.trailingZeroBitCount
                    let length = (~(rest >> UInt64(from))).trailingZeroBitCount
                    let start = first + UInt64(index) * 64 + UInt64(from)
                    if let last = runs.last, last.end == start { runs[runs.count - 1].count += UInt64(length) } else {
                        runs.append(BlockRun(start: BlockNumber(start), count: UInt64(length)))
                    }
                    rest = from + length >= 64 ? 0 : rest & (UInt64.max << UInt64(from + length))
                }
            }
        }
        return runs
    }
}
