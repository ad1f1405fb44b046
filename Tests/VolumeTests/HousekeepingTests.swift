// Goal: what the checkpointer and the writer do on their own is done, whatever happens around them: a full disk, clocks that jump,
// records that free much and change little.
// Method: each of them brought about on a simulated disk.

import Device
import Format
import Glibc
import Memory
import Space
import TestSupport
import Testing

@testable import Volume

/// Time that goes on by itself, and can be set.
private final class SettableOffset: @unchecked Sendable {
    private let lock = Lock()
    private var value: Int64 = 0
    func ticks() -> Int64 {
        lock.withLock {
            value += 1
            return value
        }
    }
    func set(_ ticks: Int64) { lock.withLock { value = ticks } }
}

@Suite struct HousekeepingTests {
    /// The commit timer runs on wall time; when that is set back by an hour, commits do not wait for an hour.
    @Test func aClockSetBackDoesNotHoldCommitsUp() throws {
        let clock = TestClock()
        let back = SettableOffset()
        var options = OpenOptions()
        options.commitSeconds = 0.5
        let volume = try Volume.open(
            try makeDisk(), options: options,
            clock: {
                usleep(1000)
                return Timestamp(nanoseconds: clock.now().nanoseconds + 2_000_000 * back.ticks())
            }, random: { 7 }, onEvent: { _ in })
        try volume.make("a")
        // By now the writer has seen the change, and counts.
        usleep(700_000)
        back.set(-3_600_000_000_000 / 2_000_000)
        #expect(waitFor { volume.isCommitted })
        volume.abandon()
    }

    /// Overwriting dirties few nodes, but what it frees has to be written into a list, for which there is so much room and no more.
    @Test func deadEntriesStayBounded() throws {
        let volume = try openVolume(try makeDisk())
        try volume.make("f")
        var most = 0
        for index in 0..<10_000 as Range<UInt64> {
            try volume.write("f", [UInt8](repeating: UInt8(index % 251), count: 4096))
            most = max(most, volume.lock.withLock { volume.view.freed.count })
        }
        #expect(most <= 2 * volume.limits.deadEntries + ReclaimPayload.maximumExtents)
        try volume.close()
    }

    /// Inodes that could not be reclaimed for want of a chunk are reclaimed when there is one.
    @Test func reclaimingWaitsForRoom() throws {
        let volume = try openVolume(try makeDisk())
        let inode = try volume.make("f")
        try volume.write("f", pattern(1 << 20, 1))
        _ = try Array("f".utf8).withRawBytes { (name) throws(OperationError) in try volume.lookup(.root, name) }
        // To the end of the chunk, so that not even housekeeping goes on without another.
        while volume.lock.withLock({ volume.journal!.hasRoom(20 << 10) }) {
            try volume.write("f", pattern(100, 2), at: 2 << 20)
            try volume.commit()
        }
        try volume.unlink("f")
        try volume.commit()
        let (runs, chunks) = volume.lock.withLock { () -> ([BlockRun], [BlockNumber]) in
            var runs: [BlockRun] = []
            while let run = volume.space!.map.allocate(.data, wanted: 1024) { runs.append(run) }
            defer { volume.spareChunks = [] }
            return (runs, volume.spareChunks)
        }
        volume.forget(inode, count: 1)
        usleep(700_000)
        #expect(volume.lock.withLock { volume.orphans.contains(inode.value) })
        volume.lock.withLock {
            for run in runs { try! volume.space!.map.release(run) }
            volume.spareChunks = chunks
        }
        #expect(waitFor { volume.lock.withLock { volume.orphans.isEmpty } })
        try volume.close()
    }
}
