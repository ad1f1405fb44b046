// Checker: reads everything that an image's newest checkpoint and its history consist of, and says what contradicts what.
//
//   superblocks ─► space state ─► journal ─► files ─► names ─► history ─► blocks
//                  claims…        claims…    claims…           claims…    every claim against the bitmaps
//
// It shares with Volume the format and, through the recovery that comes before it, apply (invariant 15): how trees are walked,
// counts kept and blocks accounted for is written here once more.
//
// It looks at the state of the newest valid slot's checkpoint. What lies behind that in the journal has to be replayed before: by
// a Volume on the device itself or on an OverlayDevice.
//
// (C1) Nothing is written.
// (C2) Each block is claimed for exactly one purpose. A second claim is a finding (or, of past trees, the sharing that is due;
//      or that of a shared block, which as many extents have to claim as its share item says).
// (C3) Memory: a bit a block in use for each of six sets, 40 bytes an inode, 24 bytes an entry up to `entryLimit`, 4 bytes a
//      shared block.
// (C4) Whatever the image holds, the walk ends: a node is entered once, a list block read once, a chunk walked once.

public import Device
public import Format
import Memory

public struct CheckOptions: Sendable {
    /// Read every live data block and compare checksums.
    public var verifyData = false
    public init() {}
}

public enum CheckError: Error, Sendable {
    /// No Daybook superblock that could be used; the text says what is there.
    case unusable(String, Unusable)
    case device(DeviceError)
    case cancelled
}

/// Why an image cannot be used as it is.
public enum Unusable: Sendable {
    /// Something else, or of another version.
    case other
    /// A Daybook filesystem neither of whose slots is valid.
    case slotsLost
    /// A Daybook filesystem, part of which is not there at all.
    case truncated
}

public enum CheckPhase: Int, Sendable, CaseIterable {
    case space = 1, journal, files, names, history, blocks
    public var name: String { "\(self)" }
}

/// Blocks that belong to nothing.
public struct Leak: Sendable, Equatable {
    public let start: BlockNumber
    public let count: UInt64
}

public struct CheckReport: Sendable {
    /// In order of discovery, at most `Checker.findingLimit` of a kind.
    public internal(set) var findings: [Finding] = []
    /// How many there are of each kind.
    public internal(set) var counts: [FindingCode: UInt64] = [:]
    public internal(set) var leaks: [Leak] = []
    public internal(set) var superblock: Superblock
    public internal(set) var inodes: UInt64 = 0
    public internal(set) var directories: UInt64 = 0
    public internal(set) var dataBlocks: UInt64 = 0
    public internal(set) var historyBlocks: UInt64 = 0
    public internal(set) var usedBlocks: UInt64 = 0
    public internal(set) var checkpoints = 0
    public internal(set) var frames: UInt64 = 0
    public internal(set) var records: UInt64 = 0

    public var isClean: Bool { counts.isEmpty }
}

public final class Checker {
    /// Findings of one kind that are kept with their text.
    public static let findingLimit: UInt64 = 20
    /// Entries that are remembered; a filesystem with more is walked twice.
    static let entryLimit = 3_000_000

    let device: any BlockDevice
    let options: CheckOptions
    let progress: (CheckPhase, Double) -> Void
    let isCancelled: () -> Bool

    let slots: SlotState
    var superblock: Superblock { slots.newest }
    var report: CheckReport

    // Claims (C2).
    package internal(set) var owned: BlockSet
    /// Nodes of the present tree, its data, what dead lists name, by kind.
    var liveNodes: BlockSet
    var liveData: BlockSet
    var deadNodes: BlockSet
    var deadData: BlockSet
    /// Nodes of past trees that have been seen.
    var pastNodes: BlockSet

    // What the space tree says.
    var regions: [UInt64: RegionItem] = [:]
    var checkpoints: [CheckpointItem] = []
    var chunks: [(serial: UInt64, item: ChunkItem)] = []

    var shares: [ShareClaim] = []
    var shareCounts = ShareCounts()

    // What the tree says.
    var inodes = InodeTable()
    /// Orphan items, and whether an inode accounts for each.
    var orphans: [UInt64: Bool] = [:]
    var remembered: [RememberedName] = []
    var namesOverflow = false
    /// No node or item was lost to damage.
    var treeIsComplete = true
    /// Something that may own blocks could not be read: what belongs to nothing cannot be told.
    var ownersAreMissing = false

    /// `progress` is told of each phase and how much of it is done.
    public init(
        _ device: any BlockDevice, options: CheckOptions = CheckOptions(),
        progress: @escaping (CheckPhase, Double) -> Void = { _, _ in }, isCancelled: @escaping () -> Bool = { false }
    ) throws(CheckError) {
        self.device = device
        self.options = options
        self.progress = progress
        self.isCancelled = isCancelled
        slots = try SlotState(device)
        report = CheckReport(superblock: slots.newest)
        let blocks = slots.newest.blockCount
        owned = BlockSet(blockCount: blocks)
        liveNodes = BlockSet(blockCount: blocks)
        liveData = BlockSet(blockCount: blocks)
        deadNodes = BlockSet(blockCount: blocks)
        deadData = BlockSet(blockCount: blocks)
        pastNodes = BlockSet(blockCount: blocks)
    }

    public func run() throws(CheckError) -> CheckReport {
        for finding in slots.findings { found(finding) }
        do throws(Cancelled) {
            progress(.space, 0)
            try checkSpace()
            progress(.journal, 0)
            try checkJournal()
            progress(.files, 0)
            try checkFiles()
            progress(.names, 0)
            try checkNames()
            progress(.history, 0)
            try checkHistory()
            progress(.blocks, 0)
            try checkBlocks()
            progress(.blocks, 1)
        } catch { throw .cancelled }
        report.usedBlocks = owned.count
        return report
    }

    // MARK: findings

    func found(_ finding: Finding) {
        let before = report.counts[finding.code] ?? 0
        report.counts[finding.code] = before + 1
        if before < Self.findingLimit { report.findings.append(finding) }
    }

    func found(_ code: FindingCode, _ text: @autoclosure () -> String, block: BlockNumber? = nil, inode: UInt64? = nil) {
        // Thousands of a kind need neither text nor path.
        guard report.counts[code] ?? 0 < Self.findingLimit else {
            report.counts[code]! += 1
            return
        }
        found(Finding(
            code, text(), block: block, inode: inode.map { InodeNumber($0) }, path: inode.flatMap { path(of: $0) }))
    }

    // MARK: claims

    /// Whether the run can be used at all; else E604.
    func isInside(_ start: BlockNumber, _ count: UInt64, _ what: @autoclosure () -> String, inode: UInt64? = nil) -> Bool {
        if start.value >= Superblock.reservedBlocks, start.value < superblock.blockCount - 1,
            count <= superblock.blockCount - 1 - start.value
        { return true }
        found(.blockOutside, "\(what()) lies outside of the image or in its reserved blocks", block: start, inode: inode)
        return false
    }

    /// Claims a run for one purpose; false when some of it has an owner already, or it lies outside.
    func claim(_ start: BlockNumber, _ count: UInt64, _ what: @autoclosure () -> String, inode: UInt64? = nil) -> Bool {
        guard isInside(start, count, what(), inode: inode) else { return false }
        guard let taken = owned.insert(start.value, count) else { return true }
        let other = owner(of: taken)
        found(.blockShared, "used by \(what()), and also by \(other)", block: BlockNumber(taken), inode: inode)
        return false
    }

    func owner(of block: UInt64) -> String {
        if liveNodes.contains(block) { return "a node of the tree" }
        if liveData.contains(block) { return "file data" }
        if deadNodes.contains(block) || deadData.contains(block) { return "history" }
        if let chunk = chunks.first(where: { $0.item.address.value <= block && block < $0.item.address.value + UInt64(superblock.chunkBlocks) }) {
            return "journal chunk \(chunk.serial)"
        }
        return "the space state"
    }
}
