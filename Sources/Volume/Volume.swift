// Volume: the live filesystem. Operations check and decide, append a record, apply it to the live view; commits and
// checkpoints follow behind.
//
//   operation ──► record ──► apply ──► reply              (lock held, no device I/O)
//                   │
//                   ├── commit:      data, frame, flush                         Commit.swift
//                   ├── checkpoint:  nodes, posted data, space state, slot      Checkpointer.swift
//                   └── horizon:     history gives way                          Housekeeping.swift
//
// One lock guards the view, the space map, the journal's pending frame and the tables below; it is not held across device
// I/O (invariant 13), with one exception: a node that `apply` turns out to need although the operation's own look-ups
// did not bring it in is read under the lock, because a half-applied record cannot be abandoned.
//
// Threads: those of the caller (operations, fsync), `writer` (data write-back and the commit timer), `checkpointer`.

public import Device
public import Format
import Journal
import Memory
import Space
import Tree

public final class Volume: @unchecked Sendable {
    let lock = Lock()
    public let device: any BlockDevice
    let view: View
    let space: Space?
    let journal: JournalWriter?
    let options: OpenOptions
    let clock: @Sendable () -> Timestamp
    let onEvent: @Sendable (VolumeEvent) -> Void
    /// Asked before history up to a checkpoint is given up; false while a reader in another process needs it.
    let mayMoveHorizon: @Sendable (SequenceNumber) -> Bool
    /// Whether who asks may leave sgid on a file of the group: he is in it, or has root's right to. Requests name but one group of
    /// many; the adapter, which can ask for the others, sets this before the first operation.
    public var keepsSetGroup: @Sendable (Caller, UInt32) -> Bool = { caller, group in caller.uid == 0 || caller.gid == group }
    public let limits: VolumeLimits

    // Everything below is guarded by `lock`.

    /// Why the volume is read-only for good.
    var failureText: String?
    /// The same, and since when.
    var failed: VolumeFailure?
    /// The newest slot as written, and which it is.
    var superblock: Superblock
    var newestSlot: Int
    /// Checkpoint of the slot that will be overwritten next: the horizon may not pass it (invariant 5).
    var olderCheckpoint: SequenceNumber
    var horizon: SequenceNumber

    /// The option `acl`, with a kernel that knows of it.
    var usesAccessControlLists: Bool

    /// References that the kernel holds to inodes.
    var references = ReferenceCounts()
    /// Inodes without names, and files being trimmed.
    var orphans: Set<UInt64> = []
    var reclaimable: [UInt64] = []
    /// Files with extents beyond their end that are still to be freed, and perhaps others of `orphans`. A file may not grow before: what
    /// was cut off would be read again.
    var trimming: Set<UInt64> = []

    /// Frames sealed and not yet durable.
    var sealed: [SealedFrame] = []
    /// Last record that a flush covers.
    var durable: SequenceNumber
    var committing = false
    /// Batches of data write-back, by the writer thread alone, so that they end in the order in which they begin.
    var dataWritesBegun: UInt64 = 0
    var dataWritesEnded: UInt64 = 0
    /// Data blocks written or waiting since the last flush.
    var unflushedBlocks = 0
    var commitWanted = false
    var writeBackWanted = false

    var checkpointWanted = false
    var checkpointForced = false
    var recordsSinceCheckpoint = 0
    /// Opened by `openAlone`: there are no threads to wait for.
    var isAlone = false
    /// Blocks that somebody waits for.
    var roomWanted = 0
    /// No more room can be made until something is deleted: set by the checkpointer.
    var roomExhausted = false
    /// When that was found.
    var exhaustedSince: Int64 = 0
    /// Going below the low-water mark asks for nothing until the next checkpoint: there was nothing to give up.
    var roomQuiet = false
    /// Chunks taken and zeroed ahead of use.
    var spareChunks: [BlockNumber] = []

    var accessTimesPaused = false
    var stopping = false
    var threads: [Thread] = []
    var readPlans: [ReadPlan] = []
    var writePlans: [WritePlan] = []
    let zeroPage = AlignedBuffer(count: blockSize)

    /// One line on what recovery did when the volume was opened.
    public internal(set) var recoveryReport: String?
    public internal(set) var recovery: ReplayResult?

    init(
        device: any BlockDevice, view: View, space: Space?, journal: JournalWriter?, superblock: Superblock, newestSlot: Int,
        olderCheckpoint: SequenceNumber, horizon: SequenceNumber, options: OpenOptions,
        clock: @escaping @Sendable () -> Timestamp, mayMoveHorizon: @escaping @Sendable (SequenceNumber) -> Bool,
        onEvent: @escaping @Sendable (VolumeEvent) -> Void
    ) {
        self.device = device
        self.view = view
        self.space = space
        self.journal = journal
        self.superblock = superblock
        self.newestSlot = newestSlot
        self.olderCheckpoint = olderCheckpoint
        self.horizon = horizon
        self.options = options
        self.clock = clock
        self.mayMoveHorizon = mayMoveHorizon
        self.onEvent = onEvent
        limits = VolumeLimits(
            blockCount: superblock.blockCount, chunkBlocks: superblock.chunkBlocks, cacheBytes: options.cacheBytes)
        durable = view.sequence
        usesAccessControlLists = options.accessControlLists
        view.tree.mayRead = false
    }

    public var id: FilesystemID { superblock.id }
    public var label: String { superblock.label }
    public var isReadOnly: Bool { journal == nil || failure != nil }
    /// Why the volume turned read-only, if it did.
    public var failure: String? { lock.withLock { failureText } }
    /// Nothing is to be written but what is asked for.
    public func pauseAccessTimes(_ paused: Bool) { lock.withLock { accessTimesPaused = paused } }
    /// Last record applied.
    public var sequence: SequenceNumber { lock.withLock { view.sequence } }

    /// Last record that is durable.
    public var committedSequence: SequenceNumber { lock.withLock { journal == nil ? view.sequence : durable } }

    /// Why and since when the volume is read-only, if it turned so.
    public var failureDetails: VolumeFailure? { lock.withLock { failed } }

    /// Ends all writing (invariant 2). With the lock held. What is in memory stays there and can be read: dirty and unposted pages, and
    /// nodes, are no less pinned than before, and what was written and not flushed is from now on.
    func fail(_ why: String) {
        guard failureText == nil else { return }
        failureText = why
        let failure = VolumeFailure(cause: why, time: now(), durable: durable)
        failed = failure
        view.pages.keepUnflushed()
        onEvent(.failure("the filesystem is now read-only, and certain to be on the medium up to sequence \(durable): \(why)"))
        lock.broadcast()
    }

    /// Blocks in use, for `statfs`. What was deleted counts as free at once, though it is reclaimed a moment later: whoever makes
    /// room looks right after.
    public func statistics() -> Statistics {
        let deleted = (try? operate { () throws(ViewError) in try blocksToReclaim() }) ?? 0
        return lock.withLock {
            var result = Statistics()
            result.blocks = superblock.blockCount
            if let space {
                // What is shared is not free once one extent lets go of it.
                let someIsShared = space.hasShares || !view.shared.isEmpty
                let pendingDead = someIsShared ? 0 : view.freed.reduce(deleted + space.settlingBlocks) { $0 + UInt64($1.count) }
                let free = UInt64(space.free) + space.historyBlocks + pendingDead
                result.free = min(free, result.blocks)
                result.available = result.free > UInt64(limits.reserve) ? result.free - UInt64(limits.reserve) : 0
            } else {
                result.free = result.blocks - min(result.blocks, view.dataBlocks)
                result.available = 0
            }
            result.inodes = view.inodes &+ result.free
            result.freeInodes = result.free
            return result
        }
    }
}

/// Why a volume has turned read-only.
public struct VolumeFailure: Sendable, Equatable {
    public let cause: String
    public let time: Timestamp
    /// Last record that is certain to be on the medium.
    public let durable: SequenceNumber

    public init(cause: String, time: Timestamp, durable: SequenceNumber) {
        self.cause = cause
        self.time = time
        self.durable = durable
    }

    /// What the root directory tells of it under this name (getxattr(2)), which no listing shows: time, sequence, cause. Absent (ENODATA)
    /// while all is well.
    public static let attribute = "system.daybook.failure"
    static let attributeBytes = Array(attribute.utf8)

    var encoded: [UInt8] { Array("\(time.nanoseconds) \(durable) \(cause)".utf8) }

    /// From the attribute's value.
    public init?(_ value: [UInt8]) {
        let words = String(decoding: value, as: UTF8.self).split(separator: " ", maxSplits: 2)
        guard words.count == 3, let time = Int64(words[0]), let durable = UInt64(words[1]) else { return nil }
        self.init(cause: String(words[2]), time: Timestamp(nanoseconds: time), durable: SequenceNumber(durable))
    }
}

/// Bounds, scaled to the image (invariant 14 and DESIGN.md, "Reserve").
public struct VolumeLimits: Sendable {
    /// Dirty tree nodes that trigger a checkpoint; operations wait at twice as many.
    public let dirtyNodes: Int
    /// Unposted blocks that trigger one.
    public let unposted: Int
    /// Records that trigger one: what a view replays at most, within its second.
    public let records: Int
    /// Dead entries and clones that trigger one: it has to find room for their list. Operations wait at twice as many.
    public let deadEntries: Int
    /// Blocks that one takes at most for bitmaps, the nodes of the space tree that name them, and the pending list.
    public let spaceState: Int
    /// Nodes of the space tree that hold share counts, at most.
    public let shareNodes: Int
    /// Dirty data pages at which writers wait.
    public let dirtyPages: Int
    /// Blocks never lent to operations.
    public let reserve: Int
    /// Free blocks below which history begins to give way.
    public let lowWater: Int
    /// Chunks taken ahead, one of them for housekeeping.
    public let spareChunks = 3
    /// Dead entries in a block.
    static let deadListItems = ListBlock.capacity(itemSize: DeadEntry.size)

    init(blockCount: UInt64, chunkBlocks: UInt32, cacheBytes: Int) {
        let blocks = Int(clamping: blockCount)
        dirtyNodes = max(128, min(4096, blocks / 128, cacheBytes / blockSize / 4))
        unposted = max(64, min(4096, blocks / 128, cacheBytes / blockSize / 8))
        records = 60_000
        deadEntries = max(4096, min(65_536, blocks / 8))
        dirtyPages = max(512, min(8192, cacheBytes / blockSize / 2))
        shareNodes = blocks / 32 + 8
        let regions = blocks / Region.blocks + 1
        spaceState = 128 + regions + regions / 16
        reserve = 2 * dirtyNodes + 3 * Int(chunkBlocks) + spaceState + 2 * (deadEntries + dirtyNodes) / Self.deadListItems + 128
        lowWater = reserve + max(blocks / 16, 1024)
    }
}
