// Survey: what of an image can be built upon: which checkpoints have a whole tree, which dead lists can be read, from which
// checkpoint on the journal leads to the newest one without a gap, and what follows behind it.
//
//   C0 ───── C1 ─────── C2 ──────────── C3 ──── frames behind it
//   whole    whole      a node lost     whole
//      └ frames ┘ gap ┘ └── frames ───┘
//                         firstContinuous = 2
//
// Checkpoints are taken from the index (space tree), from both slots and, where the index is damaged, from whatever leaf of a space
// tree is found anywhere on the medium. A leaf that is out of date names trees whose nodes may have been written over since: their
// checksums tell.
//
// (S1) Nothing is believed that a checksum or the journal's chain does not vouch for.
// (S2) Headers of journal chunks that are lost are made anew in the overlay when the frame behind them says what they held.
// (S3) Memory: 24 bytes a node of all trees together, and a bit a block.

import Check
import Device
import Format
import Journal
import Memory
import Space

struct Candidate {
    var item: CheckpointItem
    /// All nodes of its tree are there, and the journal goes on where it says.
    var isWhole = true
    /// So is the list of what died before it.
    var listIsWhole = true
    /// The journal has a frame boundary where it goes on.
    var isMet = true
}

final class Survey {
    let device: OverlayDevice
    var superblock: Superblock
    private let isCancelled: () -> Bool
    private(set) var candidates: [Candidate] = []
    private(set) var firstContinuous = 0
    /// Where the frames behind the newest checkpoint end because of damage, and what it is.
    private(set) var tailDamage: (position: JournalPosition, text: String)?
    /// Behind the last frame that can be read.
    private(set) var end: JournalPosition?
    /// Where the journal is broken before the newest checkpoint.
    private(set) var gaps: [(after: SequenceNumber, text: String)] = []
    private(set) var mended: [String] = []
    private(set) var indexIsWhole = true
    private var chunks: [UInt64: BlockNumber] = [:]
    private var known: [UInt64: (sum: UInt32, isWhole: Bool)] = [:]
    private let page = AlignedBuffer(count: blockSize)
    private static let batch = 128
    private let leaves = AlignedBuffer(count: batch << blockShift)
    private let pickChunk: () -> BlockNumber?
    private let scan: () throws -> Scan

    var newest: Int { candidates.count - 1 }

    /// `scan` looks through all of the medium; it is asked only when the index is damaged. `pickChunk` gives blocks that nothing uses.
    init(
        _ device: OverlayDevice, _ superblock: Superblock, older: Superblock?, isCancelled: @escaping () -> Bool,
        scan: @escaping () throws -> Scan, pickChunk: @escaping () -> BlockNumber?
    ) throws {
        self.device = device
        self.superblock = superblock
        self.isCancelled = isCancelled
        self.pickChunk = pickChunk
        self.scan = scan
        try readIndex(older)
        try followJournal()
        try dropWhatGaveWay()
        for index in candidates.indices {
            if isCancelled() { throw Cancelled() }
            let item = candidates[index].item
            if !isWhole(item.root, item.rootLevel) { candidates[index].isWhole = false }
            // Where a checkpoint may be missing, what died before it would be taken for free.
            if index > 0 { candidates[index].listIsWhole = indexIsWhole }
            if index > 0 && indexIsWhole { candidates[index].listIsWhole = listIsWhole(item, since: candidates[index - 1].item.sequence) }
        }
        known = [:]
    }

    /// History that no checkpoint is found for.
    var missing: RepairLine? {
        let oldest = candidates[0].item.sequence
        let horizon = max(superblock.horizon, moved)
        guard oldest > horizon else { return nil }
        return RepairLine(
            "history is given up: past states from sequence \(horizon) to \(oldest.before) can no longer be opened:"
                + " their checkpoints are found nowhere",
            isLoss: true)
    }

    // MARK: the index

    private func readIndex(_ older: Superblock?) throws {
        var items: [UInt64: CheckpointItem] = [:]
        func take(_ item: CheckpointItem) {
            guard item.isPossible, item.isPlausible, isPlace(item.root.address), isPlace(item.journal.chunk),
                item.sequence <= superblock.checkpoint.sequence, item.sequence >= superblock.horizon,
                item.journal.block >= 1, item.journal.block <= superblock.chunkBlocks
            else { return }
            items[item.sequence.value] = item
        }
        if let older, older.id == superblock.id { take(older.checkpoint) }
        let walk = NodeWalk(device: device, kind: .space, id: superblock.id, isCancelled: isCancelled)
        var seen = Set<UInt64>()
        walk.claim = { reference, _ in seen.insert(reference.address.value).inserted }
        walk.problem = { [unowned self] _, _ in indexIsWhole = false }
        walk.leaf = { [unowned self] page, range in
            for index in range { takeItem(NodeLayout.key(page, index), NodeLayout.value(page, index), take) }
        }
        try walk.walk(superblock.spaceRoot, level: superblock.spaceLevel)
        if !indexIsWhole || items.isEmpty {
            indexIsWhole = false
            // What is found by chance gives way to what the index says.
            let scanned = try scan()
            for item in scanned.checkpoints where items[item.sequence.value] == nil { take(item) }
            if items[0] == nil, let first = scanned.firstCheckpoint(superblock) { take(first) }
            chunks.merge(scanned.chunks) { known, _ in known }
        }
        items[superblock.checkpoint.sequence.value] = superblock.checkpoint
        candidates = items.values.sorted { $0.sequence < $1.sequence }.map { Candidate(item: $0) }
    }

    private func takeItem(_ key: Key, _ value: RawBytes, _ take: (CheckpointItem) -> Void) {
        switch SpaceItemType(rawValue: UInt8(truncatingIfNeeded: key.high)) {
        case .checkpoint where value.count == CheckpointItem.size && CheckpointItem(value).sequence.value == key.low: take(CheckpointItem(value))
        case .chunk: if let item = ChunkItem(value), isPlace(item.address) { chunks[key.low] = item.address }
        default: break
        }
    }

    private func isPlace(_ block: BlockNumber) -> Bool {
        block.value >= Superblock.reservedBlocks && block.value < superblock.blockCount - 1
    }

    // MARK: trees

    private func isWhole(_ reference: ChildReference, _ level: UInt8) -> Bool {
        guard isPlace(reference.address), level <= NodeLayout.plausibleLevel else { return false }
        if let known = known[reference.address.value], known.sum == reference.crc { return known.isWhole }
        // Until the contrary is known, so that a circle ends.
        known[reference.address.value] = (reference.crc, false)
        guard (try? device.read(reference.address, into: page.bytes)) != nil,
            (try? NodeLayout.validate(page.bytes, kind: .main, id: superblock.id, expected: reference, level: level)) != nil
        else { return false }
        var whole = true
        if level > 0 {
            let children = (0..<NodeLayout.count(page.bytes)).map { ChildReference(NodeLayout.value(page.bytes, $0)) }
            if level == 1 { readLeaves(children) }
            for child in children where !isWhole(child, level - 1) { whole = false }
        }
        known[reference.address.value] = (reference.crc, whole)
        return whole
    }

    /// Leaves side by side are read at once.
    private func readLeaves(_ children: [ChildReference]) {
        let order = children.filter { isPlace($0.address) && known[$0.address.value]?.sum != $0.crc }.sorted { $0.address < $1.address }
        var first = 0
        while first < order.count {
            var end = first + 1
            while end < order.count, end - first < Self.batch, order[end].address.value == order[end - 1].address.value + 1 { end += 1 }
            let bytes = leaves.bytes.slice(0, (end - first) << blockShift)
            if end - first > 1, (try? device.read(order[first].address, into: bytes)) != nil {
                for index in first..<end {
                    let leaf = bytes.slice((index - first) << blockShift, blockSize)
                    let good = (try? NodeLayout.validate(leaf, kind: .main, id: superblock.id, expected: order[index], level: 0)) != nil
                    known[order[index].address.value] = (order[index].crc, good)
                }
            }
            first = end
        }
    }

    private func listIsWhole(_ item: CheckpointItem, since: SequenceNumber) -> Bool {
        guard item.deadList.value != 0 else { return item.deadEntries == 0 && item.deadBlocks == 0 }
        guard isPlace(item.deadList),
            let list = try? ListChain.readDead(item.deadList, crc: item.deadListCRC, id: superblock.id, device: device)
        else { return false }
        let sound = list.entries.allSatisfy {
            DeadEntry.Kind(rawValue: $0.kind) != nil && $0.birth <= $0.death && $0.death > since && $0.death <= item.sequence
                && $0.start.value >= Superblock.reservedBlocks && $0.start.value + UInt64($0.count) < superblock.blockCount
        }
        return sound && list.entries.count == Int(item.deadEntries)
            && list.entries.reduce(0) { $0 + UInt64($1.count) } == item.deadBlocks
    }

    // MARK: the journal

    private enum Course {
        case reached
        case broken(at: SequenceNumber, String)
        /// A header was made anew: try again.
        case again
    }

    private func followJournal() throws {
        var index = 0
        var patience = 2 * Int(superblock.blockCount / UInt64(superblock.chunkBlocks)) + 8
        firstContinuous = candidates.count
        while index < candidates.count {
            if isCancelled() { throw Cancelled() }
            switch follow(from: index) {
            case .reached:
                firstContinuous = index
                return
            case .again where patience > 0: patience -= 1
            case .again: index += 1
            case .broken(let at, let text):
                gaps.append((at.before, text))
                index = (index + 1..<candidates.count).first { candidates[$0].item.sequence >= at } ?? candidates.count
            }
        }
    }

    private func follow(from index: Int) -> Course {
        let start = candidates[index].item
        let target = superblock.checkpoint.sequence
        let reader: JournalReader
        do throws(JournalError) {
            reader = try JournalReader(
                device: device, id: superblock.id, chunkBlocks: superblock.chunkBlocks, from: start.journal, cut: superblock.cut)
        } catch {
            return mendHeader(start.journal.chunk, serial: start.journal.serial, behind: nil)
                ? .again : .broken(at: start.sequence.next, error.description)
        }
        var waiting = index
        func meet() {
            // Positions of checkpoints on the way have to be met exactly.
            while waiting < candidates.count, candidates[waiting].item.sequence < reader.position.next {
                if candidates[waiting].item.journal != reader.position {
                    candidates[waiting].isWhole = false
                    candidates[waiting].isMet = false
                }
                waiting += 1
            }
        }
        while true {
            meet()
            let before = reader.position
            do {
                guard let frame = try reader.next() else {
                    // Nothing follows: or the next chunk's header is lost.
                    if mendHeader(reader.successor, serial: reader.position.serial + 1, behind: reader.position) { return .again }
                    let next = reader.position.next
                    if next <= target { return .broken(at: next, "nothing follows sequence \(next.before)") }
                    end = reader.position
                    return .reached
                }
                try frame.forEachRecord(mapping: { $0 }) { (record) throws(FormatError) in
                    if record.type == .horizon, record.sequence > target { moved = max(moved, SequenceNumber(record.payload.u64(at: 0))) }
                }
            } catch {
                if mendHeader(reader.successor, serial: reader.position.serial + 1, behind: reader.position) { return .again }
                let text = (error as? JournalError)?.description ?? "\(error)"
                // Of a frame that was read, but holds no records, nothing counts.
                if before.next <= target { return .broken(at: before.next, text) }
                tailDamage = (before, text)
                end = before
                return .reached
            }
        }
    }

    /// To where a record behind the newest checkpoint has moved the horizon: what lies before may be written over already.
    private var moved = SequenceNumber(0)

    private func dropWhatGaveWay() throws {
        let dropped = candidates.prefix { $0.item.sequence < moved }.count
        guard dropped > 0, candidates.contains(where: { $0.item.sequence == moved }) else { return }
        candidates.removeFirst(dropped)
        firstContinuous = max(0, firstContinuous - dropped)
    }

    /// Makes a chunk's header from its first frame, if that is the one due and the header is not there (S2).
    private func mendHeader(_ chunk: BlockNumber, serial: UInt64, behind: JournalPosition?) -> Bool {
        let size = UInt64(superblock.chunkBlocks)
        guard chunk.value % size == 0, isPlace(chunk), chunk.value + size < superblock.blockCount else { return false }
        if (try? device.read(chunk, into: page.bytes)) != nil, let header = ChunkHeader(page.bytes, at: chunk, id: superblock.id) {
            if header.position.serial == serial { return false }
        }
        guard (try? device.read(chunk + 1, into: page.bytes)) != nil, let length = FrameHeader.length(page.bytes), length >> blockShift < Int(size)
        else { return false }
        let first = page.bytes
        let position = JournalPosition(
            chunk: chunk, serial: serial, block: 1, epoch: first.u64(at: 24), nonce: first.u64(at: 32), chain: first.u64(at: 88),
            next: SequenceNumber(first.u64(at: 56)))
        let frame = AlignedBuffer(count: length)
        guard position.epoch > 0, position.epoch <= superblock.epoch, (try? device.read(chunk + 1, into: frame.bytes)) != nil,
            case .success = FrameHeader.decode(frame.bytes, at: position, id: superblock.id)
        else { return false }
        var cut = JournalPosition(chunk: BlockNumber(0), serial: 0, block: 0, epoch: 0, nonce: 0, chain: 0, next: SequenceNumber(0))
        if let behind {
            guard position.next == behind.next, position.chain == behind.chain else { return false }
            if position.epoch != behind.epoch {
                guard position.epoch > behind.epoch else { return false }
                cut = behind
            } else {
                guard position.nonce == behind.nonce else { return false }
            }
        }
        guard let successor = chunks[serial + 1] ?? foundChunk(serial + 1) ?? pickChunk() else { return false }
        page.bytes.zero()
        ChunkHeader(position: position, successor: successor, cut: cut).store(page.bytes, id: superblock.id)
        guard (try? device.write(chunk, page.bytes)) != nil else { return false }
        mended.append("the header of journal chunk \(serial) has been made anew from the frame behind it")
        return true
    }

    private func foundChunk(_ serial: UInt64) -> BlockNumber? { (try? scan())?.chunks[serial] }

    // MARK: what a plan asks

    /// Every block that records behind a checkpoint, up to the end of what can be read, put to use; and their chunks.
    func claims(behind item: CheckpointItem) throws -> BlockSet {
        var set = BlockSet(blockCount: superblock.blockCount)
        func insert(_ start: BlockNumber, _ count: UInt64) {
            guard start.value < superblock.blockCount, count <= superblock.blockCount - start.value else { return }
            set.insert(start.value, count)
        }
        guard let reader = try? JournalReader(
            device: device, id: superblock.id, chunkBlocks: superblock.chunkBlocks, from: item.journal, cut: superblock.cut)
        else { return set }
        insert(reader.successor, UInt64(superblock.chunkBlocks))
        reader.onChunk = { [superblock] in
            insert($0.position.chunk, UInt64(superblock.chunkBlocks))
            insert($0.successor, UInt64(superblock.chunkBlocks))
        }
        while let frame = try? reader.next() {
            if isCancelled() { throw Cancelled() }
            try? frame.forEachRecord(mapping: { $0 }) { (record) throws(FormatError) in
                let content: ContentPayload?
                switch record.type {
                case .write, .truncate, .fallocate: content = ContentPayload(record.payload)
                default: content = nil
                }
                guard let content else { return }
                var at = ContentPayload.firstSegment
                for _ in 0..<content.segments {
                    guard let segment = Segment(content.bytes, at: at) else { return }
                    at = segment.next
                    if segment.kind != .hole { insert(segment.home, segment.blocks) }
                }
            }
        }
        return set
    }
}

extension SequenceNumber {
    /// The one before. A new filesystem's checkpoint is of 0, which has none before it and stays.
    var before: SequenceNumber { SequenceNumber(value > 0 ? value - 1 : 0) }
}
