// Scrubber: reads everything that an image's present and past need, once, and compares checksums. It asks nothing of structure (that is
// the Checker's to do), needs no lock, and writes nothing.
//
//   superblocks ─► space state ─► journal and the data that its records name ─► trees and their data, newest first
//
// Beside a writer. Nothing holds the writer back: a scrub may take hours, and history that is pinned for hours would fill the disk. A
// block that was freed and used again while it was on our list looks damaged; so every mismatch is confirmed:
//
// (B1) What a retained point S needs is not written over before a horizon record above S is durable (invariant 4). A mismatch in
//      what S needs is damage if the horizon, read after the mismatch was seen, is still no later than S; else it proves nothing, and
//      what only S needed is no longer of interest.
// (B2) Space state has no history: a mismatch is damage if the newest slot, read afterwards, is still the one that we came from.
// (B3) Of the last frame in the journal the data may still be under way, or have been lost in a crash with it (Replay, L2): they are looked at
//      only when another frame or a checkpoint follows, for that was written after the flush of both; or once a commit has been asked for.
//
// Each node and each data block is read once, whatever number of points share it. What begins to exist after the scrub has begun may be
// seen or not.

public import Device
public import Format
import Journal
import Memory
import Volume

/// Something that cannot be read or does not match its checksum.
public struct Damage: Sendable {
    public enum Kind: String, Sendable { case superblock, space, journal, node, data }
    public let kind: Kind
    /// Nil where no one block is to blame.
    public let block: BlockNumber?
    public let text: String
    public var inode: InodeNumber?
    public var path: [UInt8]?
    /// Of data: where in the file, and how many bytes from there on.
    public var offset: UInt64?
    public var length: UInt64 = 0
    /// The points that need it, from the first to the last; nil: the horizon, the present.
    public var first: SequenceNumber?
    public var last: SequenceNumber?
    public var firstTime: Timestamp?
    public var lastTime: Timestamp?
    /// Whether the two say anything: what has no history concerns the filesystem as a whole.
    public var hasPoints = true

    init(_ kind: Kind, _ block: BlockNumber?, _ text: String) {
        self.kind = kind
        self.block = block
        self.text = text
    }
}

public struct ScrubReport: Sendable {
    public internal(set) var superblock: Superblock
    public internal(set) var dataBlocks: UInt64 = 0
    public internal(set) var nodes: UInt64 = 0
    public internal(set) var frames: UInt64 = 0
    public internal(set) var checkpoints = 0
    public internal(set) var damages: UInt64 = 0
    /// Why not all could be verified: the writer was faster. Damage is something else.
    public internal(set) var unfinished: String?
}

public enum ScrubPhase: String, Sendable, CaseIterable { case space, journal, files }

public final class Scrubber {
    let device: any BlockDevice
    private let isWritten: () -> Bool
    /// Whether somebody writes, or did since we began: who has gone since may have moved things, too.
    private var hadWriter = false
    private let commit: () -> Bool
    private let progress: (ScrubPhase) -> Void
    private let onDamage: (Damage) -> Void
    private let isCancelled: () -> Bool

    private var report: ScrubReport
    private var superblock: Superblock
    /// Retained, oldest first.
    private var checkpoints: [CheckpointItem] = []
    private var seenNodes: BlockSet
    private var seenData: BlockSet
    private var replays = 0
    private var times: [SequenceNumber: Timestamp?] = [:]
    /// More damage is told without names and times.
    private static let detailLimit: UInt64 = 1000
    private var wantsDetail: Bool { report.damages < Self.detailLimit }

    /// How often what changes under us is looked at anew.
    private static let attempts = 20

    /// `hasWriter`: whether somebody may be writing to the image now. `commit`: makes all frames durable that can be seen now, if it can.
    public init(
        _ device: any BlockDevice, hasWriter: @escaping () -> Bool, commit: @escaping () -> Bool = { false }, onDamage: @escaping (Damage) -> Void,
        progress: @escaping (ScrubPhase) -> Void = { _ in }, isCancelled: @escaping () -> Bool = { false }
    ) throws(CheckError) {
        self.device = device
        isWritten = hasWriter
        self.commit = commit
        self.progress = progress
        self.onDamage = onDamage
        self.isCancelled = isCancelled
        superblock = try SlotState(device).newest
        report = ScrubReport(superblock: superblock)
        seenNodes = BlockSet(blockCount: superblock.blockCount)
        seenData = BlockSet(blockCount: superblock.blockCount)
    }

    /// Bytes that are to be read, about.
    public var expectedBytes: UInt64 {
        (superblock.checkpoint.dataBlocks &+ superblock.historyBlocks) << UInt64(blockShift) &+ superblock.checkpoint.inodes &* 512
    }

    public func run() throws(CheckError) -> ScrubReport {
        _ = hasWriter()
        do throws(Cancelled) {
            try scrubSlots()
            for attempt in 1... {
                if attempt > 1, let now = try? SlotState(device).newest { superblock = now }
                progress(.space)
                try scrubSpace()
                progress(.journal)
                try scrubJournal()
                progress(.files)
                // The newest tree of a little while ago: unless it was given up meanwhile, all that was there then has been read.
                if try scrubTrees() { break }
                guard attempt < Self.attempts else {
                    report.unfinished = "history was given up faster than it could be read"
                    break
                }
            }
        } catch { throw .cancelled }
        report.checkpoints = checkpoints.count
        report.superblock = superblock
        return report
    }

    private func hasWriter() -> Bool {
        hadWriter = hadWriter || isWritten()
        return hadWriter
    }

    private func found(_ damage: Damage) {
        report.damages += 1
        onDamage(damage)
    }

    // MARK: superblocks

    private func scrubSlots() throws(Cancelled) {
        var findings: [Finding] = []
        for _ in 0..<Self.attempts {
            if isCancelled() { throw Cancelled() }
            guard let state = try? SlotState(device) else { continue }
            superblock = state.newest
            findings = state.findings.filter { [.slotDamaged, .identityDamaged, .identityDiffers].contains($0.code) }
            // A slot being written may be seen in between.
            if findings.isEmpty || !hasWriter() { break }
        }
        for finding in findings {
            var damage = Damage(.superblock, finding.block, finding.text)
            damage.hasPoints = false
            found(damage)
        }
    }

    // MARK: the space state

    private func scrubSpace() throws(Cancelled) {
        for attempt in 1... {
            if isCancelled() { throw Cancelled() }
            let pass = SpacePass(device, superblock, isCancelled)
            try pass.run()
            // (B2)
            if !pass.damages.isEmpty, hasWriter(), let now = try? SlotState(device).newest, now.generation != superblock.generation {
                superblock = now
                if attempt < Self.attempts { continue }
                report.unfinished = "the space state changed faster than it could be read"
            } else {
                for damage in pass.damages { found(damage) }
            }
            report.nodes += pass.nodes
            checkpoints = pass.checkpoints.filter { $0.sequence >= superblock.horizon && $0.sequence <= superblock.checkpoint.sequence }
            // Without its index, what the superblock names itself.
            if checkpoints.last?.sequence != superblock.checkpoint.sequence { checkpoints.append(superblock.checkpoint) }
            deadLists = pass.dead
            return
        }
    }

    /// What died when, for naming the points that need a block; only read once there is damage.
    private var deadLists: [(item: CheckpointItem, entries: () -> [DeadEntry])] = []

    // MARK: points

    /// Whether the points up to `sequence` have been given up meanwhile (B1). To be asked after the mismatch was seen.
    private func isGivenUp(_ sequence: SequenceNumber) -> Bool {
        guard hasWriter() else { return false }
        for _ in 0..<Self.attempts {
            if let image = try? Image(device) { return image.horizon > sequence }
        }
        return false
    }

    /// When the record was committed, as far as the retained journal tells.
    private func time(of sequence: SequenceNumber) -> Timestamp? {
        if let known = times[sequence] { return known }
        let time = findTime(of: sequence)
        times[sequence] = time
        return time
    }

    private func findTime(of sequence: SequenceNumber) -> Timestamp? {
        if let item = checkpoints.first(where: { $0.sequence == sequence }) { return item.time }
        guard let start = checkpoints.last(where: { $0.sequence < sequence }),
            let reader = try? JournalReader(
                device: device, id: superblock.id, chunkBlocks: superblock.chunkBlocks, from: start.journal, cut: superblock.cut)
        else { return nil }
        while let frame = try? reader.next() { if frame.header.last >= sequence { return frame.header.time } }
        return nil
    }

    /// The points that need a block which is part of the tree at `item` and was born at `birth`.
    private func points(_ damage: inout Damage, _ item: CheckpointItem, birth: SequenceNumber) {
        if birth > checkpoints.first?.sequence ?? SequenceNumber(0) {
            damage.first = birth
            if wantsDetail { damage.firstTime = time(of: birth) }
        }
        if item.sequence == superblock.checkpoint.sequence { return }
        damage.last = item.sequence
        damage.lastTime = item.time
        guard wantsDetail, let block = damage.block?.value else { return }
        for list in deadLists where list.item.sequence > item.sequence {
            for entry in list.entries() where entry.start.value <= block && block - entry.start.value < UInt64(entry.count) && entry.death.value > 0 {
                let last = SequenceNumber(entry.death.value - 1)
                guard last >= item.sequence else { continue }
                damage.last = last
                damage.lastTime = time(of: last) ?? item.time
                return
            }
        }
    }

    // MARK: the journal

    private func scrubJournal() throws(Cancelled) {
        var from = 0
        while from < checkpoints.count {
            if isCancelled() { throw Cancelled() }
            var due = checkpoints[from].sequence.next
            let problem: String?
            var block: BlockNumber?
            do throws(JournalError) {
                let reader = try JournalReader(
                    device: device, id: superblock.id, chunkBlocks: superblock.chunkBlocks, from: checkpoints[from].journal,
                    cut: superblock.cut)
                block = reader.position.chunk + UInt64(reader.position.block)
                try follow(reader, &due, &block)
                problem = due <= superblock.checkpoint.sequence ? reader.end?.description ?? "nothing follows" : nil
            } catch { problem = error.description }
            if isCancelled() { throw Cancelled() }
            guard let problem else { return }
            if isGivenUp(checkpoints[from].sequence) {
                from += 1
                continue
            }
            let next = checkpoints.indices.first { $0 > from && checkpoints[$0].sequence >= due }
            var damage = Damage(.journal, block, problem)
            damage.first = due
            // No frame of theirs can be read: the times are those of the checkpoints on both sides.
            damage.firstTime = checkpoints.last { $0.sequence < due }?.time
            if let next {
                damage.last = checkpoints[next].sequence
                damage.lastTime = checkpoints[next].time
            }
            found(damage)
            guard let next else { return }
            from = next
        }
    }

    /// Every frame to the end of the journal. `due`: the first record that was not read.
    private func follow(_ reader: JournalReader, _ due: inout SequenceNumber, _ block: inout BlockNumber?) throws(JournalError) {
        let held = ByteBuffer(capacity: FrameHeader.maximumPayload)
        var heldHeader: FrameHeader?
        while !isCancelled() {
            block = reader.position.chunk + UInt64(reader.position.block)
            let outcome: Result<Frame?, JournalError>
            do throws(JournalError) { outcome = .success(try reader.next()) } catch { outcome = .failure(error) }
            if let header = heldHeader {
                heldHeader = nil
                var follows = header.last <= superblock.checkpoint.sequence  // (B3)
                if case .success(.some) = outcome { follows = true }
                if !follows, case .success(nil) = outcome { follows = commit() }
                if follows { try scrubRecords(Frame(header: header, payload: held.bytes, after: header.position)) }
            }
            guard let frame = try outcome.get() else { return }
            report.frames += 1
            due = frame.header.last.next
            held.truncate(to: 0)
            held.append(frame.payload)
            heldHeader = frame.header
        }
    }

    private func scrubRecords(_ frame: Frame) throws(JournalError) {
        try frame.forEachRecord(mapping: { JournalError.damaged($0.description) }) { (record) throws(JournalError) in
            guard !isCancelled(), [.write, .truncate, .fallocate].contains(record.type), let content = ContentPayload(record.payload)
            else { return }
            var at = ContentPayload.firstSegment
            for _ in 0..<content.segments {
                guard let segment = Segment(content.bytes, at: at) else { return }
                at = segment.next
                guard segment.kind == .run else { continue }
                verify(segment.home, segment.blocks, crcs: segment.data) { block, count, text in
                    guard !isGivenUp(SequenceNumber(record.sequence.value - 1)) else { return }
                    var damage = Damage(.data, block, "record \(record.sequence): \(text)")
                    damage.inode = content.inode
                    damage.offset = (segment.fileBlock + (block.value - segment.home.value)) << UInt64(blockShift)
                    damage.length = count << UInt64(blockShift)
                    damage.first = record.sequence
                    damage.firstTime = frame.header.time
                    // The nearest trees on both sides may know the file.
                    let after = checkpoints.first { $0.sequence >= record.sequence }
                    damage.path = path(of: content.inode, in: after ?? superblock.checkpoint) ?? replayedPath(of: content.inode, record.sequence)
                    if let after { narrow(&damage, block, content.inode, after) }
                    found(damage)
                }
            }
        }
    }

    /// Until when a block that a record of the interval up to `after` wrote was needed.
    private func narrow(_ damage: inout Damage, _ block: BlockNumber, _ inode: InodeNumber, _ after: CheckpointItem) {
        for list in deadLists where wantsDetail && list.item.sequence >= after.sequence {
            for entry in list.entries()
            where entry.start <= block && block.value - entry.start.value < UInt64(entry.count) && entry.death.value > 0
                && entry.birth <= after.sequence
            {
                damage.last = SequenceNumber(entry.death.value - 1)
                damage.lastTime = time(of: SequenceNumber(entry.death.value - 1))
                return
            }
        }
    }

    // MARK: data

    private static let batch: UInt64 = 256
    private let buffer = AlignedBuffer(count: Int(batch) << blockShift)

    /// Reads the blocks that were not read before, and says of each run that is not what it should be where it begins and why.
    private func verify(_ start: BlockNumber, _ count: UInt64, crcs: RawBytes, _ body: (BlockNumber, UInt64, String) -> Void) {
        guard start.value < superblock.blockCount, count <= superblock.blockCount - start.value else {
            return body(start, count, "outside of the image")
        }
        var at = start.value
        let end = start.value + count
        while at < end, !isCancelled() {
            guard let first = seenData.firstMissing(at, end - at) else { return }
            var stop = first + 1
            while stop < min(end, first + Self.batch) && !seenData.contains(stop) { stop += 1 }
            seenData.insert(first, stop - first)
            report.dataBlocks += stop - first
            verifyRun(first, stop - first, crcs.slice(Int(first - start.value) * 4, Int(stop - first) * 4), body)
            at = stop
        }
    }

    private func verifyRun(_ start: UInt64, _ count: UInt64, _ crcs: RawBytes, _ body: (BlockNumber, UInt64, String) -> Void) {
        let bytes = buffer.bytes.slice(0, Int(count) << blockShift)
        let isRead = (try? device.read(BlockNumber(start), into: bytes)) != nil
        var bad: (first: UInt64, count: UInt64, text: String)?
        for index in 0..<count {
            let page = bytes.slice(Int(index) << blockShift, blockSize)
            var problem: String?
            if !isRead {
                // One of them cannot be read: which?
                do throws(DeviceError) { try device.read(BlockNumber(start + index), into: page) } catch { problem = error.description }
            }
            if problem == nil {
                let sum = page.crc32c()
                let expected = crcs.u32(at: Int(index) * 4)
                if sum != expected { problem = "checksum \(hex(sum)), expected \(hex(expected))" }
            }
            if let problem {
                if bad != nil { bad!.count += 1 } else { bad = (start + index, 1, problem) }
            } else if let run = bad {
                body(BlockNumber(run.first), run.count, run.text)
                bad = nil
            }
        }
        if let run = bad { body(BlockNumber(run.first), run.count, run.text) }
    }

    // MARK: trees

    /// All retained trees, newest first. False when the newest was given up while it was read, and things are to be looked at anew.
    private func scrubTrees() throws(Cancelled) -> Bool {
        seenNodes = BlockSet(blockCount: superblock.blockCount)
        for item in checkpoints.reversed() {
            if try scrubTree(item) { continue }
            // Given up: older ones are as well.
            return item.sequence != superblock.checkpoint.sequence
        }
        return true
    }

    private func walk() -> NodeWalk { NodeWalk(device: device, kind: .main, id: superblock.id, isCancelled: isCancelled) }

    private func scrubTree(_ item: CheckpointItem) throws(Cancelled) -> Bool {
        let walk = walk()
        var isGone = false
        walk.claim = { [unowned self] reference, _ in
            let block = reference.address.value
            guard !isGone, block < superblock.blockCount else { return !isGone }
            return seenNodes.insert(block, 1) == nil
        }
        walk.problem = { [unowned self] reference, problem in
            guard !isGone, case .damaged(let text) = problem else { return }
            guard !isGivenUp(item.sequence) else {
                isGone = true
                return
            }
            var damage = Damage(.node, reference.address, text)
            points(&damage, item, birth: reference.birth)
            name(&damage, reference, item)
            found(damage)
        }
        walk.leaf = { [unowned self] page, range in
            for index in range {
                guard !isGone else { return }
                let key = NodeLayout.key(page, index)
                guard key.type == ItemType.extent.rawValue else { continue }
                scrubExtent(key, NodeLayout.value(page, index), item, &isGone)
            }
        }
        try walk.walk(item.root, level: item.rootLevel)
        report.nodes += walk.nodes
        return !isGone
    }

    private func scrubExtent(_ key: Key, _ value: RawBytes, _ item: CheckpointItem, _ isGone: inout Bool) {
        // A malformed one is in a node whose checksum holds: the checker's to report.
        guard (try? ExtentItem.validate(value, key: key, blockCount: superblock.blockCount)) != nil else { return }
        let extent = ExtentItem(value)
        guard !extent.isUnwritten else { return }
        var gone = isGone
        verify(extent.start, UInt64(extent.blocks), crcs: value.slice(ExtentItem.header, Int(extent.blocks) * 4)) { block, count, text in
            guard !gone else { return }
            guard !isGivenUp(item.sequence) else {
                gone = true
                return
            }
            var damage = Damage(.data, block, text)
            damage.inode = key.inode
            damage.offset = (key.low + (block.value - extent.start.value)) << UInt64(blockShift)
            damage.length = count << UInt64(blockShift)
            damage.path = path(of: key.inode, in: item)
            points(&damage, item, birth: extent.birth)
            found(damage)
        }
        isGone = gone
    }

    // MARK: names

    /// What lies in a node that cannot be read: the inodes from the key that leads to it to the one that leads past it.
    private func name(_ damage: inout Damage, _ reference: ChildReference, _ item: CheckpointItem) {
        guard wantsDetail else { return }
        guard reference != item.root else {
            damage.inode = .root
            damage.path = [0x2f]
            return
        }
        guard let bounds = bounds(of: reference, item.root, item.rootLevel, Key.first, Key.last, 0) else { return }
        damage.inode = bounds.lower.inode
        // An inode whose own item is lost may be named by an older tree.
        var number = max(bounds.lower.inode.value, 1)
        for _ in 0..<16 where number <= bounds.upper.inode.value {
            if let path = path(of: InodeNumber(number), in: item) {
                damage.inode = InodeNumber(number)
                damage.path = path
                return
            }
            number += 1
        }
    }

    private func bounds(
        of wanted: ChildReference, _ root: ChildReference, _ level: UInt8, _ lower: Key, _ upper: Key, _ visited: Int
    ) -> (lower: Key, upper: Key)? {
        guard level > 0, level <= NodeLayout.plausibleLevel, root.address.value < device.blockCount else { return nil }
        let buffer = AlignedBuffer(count: blockSize)
        defer { withExtendedLifetime(buffer) {} }
        let page = buffer.bytes
        guard (try? device.read(root.address, into: page)) != nil,
            (try? NodeLayout.validate(page, kind: .main, id: superblock.id, expected: root, level: level)) != nil
        else { return nil }
        let count = NodeLayout.count(page)
        for index in 0..<count {
            let child = ChildReference(NodeLayout.value(page, index))
            let from = index == 0 ? lower : NodeLayout.key(page, index)
            let to = index + 1 < count ? NodeLayout.key(page, index + 1) : upper
            if child == wanted { return (from, to) }
        }
        guard level > 1, visited < 24 else { return nil }
        for index in 0..<count {
            let from = index == 0 ? lower : NodeLayout.key(page, index)
            let to = index + 1 < count ? NodeLayout.key(page, index + 1) : upper
            if let found = bounds(of: wanted, ChildReference(NodeLayout.value(page, index)), level - 1, from, to, visited + 1) { return found }
        }
        return nil
    }

    /// Where the inode was in the tree at `item`, or in an older one, or in any.
    private func path(of inode: InodeNumber, in item: CheckpointItem) -> [UInt8]? {
        guard wantsDetail else { return nil }
        let older = checkpoints.filter { $0.sequence < item.sequence }.suffix(8).reversed()
        for tree in [item] + older + [superblock.checkpoint] { if let path = pathOnly(of: inode, in: tree) { return path } }
        return nil
    }

    /// As of just behind the record, for files that no tree knows yet or any more.
    private func replayedPath(of inode: InodeNumber, _ sequence: SequenceNumber) -> [UInt8]? {
        guard replays < Self.replayLimit else { return nil }
        replays += 1
        guard let start = checkpoints.last(where: { $0.sequence < sequence }),
            let reader = try? JournalReader(
                device: device, id: superblock.id, chunkBlocks: superblock.chunkBlocks, from: start.journal, cut: superblock.cut)
        else { return nil }
        // Without looking at data, as a Replay does at the journal's end: some of it is damaged.
        let view = View(checkpoint: start, superblock: superblock, device: device, cacheBytes: 16 << 20)
        while view.sequence < sequence, let frame = try? reader.next() {
            let applied: Void? = try? frame.forEachRecord(mapping: { ViewError.damaged($0.description) }) { (record) throws(ViewError) in
                guard record.sequence <= sequence else { return }
                try view.apply(record, .replay)
                view.freed.removeAll(keepingCapacity: true)
                view.shared.removeAll(keepingCapacity: true)
                view.trim()
            }
            guard applied != nil else { return nil }
        }
        return (try? view.path(inode)) ?? nil
    }
    /// Each may take a second.
    private static let replayLimit = 50

    private func pathOnly(of inode: InodeNumber, in item: CheckpointItem) -> [UInt8]? {
        if inode == .root { return [0x2f] }
        let walk = walk()
        var parts: [[UInt8]] = []
        var at = inode
        while at != .root {
            guard parts.count < 256, let bytes = walk.find(Key(at, .inode), root: item.root, level: item.rootLevel), bytes.count == InodeItem.size
            else { return nil }
            let found = bytes.withRawBytes { InodeItem($0) }
            guard found.parent != .none, found.parent.value < Limit.inode,
                let value = walk.find(Key(found.parent, .entry, found.parentEntry), root: item.root, level: item.rootLevel),
                let name = value.withRawBytes({ bytes in EntryItem(bytes).flatMap { $0.inode == at ? $0.name.array : nil } })
            else { return nil }
            parts.append(name)
            at = found.parent
        }
        return Array(parts.reversed().map { [0x2f] + $0 }.joined())
    }
}

/// One look at the space state that a superblock names: its tree, the bitmaps, the lists.
private final class SpacePass {
    private let device: any BlockDevice
    private let superblock: Superblock
    private let isCancelled: () -> Bool
    var damages: [Damage] = []
    var nodes: UInt64 = 0
    var checkpoints: [CheckpointItem] = []
    var dead: [(item: CheckpointItem, entries: () -> [DeadEntry])] = []
    private var regions: [(number: UInt64, item: RegionItem)] = []
    private var seen: BlockSet

    init(_ device: any BlockDevice, _ superblock: Superblock, _ isCancelled: @escaping () -> Bool) {
        self.device = device
        self.superblock = superblock
        self.isCancelled = isCancelled
        seen = BlockSet(blockCount: superblock.blockCount)
    }

    /// More of them tell nothing more.
    private static let limit = 1000

    private func found(_ block: BlockNumber, _ text: String) {
        guard damages.count < Self.limit else { return }
        var damage = Damage(.space, block, text)
        damage.hasPoints = false
        damages.append(damage)
    }

    func run() throws(Cancelled) {
        let walk = NodeWalk(device: device, kind: .space, id: superblock.id, isCancelled: isCancelled)
        walk.claim = { [unowned self] reference, _ in
            reference.address.value >= superblock.blockCount || seen.insert(reference.address.value, 1) == nil
        }
        walk.problem = { [unowned self] reference, problem in if case .damaged(let text) = problem { found(reference.address, text) } }
        walk.leaf = { [unowned self] page, range in
            for index in range { take(NodeLayout.key(page, index), NodeLayout.value(page, index)) }
        }
        try walk.walk(superblock.spaceRoot, level: superblock.spaceLevel)
        nodes = walk.nodes
        let page = AlignedBuffer(count: blockSize)
        for (number, item) in regions {
            if isCancelled() { throw Cancelled() }
            do throws(DeviceError) {
                try device.read(item.bitmap, into: page.bytes)
                do throws(FormatError) { try Region.validate(page.bytes, region: number, item: item, id: superblock.id, blockCount: superblock.blockCount) } catch {
                    found(item.bitmap, error.description)
                }
            } catch { found(item.bitmap, "bitmap of region \(number): \(error.description)") }
        }
        try readList(superblock.pendingList, superblock.pendingCRC, itemSize: 16, magic: magicPending, "the pending list")
        for item in checkpoints where item.deadList.value != 0 {
            try readList(
                item.deadList, item.deadListCRC, itemSize: DeadEntry.size, magic: magicDeadList, "the dead list of checkpoint \(item.sequence)")
            let (device, id) = (device, superblock.id)
            dead.append((item, { Self.entries(item, device, id) }))
        }
    }

    private func take(_ key: Key, _ value: RawBytes) {
        guard key.high <= 0xff else { return }
        switch SpaceItemType(rawValue: UInt8(key.high)) {
        case .region:
            if let item = RegionItem(value), key.low < UInt64(superblock.regions) { regions.append((key.low, item)) }
        case .checkpoint:
            guard value.count == CheckpointItem.size else { return }
            let item = CheckpointItem(value)
            if item.isPlausible, item.isPossible, item.sequence.value == key.low { checkpoints.append(item) }
        default: break
        }
    }

    /// Every block of a chain, each vouching for the next.
    private func readList(_ head: BlockNumber, _ crc: UInt32, itemSize: Int, magic: UInt32, _ what: String) throws(Cancelled) {
        let buffer = AlignedBuffer(count: blockSize)
        var at = head
        var crc = crc
        while at.value != 0 {
            if isCancelled() { throw Cancelled() }
            guard at.value < superblock.blockCount, seen.insert(at.value, 1) == nil else { return }
            do throws(DeviceError) { try device.read(at, into: buffer.bytes) } catch {
                return found(at, "\(what): \(error.description)")
            }
            do throws(FormatError) {
                let list = try ListBlock.validate(buffer.bytes, magic: magic, itemSize: itemSize, address: at, crc: crc, id: superblock.id)
                at = list.next
                crc = list.nextCRC
            } catch { return found(at, "\(what): \(error.description)") }
        }
    }

    private static func entries(_ item: CheckpointItem, _ device: any BlockDevice, _ id: FilesystemID) -> [DeadEntry] {
        var result: [DeadEntry] = []
        let buffer = AlignedBuffer(count: blockSize)
        var (at, crc) = (item.deadList, item.deadListCRC)
        // As many blocks as there are said to be entries, at most.
        for _ in 0...item.deadEntries where at.value != 0 && at.value < device.blockCount {
            guard (try? device.read(at, into: buffer.bytes)) != nil,
                let list = try? ListBlock.validate(
                    buffer.bytes, magic: magicDeadList, itemSize: DeadEntry.size, address: at, crc: crc, id: id)
            else { break }
            for index in 0..<list.count {
                result.append(DeadEntry(buffer.bytes.slice(ListBlock.header + index * DeadEntry.size, DeadEntry.size)))
            }
            (at, crc) = (list.next, list.nextCRC)
        }
        return result
    }
}
