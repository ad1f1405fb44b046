// SpaceCheck: the space tree and what it points to: bitmaps, checkpoints, chunks, the pending list. All of these are claimed before
// anything else, so that whatever shares a block with them is reported where it does.

import Device
import Format
import Memory

extension Checker {
    func checkSpace() throws(Cancelled) {
        _ = owned.insert(0, Superblock.reservedBlocks)
        _ = owned.insert(superblock.blockCount - 1, 1)
        try walkSpaceTree()
        checkRegions()
        checkCheckpointItems()
        checkChunkItems()
        try checkPendingList()
    }

    private func walkSpaceTree() throws(Cancelled) {
        let walk = NodeWalk(device: device, kind: .space, id: superblock.id, isCancelled: isCancelled)
        walk.claim = { [unowned self] reference, _ in claim(reference.address, 1, "a node of the space tree") }
        walk.problem = { [unowned self] reference, problem in
            ownersAreMissing = true
            switch problem {
            case .damaged(let text): found(.spaceNodeDamaged, text, block: reference.address)
            case .order(let text): found(.spaceNodeOrder, text, block: reference.address)
            }
        }
        walk.leaf = { [unowned self] page, range in
            for index in range { takeSpaceItem(NodeLayout.key(page, index), NodeLayout.value(page, index)) }
        }
        try walk.walk(superblock.spaceRoot, level: superblock.spaceLevel)
    }

    private func takeSpaceItem(_ key: Key, _ value: RawBytes) {
        func malformed() {
            found(.spaceItemMalformed, "item (\(key.high), \(key.low)) of \(value.count) bytes")
        }
        switch SpaceItemType(rawValue: UInt8(truncatingIfNeeded: key.high)) {
        case _ where key.high > 0xff: malformed()
        case .region:
            guard let item = RegionItem(value), value.slice(16, 8).isZero else { return malformed() }
            regions[key.low] = item
        case .checkpoint:
            guard value.count == CheckpointItem.size, value.slice(37, 3).isZero, value.slice(120, 8).isZero, value.slice(152, 40).isZero
            else { return malformed() }
            let item = CheckpointItem(value)
            // Far beyond what could be counted to, and safe to add to.
            guard key.low < 1 << 62 else { return malformed() }
            guard item.sequence.value == key.low else {
                return found(.checkpointItem, "the item of checkpoint \(key.low) is of sequence \(item.sequence)")
            }
            checkpoints.append(item)
        case .chunk:
            guard let item = ChunkItem(value), value.slice(24, 8).isZero else { return malformed() }
            chunks.append((key.low, item))
        case .share:
            guard let item = ShareItem(value) else { return malformed() }
            takeShare(key.low, item)
        case .cancellation, .tag, nil: malformed()
        }
    }

    // MARK: bitmaps

    private func checkRegions() {
        let count = UInt64(superblock.regions)
        for number in regions.keys.filter({ $0 >= count }).sorted() {
            found(.regionMissing, "region \(number) of \(count)")
            regions[number] = nil
        }
        for number in 0..<count {
            guard let item = regions[number] else {
                found(.regionMissing, "region \(number) has no bitmap")
                continue
            }
            // What it holds is compared at the very end, when all claims are known.
            if !claim(item.bitmap, 1, "the bitmap of region \(number)") { regions[number] = nil }
        }
    }

    // MARK: checkpoints

    private func checkCheckpointItems() {
        guard let newest = checkpoints.last, let oldest = checkpoints.first else {
            return found(.superblockContradiction, "the index names no checkpoint, the superblock \(superblock.checkpoint.sequence)")
        }
        if newest != superblock.checkpoint {
            found(
                .superblockContradiction,
                "the newest checkpoint in the index is that of sequence \(newest.sequence); the superblock's, \(superblock.checkpoint.sequence), differs")
        }
        if oldest.sequence != superblock.horizon {
            found(
                .superblockContradiction,
                "the oldest checkpoint in the index is that of sequence \(oldest.sequence), the horizon \(superblock.horizon)")
        }
        if oldest.deadList.value != 0 {
            found(.checkpointItem, "checkpoint \(oldest.sequence) is the oldest and still has a dead list")
        }
        var last: CheckpointItem?
        for item in checkpoints {
            func wrong(_ what: String) { found(.checkpointItem, "checkpoint \(item.sequence): \(what)") }
            if item.journal.next != item.sequence.next { wrong("the journal goes on with \(item.journal.next)") }
            if item.journal.block < 1 || item.journal.block > superblock.chunkBlocks { wrong("journal block \(item.journal.block)") }
            if item.rootLevel > NodeLayout.maximumLevel { wrong("root of level \(item.rootLevel)") }
            if item.root.birth > item.sequence { wrong("its root was born at \(item.root.birth)") }
            if (item.deadList.value == 0) != (item.deadEntries == 0) { wrong("\(item.deadEntries) dead entries in a list at \(item.deadList)") }
            if let last {
                if item.time < last.time { wrong("earlier than checkpoint \(last.sequence)") }
                if item.nextInode < last.nextInode { wrong("its next inode number is lower than that of checkpoint \(last.sequence)") }
                if item.journal.serial < last.journal.serial || item.journal.epoch < last.journal.epoch {
                    wrong("its journal position lies before that of checkpoint \(last.sequence)")
                }
            }
            last = item
        }
        report.checkpoints = checkpoints.count
        report.historyBlocks = checkpoints.reduce(0) { $0 &+ $1.deadBlocks }
        if report.historyBlocks != superblock.historyBlocks {
            found(.historyCount, "the superblock counts \(superblock.historyBlocks), the checkpoints \(report.historyBlocks)")
        }
    }

    // MARK: chunks

    private func checkChunkItems() {
        let size = UInt64(superblock.chunkBlocks)
        let all = chunks
        chunks = []
        for (serial, item) in all {
            guard item.address.value % size == 0 else {
                found(.chunkItem, "chunk \(serial) does not begin at a multiple of \(size)", block: item.address)
                continue
            }
            guard claim(item.address, size, "journal chunk \(serial)") else { continue }
            if let last = chunks.last, serial != last.serial + 1 {
                found(.chunkItem, "chunk \(serial) follows chunk \(last.serial)", block: item.address)
            }
            chunks.append((serial, item))
        }
        // Every retained checkpoint's position lies in a chunk that is there, and the newest one's in the last.
        let journal = superblock.checkpoint.journal
        if chunks.last?.serial != journal.serial || chunks.last?.item.address != journal.chunk {
            found(.chunkItem, "the journal stands in chunk \(journal.serial), which is not the last in the index", block: journal.chunk)
        }
        for item in checkpoints where !chunks.contains(where: { $0.serial == item.journal.serial && $0.item.address == item.journal.chunk }) {
            found(.chunkItem, "chunk \(item.journal.serial), where checkpoint \(item.sequence) goes on, is missing", block: item.journal.chunk)
        }
        if let oldest = checkpoints.first, let first = chunks.first, first.serial < oldest.journal.serial {
            found(.chunkItem, "chunk \(first.serial) lies before the horizon, which is in chunk \(oldest.journal.serial)", block: first.item.address)
        }
    }

    // MARK: lists

    private func checkPendingList() throws(Cancelled) {
        try readList(
            superblock.pendingList, crc: superblock.pendingCRC, itemSize: 16, magic: magicPending, damage: .pendingList,
            "the pending list"
        ) { item in
            let start = BlockNumber(item.u64(at: 0))
            let count = item.u64(at: 8)
            guard count > 0 else { return found(.pendingList, "an empty run", block: start) }
            _ = claim(start, count, "the pending list's entries")
        }
    }

    /// Reads a chain of list blocks, claiming each. Returns false when it is damaged.
    @discardableResult func readList(
        _ head: BlockNumber, crc: UInt32, itemSize: Int, magic: UInt32, damage: FindingCode, _ what: String,
        _ body: (RawBytes) -> Void
    ) throws(Cancelled) -> Bool {
        let buffer = AlignedBuffer(count: blockSize)
        var at = head
        var crc = crc
        while at.value != 0 {
            if isCancelled() { throw Cancelled() }
            // A claim succeeds once, so a list that runs in a circle ends.
            guard claim(at, 1, what) else { return false }
            do throws(DeviceError) { try device.read(at, into: buffer.bytes) } catch {
                ownersAreMissing = true
                found(damage, error.description, block: at)
                return false
            }
            do throws(FormatError) {
                let list = try ListBlock.validate(
                    buffer.bytes, magic: magic, itemSize: itemSize, address: at, crc: crc, id: superblock.id)
                for item in 0..<list.count { body(buffer.bytes.slice(ListBlock.header + item * itemSize, itemSize)) }
                at = list.next
                crc = list.nextCRC
            } catch {
                ownersAreMissing = true
                found(damage, error.description, block: at)
                return false
            }
        }
        return true
    }
}
