// daybook stat: what an image is, what is in it, and how far its history reaches.

import ArgumentParser
import Device
import Format
import Glibc
import Journal
import Memory
import Space
import Tree
import Volume

struct StatCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "stat", abstract: "Show geometry, space, history and journal of a filesystem.")

    @Argument(help: ArgumentHelp("Image file, block device or mounted directory.", valueName: "image|device|dir"))
    var image: String
    @Flag(help: "One JSON object.")
    var json = false

    func run() throws {
        let source = try ImageSource(image)
        let isLive = source.isLive
        let failure = source.failure
        // First of all, and whether or not the image itself can be read any more.
        if let failure {
            printError("daybook stat: \(shown(Array(source.path.utf8))): read-only since \(failure.time.local): \(failure.cause)")
        }
        let facts = try source.pinned({ (image) throws(OpenError) in image.superblock.checkpoint }, { (image, _) throws(OpenError) in
            try FilesystemFacts(image, isLive: isLive)
        })
        let output = Output()
        if json {
            try output.line(facts.json(source, isLive: isLive, failure))
        } else {
            try facts.write(source, isLive: isLive, failure, output)
        }
        try output.flush()
        for damage in facts.damage { printError("daybook stat: \(damage)") }
        if failure != nil || !facts.damage.isEmpty { throw ExitCode(1) }
    }
}

/// What replaying is reckoned to cost. Measured on a two-core virtual machine with a warm host cache; a report, not a bound.
private enum ReplayCost {
    static let nanosecondsPerRecord: UInt64 = 4_000
    static let nanosecondsPerFrame: UInt64 = 25_000
    /// Both slots written and flushed.
    static let nanosecondsToBegin: UInt64 = 5_000_000
}

private struct FilesystemFacts {
    /// What the space tree knows, at the newest checkpoint.
    struct Index {
        let checkpoints: [CheckpointItem]
        let chunks: UInt64
        let freeBlocks: UInt64
    }

    let image: Image
    /// Nil where the space tree is damaged.
    let index: Index?
    /// Nil where the journal after the newest checkpoint is damaged.
    let tail: JournalTail?
    /// What could not be read, and why.
    let damage: [String]
    /// At the newest record where that can be told, else at the checkpoint.
    let inodes: UInt64
    let dataBlocks: UInt64

    /// `isLive`: what does not fit may only be out of date, and is thrown to be read again.
    init(_ image: Image, isLive: Bool) throws(OpenError) {
        self.image = image
        var damage: [String] = []
        func orDamaged<R>(_ body: () throws(OpenError) -> R) throws(OpenError) -> R? {
            do throws(OpenError) { return try body() } catch {
                guard !isLive else { throw error }
                damage.append(error.description)
                return nil
            }
        }
        index = try orDamaged { () throws(OpenError) in try Self.readIndex(image) }
        tail = try orDamaged { () throws(OpenError) in try image.tail() }
        let view = tail == nil ? nil : try? image.view(at: nil).view
        inodes = view?.inodes ?? image.superblock.checkpoint.inodes
        dataBlocks = view?.dataBlocks ?? image.superblock.checkpoint.dataBlocks
        self.damage = damage
    }

    private static func readIndex(_ image: Image) throws(OpenError) -> Index {
        let checkpoints = try image.retained()
        var free: UInt64 = 0
        do throws(Space.Failure) {
            try image.space.tree.scan(from: Key(.region, 0), mapping: Space.Failure.init) { (key, value) throws(Space.Failure) -> Bool in
                guard key.high == UInt64(SpaceItemType.region.rawValue) else { return false }
                free += UInt64(RegionItem(value)?.free ?? 0)
                return true
            }
            return Index(checkpoints: checkpoints, chunks: UInt64(try image.space.chunks().count), freeBlocks: free)
        } catch { throw error.asOpenError(image.device) }
    }

    private var superblock: Superblock { image.superblock }
    private var last: SequenceNumber { tail?.last ?? superblock.checkpoint.sequence }
    private var lastTime: Timestamp { tail?.time ?? superblock.checkpoint.time }

    /// At the checkpoint, like all of the space state: its chunks, and the one chosen to follow.
    private var journalBlocks: UInt64 { ((index?.chunks ?? 0) + 1) * UInt64(superblock.chunkBlocks) }
    /// What is neither free nor told apart otherwise: nodes, bitmaps, lists.
    private var otherBlocks: UInt64 {
        let known = (index?.freeBlocks ?? 0) + superblock.checkpoint.dataBlocks + superblock.historyBlocks + journalBlocks
        return superblock.blockCount - min(known, superblock.blockCount)
    }
    private var reserveBlocks: UInt64 { UInt64(VolumeLimits.usual(for: superblock).reserve) }

    private var replayNanoseconds: UInt64 {
        guard let tail else { return 0 }
        return ReplayCost.nanosecondsToBegin + tail.records * ReplayCost.nanosecondsPerRecord
            + tail.frames * ReplayCost.nanosecondsPerFrame
    }

    private func state(isLive: Bool, _ failure: VolumeFailure?) -> String {
        if failure != nil { return "failed" }
        if superblock.flags & Superblock.flagDamaged != 0 || !damage.isEmpty { return "damaged" }
        if isLive { return "in use" }
        return superblock.isClean && tail?.records == 0 ? "clean" : "unclean"
    }

    private func slotText(_ slot: Int) -> String {
        switch image.slots[slot] {
        case .success(let superblock): "generation \(superblock.generation), checkpoint \(superblock.checkpoint.sequence)"
        case .failure(let error): error.description
        }
    }

    private var features: String {
        let words = [
            ("compatible", superblock.compatible), ("read-only compatible", superblock.readOnlyCompatible),
            ("incompatible", superblock.incompatible),
        ].filter { $0.1 != 0 }.map { "\($0.0) \(hex($0.1))" }
        return words.isEmpty ? "none" : words.joined(separator: ", ")
    }

    // MARK: text

    func write(_ source: ImageSource, isLive: Bool, _ failure: VolumeFailure?, _ output: Output) throws(CommandError) {
        func field(_ name: String, _ value: String) throws(CommandError) {
            try output.line(rightPadded(name, 18) + value)
        }
        func blocks(_ count: UInt64) -> String { "\(sizeText(count << UInt64(blockShift))) (\(counted(count, "block")))" }

        try field("image", shown(Array(source.path.utf8)))
        try field("label", superblock.label.isEmpty ? "-" : shown(Array(superblock.label.utf8)))
        try field("UUID", "\(superblock.id)")
        try field("features", features)
        try field("size", blocks(superblock.blockCount))
        try field("created", superblock.created.local)
        let holders = source.mounts.map { "mounted on " + shown(Array($0.mountpoint.utf8)) }
        try field("state", ([stateText(isLive, failure)] + holders).joined(separator: ", "))
        if let failure {
            try field("failed", "\(failure.time.local): \(failure.cause)")
            try field("durable", "up to sequence \(failure.durable); what was done after it can be read until it is unmounted, and then is lost")
        }
        try field("superblock", "slot \(image.newestSlot), written \(superblock.written.local)")
        for slot in image.slots.indices { try field("  slot \(slot)", slotText(slot)) }

        try output.line("")
        try field("files", "\(inodes)")
        try field("live data", blocks(dataBlocks))
        try field("history", blocks(superblock.historyBlocks))
        if let index {
            try field("journal", "\(blocks(journalBlocks)), chunks of \(sizeText(UInt64(superblock.chunkBlocks) << UInt64(blockShift)))")
            try field("metadata", blocks(otherBlocks))
            try field("free", "\(blocks(index.freeBlocks)), of which \(sizeText(reserveBlocks << UInt64(blockShift))) are kept in reserve")
        }
        try output.line("")
        try field("horizon", "sequence \(superblock.horizon)" + (index?.checkpoints.first.map { ", \($0.time.local)" } ?? ""))
        try field("last record", "sequence \(last), \(lastTime.local)")
        let newest = "sequence \(superblock.checkpoint.sequence), \(superblock.checkpoint.time.local)"
        try field("checkpoints", (index.map { "\($0.checkpoints.count), the newest at " } ?? "the newest at ") + newest)
        if let tail {
            try field("after it", "\(counted(tail.records, "record")) in \(counted(tail.frames, "frame")); \(tail.end)")
            try field("replay", isLive ? "about \(milliseconds) if it ended now" : "about \(milliseconds)")
            try field("journal position", "chunk \(tail.position.serial) at \(tail.position.chunk), block \(tail.position.block); successor at \(tail.successor)")
        }
        try field("epoch", "\(superblock.epoch)" + (superblock.cut.epoch == 0 ? "" : "; epoch \(superblock.cut.epoch) was cut after sequence \(SequenceNumber(superblock.cut.next.value - 1))"))
    }

    private func stateText(_ isLive: Bool, _ failure: VolumeFailure?) -> String {
        switch state(isLive: isLive, failure) {
        case "failed": "failed: read-only until it is unmounted and mounted again"
        case "unclean": "unclean: the journal will be replayed"
        case "damaged": "damaged: run fsck.daybook"
        case let other: other
        }
    }

    private var milliseconds: String { "\((replayNanoseconds + 999_999) / 1_000_000) ms" }

    // MARK: JSON

    func json(_ source: ImageSource, isLive: Bool, _ failure: VolumeFailure?) -> String {
        var object = JSONObject()
        object.add("image", bytes: Array(source.path.utf8))
        object.add("label", superblock.label)
        object.add("uuid", "\(superblock.id)")
        object.add("features", features)
        object.add("block_size", UInt64(blockSize))
        object.add("blocks", superblock.blockCount)
        object.add("created", superblock.created.rfc3339)
        object.add("written", superblock.written.rfc3339)
        object.add("state", state(isLive: isLive, failure))
        if let failure {
            var inner = JSONObject()
            inner.add("cause", failure.cause)
            inner.add("time", failure.time.rfc3339)
            inner.add("durable_sequence", failure.durable.value)
            object.add("failure", inner)
        }
        object.add("clean", superblock.isClean)
        object.add("mounted_on", raw: "[" + source.mounts.map { mount in
            var inner = JSONObject()
            inner.add("directory", bytes: Array(mount.mountpoint.utf8))
            return inner.closed
        }.joined(separator: ",") + "]")
        object.add("generation", superblock.generation)
        object.add("slot", UInt64(image.newestSlot))
        object.add("inodes", inodes)
        object.add("live_blocks", dataBlocks)
        object.add("history_blocks", superblock.historyBlocks)
        if let index {
            object.add("journal_blocks", journalBlocks)
            object.add("metadata_blocks", otherBlocks)
            object.add("free_blocks", index.freeBlocks)
            object.add("checkpoints", UInt64(index.checkpoints.count))
        }
        object.add("reserve_blocks", reserveBlocks)
        object.add("horizon", superblock.horizon.value)
        object.add("last_sequence", last.value)
        object.add("last_time", lastTime.rfc3339)
        object.add("newest_checkpoint", superblock.checkpoint.sequence.value)
        object.add("epoch", superblock.epoch)
        if let tail {
            object.add("records_to_replay", tail.records)
            object.add("frames_to_replay", tail.frames)
            object.add("estimated_replay_seconds", raw: "\(Double(replayNanoseconds) / 1e9)")
            var position = JSONObject()
            position.add("chunk", tail.position.chunk.value)
            position.add("serial", tail.position.serial)
            position.add("block", UInt64(tail.position.block))
            position.add("successor", tail.successor.value)
            object.add("journal_position", position)
            object.add("journal_end", tail.end.description)
        }
        if !damage.isEmpty { object.add("damage", damage.joined(separator: "; ")) }
        return object.closed
    }
}
