// Goal: a device that fails: invariants 2 and 8 where threads meet (what one is told of the device counts for all); P2, and that
// everything can still be read; and that a block which cannot be read harms nothing but what lies in it.
// Method: a disk that can be stopped in the middle of a checkpoint and made to fail one flush, and then to work again; one that fails
// from each of many moments on and forgets what it was to flush; each block of an image in turn unreadable.

import Device
import Format
import Memory
import TestSupport
import Testing

@testable import Volume

/// A disk that stops at the first tree node written while armed, until it is let go, and fails one flush when asked.
private final class StoppingDisk: BlockDevice, @unchecked Sendable {
    let disk: SimulatedDisk
    private let lock = Lock()
    private var armed = false
    private var stopped = false
    private var failing = false

    init(_ disk: SimulatedDisk) { self.disk = disk }

    func arm() { lock.withLock { armed = true } }
    func failOneFlush() { lock.withLock { failing = true } }
    func waitUntilStopped() { lock.withLock { while !stopped { lock.wait() } } }
    func letGo() {
        lock.withLock {
            stopped = false
            lock.broadcast()
        }
    }

    var blockCount: UInt64 { disk.blockCount }
    var isReadOnly: Bool { false }
    var name: String { disk.name }
    func read(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError) { try disk.read(block, into: bytes) }
    func write(_ block: BlockNumber, _ bytes: RawBytes) throws(DeviceError) {
        lock.withLock {
            guard armed, bytes.u32(at: 0) == magicNode else { return }
            armed = false
            stopped = true
            lock.broadcast()
            while stopped { lock.wait() }
        }
        try disk.write(block, bytes)
    }
    func write(_ block: BlockNumber, gathering pages: [RawBytes]) throws(DeviceError) {
        for (index, page) in pages.enumerated() { try write(block + UInt64(index), page) }
    }
    func flush() throws(DeviceError) {
        let fails = lock.withLock { () -> Bool in
            defer { failing = false }
            return failing
        }
        if fails { throw DeviceError(.flush, errno: EIO, "\(name): flush") }
        try disk.flush()
    }
}

private let EIO: Int32 = 5

@Suite struct FailureTests {
    /// The host reports an error in written data once. If the commit gets it, the checkpoint's own flush looks fine.
    @Test func aCheckpointDoesNotOutliveAFailedCommit() throws {
        let device = StoppingDisk(try makeDisk())
        let events = EventLog()
        let volume = try openVolume(device, events: events)
        try volume.make("a")
        try volume.write("a", pattern(5000, 1))
        device.arm()
        let checkpoint = Thread(name: "checkpoint") { try? volume.checkpointNow() }
        device.waitUntilStopped()
        try volume.make("b")
        device.failOneFlush()
        #expect(throws: OperationError.self) { try volume.commit() }
        device.letGo()
        checkpoint.join()
        #expect(throws: OperationError.self) { try volume.close() }
        #expect(events.failures.count == 1)
        #expect(try Image(device.disk).superblock.checkpoint.sequence == SequenceNumber(0))
        let again = try openVolume(device.disk.copy())
        #expect(try again.contents("a") == pattern(5000, 1))
        try again.close()
    }

    /// Whatever fails when: writers are told EROFS, fsync EIO for good, readers get everything, and what was acknowledged survives.
    @Test(arguments: [true, false]) func everyMomentOfFailure(forgets: Bool) throws {
        for moment in 0..<40 {
            var work = Workload(seed: UInt64(moment))
            let disk = try makeDisk()
            let events = EventLog()
            let volume = try openVolume(disk, events: events, cacheBytes: 16 << 20)
            for _ in 0..<30 { try work.step(volume) }
            try volume.commit()
            disk.forgets = forgets
            disk.failsAfter = disk.operations + moment * 3 / 2
            var committed = volume.committedSequence
            for step in 0..<400 where volume.failure == nil {
                do {
                    try work.step(volume)
                    if step % 7 == 6 {
                        try volume.commit()
                        committed = volume.committedSequence
                    }
                    if step % 40 == 39 { try volume.checkpointNow() }
                } catch is OperationError { break }
            }
            // A step of several operations may have been cut short between two of them.
            let expected = volume.failure == nil ? nil : try Model.of(volume)
            #expect(volume.failure != nil, "moment \(moment): nothing failed")
            let details = try #require(volume.failureDetails)
            #expect(details.cause == volume.failure && details.durable >= committed)
            #expect(events.failures.count == 1)
            // The disk works again: too late.
            disk.failsAfter = .max
            #expect(throws: OperationError.readOnly) { try volume.make("more") }
            if volume.sequence > volume.committedSequence { #expect(throws: OperationError.self) { try volume.commit() } }
            #expect(!volume.isCommitted || volume.sequence == volume.committedSequence)
            #expect(try Model.of(volume) == expected, "moment \(moment)")
            #expect(expected?.canonical == work.model.canonical, "moment \(moment): not all can be read")
            let told = try Array(VolumeFailure.attribute.utf8).withRawBytes { (name) throws(OperationError) in
                try volume.xattr(.root, name) { $0.array }
            }
            #expect(VolumeFailure(told) == details)
            #expect(throws: OperationError.self) { try volume.close() }
            var random = SeededRandom(seed: UInt64(moment))
            let again = try openVolume(disk.crash(&random))
            let reached = again.recovery!.to
            #expect(reached >= committed, "moment \(moment): \(reached) of \(committed)")
            #expect(try Model.of(again).canonical == work.model(at: reached).canonical, "moment \(moment)")
            try again.close()
        }
    }

    /// Data that was written but not flushed, of more files than the cache would keep: the host has forgotten it.
    @Test func whatTheHostForgotIsServedFromMemory() throws {
        let disk = try makeDisk()
        disk.forgets = true
        let volume = try openVolume(disk, cacheBytes: 16 << 20)
        try volume.make("old")
        try volume.write("old", pattern(6 << 20, 1))
        try volume.checkpointNow()
        for number in 0..<3 {
            try volume.make("new\(number)")
            try volume.write("new\(number)", pattern(1 << 20, UInt64(number)))
        }
        volume.lock.withLock { volume.writeBack() }
        #expect(volume.lock.withLock { volume.view.pages.dirty.isEmpty })
        disk.failsAfter = disk.operations
        #expect(throws: OperationError.self) { try volume.commit() }
        for _ in 0..<3 {
            // Everything else passes through the cache.
            #expect(try volume.contents("old") == pattern(6 << 20, 1))
            for number in 0..<3 { #expect(try volume.contents("new\(number)") == pattern(1 << 20, UInt64(number))) }
        }
        volume.abandon()
    }

    /// Each block of an image in turn cannot be read. What does not lie in it can be read and changed, and the volume goes on, unless the
    /// block is one that every checkpoint needs.
    @Test func aBadBlockHarmsWhatLiesInIt() throws {
        let disk = try makeDisk(blocks: 16384)
        let volume = try openVolume(disk)
        let count = 300
        for number in 0..<count {
            try volume.make("f\(number)")
            try volume.write("f\(number)", pattern(9000, UInt64(number)))
        }
        try volume.close()
        let image = try Image(disk)
        var leaves = 0
        var spaceState = 0
        let page = AlignedBuffer(count: blockSize)
        for block in 16..<(disk.blockCount - 1) {
            try disk.read(BlockNumber(block), into: page.bytes)
            let magic = page.bytes.u32(at: 0)
            // A sample of the data; all nodes.
            guard magic == magicNode || !page.bytes.isZero && magic != magicFrame && magic != magicChunk && block % 97 == 0 else { continue }
            let copy = disk.copy()
            let events = EventLog()
            let volume = try openVolume(copy, events: events)
            copy.unreadable = [block]
            if magic == magicNode && page.bytes.u8(at: 25) == NodeLayout.Kind.space.rawValue {
                spaceState += 1
                volume.abandon()
                continue
            }
            var bad = 0
            for number in 0..<count {
                do {
                    #expect(try volume.contents("f\(number)") == pattern(9000, UInt64(number)))
                    try volume.write("f\(number)", [7], at: 3)
                    if number % 3 == 0 { try volume.unlink("f\(number)") }
                } catch let error as OperationError {
                    guard case .io = error else { throw error }
                    bad += 1
                }
            }
            #expect(volume.failure == nil, "block \(block), \(magic == magicNode ? "node" : "data"): \(volume.failure ?? "")")
            let holdsAll = image.superblock.checkpoint.root.address.value == block
            if magic == magicNode { leaves += 1 } else { #expect(bad <= 1) }
            if !holdsAll { #expect(bad < count / 2, "block \(block): \(bad) of \(count) files") }
            if volume.failure == nil && !holdsAll {
                // The leaf may be the one that new files belong into.
                _ = try? volume.make("after")
                try volume.commit()
                if bad > 0 { #expect(events.warnings.contains { $0.contains("block \(block)") }, "\(events.warnings)") }
            }
            volume.abandon()
        }
        #expect(leaves > 10)
    }
}
