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
    let isWritten: () -> Bool
    /// Whether somebody writes, or did since we began: who has gone since may have moved things, too.
    var hadWriter = false
    let commit: () -> Bool
    let progress: (ScrubPhase) -> Void
    let onDamage: (Damage) -> Void
    let isCancelled: () -> Bool

    var report: ScrubReport
    var superblock: Superblock
    /// Retained, oldest first.
    var checkpoints: [CheckpointItem] = []
    var seenNodes: BlockSet
    var seenData: BlockSet
    var replays = 0
    var times: [SequenceNumber: Timestamp?] = [:]
    /// More damage is told without names and times.
    static let detailLimit: UInt64 = 1000
    var wantsDetail: Bool { report.damages < Self.detailLimit }

    /// How often what changes under us is looked at anew.
    static let attempts = 20

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

    func found(_ damage: Damage) {
        report.damages += 1
        onDamage(damage)
    }

    // MARK: superblocks

    func scrubSlots() throws(Cancelled) {
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

    func scrubSpace() throws(Cancelled) {
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
    var deadLists: [(item: CheckpointItem, entries: () -> [DeadEntry])] = []

    // MARK: points

    /// Whether the points up to `sequence` have been given up meanwhile (B1). To be asked after the mismatch was seen.
    func isGivenUp(_ sequence: SequenceNumber) -> Bool {
        guard hasWriter() else { return false }
        for _ in 0..<Self.attempts {
            if let image = try? Image(device) { return image.horizon > sequence }
        }
        return false
    }

    /// When the record was committed, as far as the retained journal tells.
    func time(of sequence: SequenceNumber) -> Timestamp? {
        if let known = times[sequence] { return known }
        let time = findTime(of: sequence)
        times[sequence] = time
        return time
    }

    func findTime(of sequence: SequenceNumber) -> Timestamp? {
        if let item = checkpoints.first(where: { $0.sequence == sequence }) { return item.time }
        guard let start = checkpoints.last(where: { $0.sequence < sequence }),
            let reader = try? JournalReader(
                device: device, id: superblock.id, chunkBlocks: superblock.chunkBlocks, from: start.journal, cut: superblock.cut)
        else { return nil }
        while let frame = try? reader.next() { if frame.header.last >= sequence { return frame.header.time } }
        return nil
    }

    /// The points that need a block which is part of the tree at `item` and was born at `birth`.
    func points(_ damage: inout Damage, _ item: CheckpointItem, birth: SequenceNumber) {
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

    // MARK: data (ScrubFiles)

    static let batch: UInt64 = 256
    let buffer = AlignedBuffer(count: Int(batch) << blockShift)
}
