// Goal: an image with holes on a host that runs full is a filesystem that runs full: ENOSPC before anything is accepted, and room
// enough to delete, to commit and to be closed.
// Method: a simulated host with so many blocks to give and no more (SimulatedDisk, F4).

import Device
import Format
import TestSupport
import Testing

@testable import Volume

@Suite struct BackingTests {
    private func thinDisk(room: Int, blocks: UInt64 = 65_536) throws -> SimulatedDisk {
        let disk = SimulatedDisk(blockCount: blocks)
        disk.hostRoom = room
        try Formatter.format(
            disk,
            FormatOptions(
                label: "thin", id: FilesystemID(high: 1, low: 2), seed: HashSeed(k0: 1, k1: 2), nonce: 77,
                created: Timestamp(nanoseconds: 1_600_000_000_000_000_000)))
        return disk
    }

    /// Makes files of 1 MiB until there is no space; returns how many are whole.
    private func fill(_ volume: Volume, _ prefix: String) throws -> Int {
        var count = 0
        do {
            while true {
                try volume.make("\(prefix)\(count)")
                try volume.write("\(prefix)\(count)", pattern(1 << 20, UInt64(count)))
                count += 1
            }
        } catch { #expect(error as? OperationError == .noSpace) }
        return count
    }

    @Test func aFullHostIsAFullFilesystem() throws {
        let disk = try thinDisk(room: 24_000)
        let events = EventLog()
        var volume = try openVolume(disk, events: events)
        let count = try fill(volume, "a")
        #expect(count > 30, "only \(count) MiB of \(24_000 / 256) fit")
        try volume.commit()
        for index in 0..<count { #expect(try volume.contents("a\(index)") == pattern(1 << 20, UInt64(index))) }
        for index in 0..<count { try volume.unlink("a\(index)") }
        let again = try fill(volume, "b")
        #expect(again > count / 2, "\(again) after \(count) were deleted")
        #expect(events.failures == [])
        try volume.close()
        volume = try openVolume(disk, events: events)
        for index in 0..<again { #expect(try volume.contents("b\(index)") == pattern(1 << 20, UInt64(index))) }
        try volume.close()
        #expect(events.failures == [])
    }

    /// The host fills up with somebody else's data while the filesystem is mounted, and the daemon dies.
    @Test func recoveryNeedsNothingFromTheHost() throws {
        let disk = try thinDisk(room: 65_536)
        var volume = try openVolume(disk)
        for index in 0..<20 {
            try volume.make("f\(index)")
            try volume.write("f\(index)", pattern(1 << 20, UInt64(index)))
        }
        try volume.commit()
        disk.hostRoom = 0
        try volume.unlink("f0")
        try volume.commit()
        volume.abandon()

        let events = EventLog()
        let after = disk.copy()
        volume = try openVolume(after, events: events)
        for index in 1..<20 { #expect(try volume.contents("f\(index)") == pattern(1 << 20, UInt64(index))) }
        _ = try fill(volume, "g")
        for index in 1..<20 { try volume.unlink("f\(index)") }
        try volume.close()
        #expect(events.failures == [])
        #expect(after.hostRoom == 0)
    }

    @Test func roomThatComesBackIsUsed() throws {
        let disk = try thinDisk(room: 24_000)
        // A tenth of a second a reading: what was found exhausted is believed for two seconds.
        let volume = try openVolume(disk, clock: TestClock(step: 100_000_000))
        #expect(try fill(volume, "a") > 30)
        disk.hostRoom = 20_000
        var more = 0
        for attempt in 0..<60 where more == 0 { more = try fill(volume, "b\(attempt)x") }
        #expect(more > 30)
        try volume.close()
    }

    @Test func mkfsRefusesAHostWithoutRoom() throws {
        let error = #expect(throws: OpenError.self) { _ = try thinDisk(room: 500) }
        #expect(error?.description.contains("no room for journal and reserve") == true)
    }
}

@Suite struct HorizonTests {
    /// After a crash the record that moved the horizon may lie behind the newest checkpoint. What it gave up may be overwritten: nobody
    /// may be shown it.
    @Test func aHorizonBehindTheCheckpointCounts() throws {
        let disk = try makeDisk()
        let volume = try openVolume(disk)
        var points: [SequenceNumber] = []
        for index in 0..<4 {
            try volume.make("f\(index)")
            try volume.checkpointNow()
            points.append(volume.sequence)
        }
        volume.moveHorizon(to: points[1])
        volume.abandon()

        let image = try Image(disk.copy())
        #expect(image.superblock.horizon < points[1])
        #expect(image.horizon == points[1])
        let error = #expect(throws: OpenError.self) { _ = try image.view(at: .sequence(points[0])) }
        #expect(error?.reason == .noSuchPoint)
        #expect(try image.view(at: .sequence(points[1])).view.sequence == points[1])
    }
}
