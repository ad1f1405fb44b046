// Goal: a full disk says ENOSPC before anything is accepted, can always delete, and history gives way before that.
// Method: the smallest image, worked over many times its size; contents compared throughout.

import Device
import Format
import Memory
import TestSupport
import Testing

@testable import Volume

/// A disk that tells of its flushes.
private final class TellingDisk: BlockDevice, @unchecked Sendable {
    let disk: SimulatedDisk
    private let lock = Lock()
    private var hook: (@Sendable () -> Void)?

    init(_ disk: SimulatedDisk) { self.disk = disk }
    func onFlush(_ hook: (@Sendable () -> Void)?) { lock.withLock { self.hook = hook } }
    var blockCount: UInt64 { disk.blockCount }
    var isReadOnly: Bool { false }
    var name: String { disk.name }
    func read(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError) { try disk.read(block, into: bytes) }
    func write(_ block: BlockNumber, _ bytes: RawBytes) throws(DeviceError) { try disk.write(block, bytes) }
    func write(_ block: BlockNumber, gathering pages: [RawBytes]) throws(DeviceError) {
        try disk.write(block, gathering: pages)
    }
    func flush() throws(DeviceError) {
        lock.withLock { hook }?()
        try disk.flush()
    }
}

@Suite struct SpaceTests {
    /// Overwrites and deletes several times the image's size: only history fills up, and history gives way.
    @Test func historyGivesWay() throws {
        let disk = try makeDisk(blocks: 16384)
        let events = EventLog()
        var volume = try openVolume(disk, events: events)
        for index in 0..<200 {
            let path = "f\(index % 10)"
            if index < 10 { try volume.make(path) }
            try volume.truncate(path, 0)
            try volume.write(path, pattern(1 << 20, UInt64(index)))
            if index % 7 == 0 { try volume.commit() }
        }
        #expect(events.failures == [])
        for index in 190..<200 { #expect(try volume.contents("f\(index % 10)") == pattern(1 << 20, UInt64(index))) }
        try volume.close()
        volume = try openVolume(disk)
        for index in 190..<200 { #expect(try volume.contents("f\(index % 10)") == pattern(1 << 20, UInt64(index))) }
        #expect(try Image(disk).superblock.horizon > SequenceNumber(0))
        try volume.close()
    }

    /// Programs delete, look how much is free, and decide by that; reclaiming takes its time.
    @Test func whatIsDeletedCountsAsFreeAtOnce() throws {
        let volume = try openVolume(try makeDisk())
        let before = volume.statistics().free
        for round in 0..<20 {
            try volume.make("f")
            for part in 0..<4 as Range<UInt64> { try volume.write("f", pattern(1 << 20, part), at: part << 20) }
            #expect(volume.statistics().free <= before - 1024, "round \(round)")
            try volume.unlink("f")
            // Nodes and the journal take some.
            #expect(volume.statistics().free >= before - 512, "round \(round)")
        }
        try volume.close()
    }

    /// Nor does what was deleted vanish for as long as a checkpoint takes to list it.
    @Test func whatIsDeletedIsFreeWhileACheckpointRuns() throws {
        let disk = TellingDisk(try makeDisk())
        let volume = try openVolume(disk)
        let before = volume.statistics().free
        try volume.make("f")
        for part in 0..<8 as Range<UInt64> { try volume.write("f", pattern(1 << 20, part), at: part << 20) }
        try volume.unlink("f")
        #expect(waitFor { volume.lock.withLock { volume.reclaimable.isEmpty } })
        let lock = Lock()
        nonisolated(unsafe) var seen: [UInt64] = []
        disk.onFlush {
            let free = volume.statistics().free
            lock.withLock { seen.append(free) }
        }
        try volume.checkpointNow()
        disk.onFlush(nil)
        let least = lock.withLock { seen.min() }
        #expect(try #require(least) >= before - 512)
        try volume.close()
    }

    /// A file that somebody still holds keeps its space after its last name is gone.
    @Test func whatIsHeldIsNotFree() throws {
        let volume = try openVolume(try makeDisk())
        let before = volume.statistics().free
        try volume.make("f")
        try volume.write("f", pattern(1 << 20, 1))
        let held = try Array("f".utf8).withRawBytes { (name) throws(OperationError) in try volume.lookup(.root, name) }
        try volume.unlink("f")
        #expect(volume.statistics().free <= before - 256)
        volume.forget(held.inode, count: 1)
        #expect(volume.statistics().free >= before - 64)
        try volume.close()
    }

    @Test func aFullDiskCanDelete() throws {
        let disk = try makeDisk(blocks: 16384)
        let events = EventLog()
        let volume = try openVolume(disk, events: events)
        for round in 0..<3 {
            var count = 0
            do {
                while true {
                    try volume.make("r\(round)n\(count)")
                    count += 1
                    try volume.write("r\(round)n\(count - 1)", pattern(300_000, UInt64(count)))
                }
            } catch { #expect(error as? OperationError == .noSpace, "round \(round)") }
            #expect(count > 100, "round \(round): only \(count) files fit")
            for index in 0..<count - 1 {
                #expect(try volume.contents("r\(round)n\(index)") == pattern(300_000, UInt64(index + 1)))
            }
            for index in 0..<count { try volume.unlink("r\(round)n\(index)") }
            #expect(events.failures == [])
        }
        try volume.close()
    }

    /// Files come, go and stay in a disorder that leaves no whole chunk free, and every change is committed, so that the journal runs
    /// from chunk to chunk. Once a full disk had no chunk left and none of its last one to say that history gives way: for good.
    @Test(arguments: 0..<2 as Range<UInt64>) func aFullDiskInDisorderGetsItsSpaceBack(seed: UInt64) throws {
        let disk = try makeDisk(blocks: 16384)
        let events = EventLog()
        let clock = TestClock(step: 50_000_000)
        var random = SeededRandom(seed: seed)
        var volume = try openVolume(disk, clock: clock, events: events)
        for round in 0..<3 {
            var files: [String] = []
            func fill() throws -> Bool {
                do {
                    for index in 0..<20_000 {
                        if files.count > 10 && Int.random(in: 0..<3, using: &random) == 0 {
                            try volume.unlink(files.remove(at: Int.random(in: 0..<files.count, using: &random)))
                        } else {
                            let path = "r\(round)n\(index)"
                            try volume.make(path)
                            files.append(path)
                            try volume.write(path, pattern(Int.random(in: 1...20_000, using: &random), seed))
                        }
                        try volume.commit()
                    }
                    return false
                } catch OperationError.noSpace { return true }
            }
            #expect(try fill(), "round \(round): not full")
            if round == 1 {
                try volume.close()
                volume = try openVolume(disk, clock: clock, events: events)
            }
            for path in files {
                try volume.unlink(path)
                try volume.commit()
            }
            // What was there is free again, all but a little.
            for index in 0..<40 {
                try volume.make("r\(round)again\(index)")
                try volume.write("r\(round)again\(index)", pattern(1 << 20, seed))
            }
            for index in 0..<40 { try volume.unlink("r\(round)again\(index)") }
            #expect(events.failures == [])
        }
        try volume.close()
    }
}
