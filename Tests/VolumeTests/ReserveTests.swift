// Goal: a checkpoint finds room for all that it writes, however full the disk and however late the one before it (invariant 14). One
// that does not ends the volume, and the next mount meets it again.
// Method: a disk that holds up a write for as long as the test likes, while operations go on as fast as they are let.

import Device
import Format
import Glibc
import Memory
import TestSupport
import Testing

@testable import Space
@testable import Volume

/// A disk on which writes to one block wait.
private final class GatedDisk: BlockDevice, @unchecked Sendable {
    let disk: SimulatedDisk
    private let lock = Lock()
    private var held: BlockNumber?
    private var waiting = false

    init(_ disk: SimulatedDisk) { self.disk = disk }
    var blockCount: UInt64 { disk.blockCount }
    var isReadOnly: Bool { false }
    var name: String { disk.name }
    var isReached: Bool { lock.withLock { waiting } }
    func hold(_ block: BlockNumber) { lock.withLock { held = block } }
    func release() {
        lock.withLock {
            held = nil
            lock.broadcast()
        }
    }
    func read(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError) { try disk.read(block, into: bytes) }
    func write(_ block: BlockNumber, _ bytes: RawBytes) throws(DeviceError) {
        lock.withLock {
            while held == block {
                waiting = true
                lock.wait()
            }
        }
        try disk.write(block, bytes)
    }
    func write(_ block: BlockNumber, gathering pages: [RawBytes]) throws(DeviceError) {
        for (index, page) in pages.enumerated() { try write(block + UInt64(index), page) }
    }
    func flush() throws(DeviceError) { try disk.flush() }
}

@Suite struct ReserveTests {
    private func touch(_ volume: Volume, _ inode: InodeNumber) throws(OperationError) {
        var change = AttributeChange()
        change.mode = 0o100600
        _ = try volume.setAttributes(inode, change, testCaller)
    }

    /// Takes free blocks out of the map until `rest` are left.
    private func fill(_ volume: Volume, leaving rest: Int) {
        volume.lock.withLock {
            let map = volume.space!.map
            while map.backedFree > rest, map.allocate(.data, wanted: UInt64(min(1024, map.backedFree - rest))) != nil {}
        }
    }

    /// Two checkpoints' worth of dirty nodes: one frozen, its posted data held up by a slow disk, and as many changed since. The
    /// reserve was for one.
    @Test func aSlowCheckpointLeavesRoomForTheNext() throws {
        let disk = GatedDisk(try makeDisk(blocks: 524_288))
        let events = EventLog()
        let volume = try openVolume(disk, events: events, cacheBytes: 128 << 20)
        // A leaf of the tree for each.
        let value = pattern(3500, 1)
        let inodes = try (0..<9000).map { index in
            let inode = try volume.make("f\(index)")
            try Array("user.x".utf8).withRawBytes { (name) throws(OperationError) in
                try value.withRawBytes { (value) throws(OperationError) in
                    try volume.setXattr(inode, name, value, create: false, replace: false, testCaller)
                }
            }
            return inode
        }
        try volume.make("posted")
        try volume.write("posted", pattern(4096, 2))
        for round in 0..<4 {
            try touch(volume, inodes[round])
            try volume.checkpointNow()
            usleep(300_000)
            fill(volume, leaving: volume.limits.reserve + 300)
        }
        try volume.write("posted", pattern(10, 3))
        let posted = try volume.find("posted").inode
        disk.hold(try volume.view.extent(posted, at: 0)!.extent.item.start)

        let client = Thread(name: "client") {
            var next = 0
            while !disk.isReached {
                try? touch(volume, inodes[next % inodes.count])
                next += 1
            }
            for inode in inodes.reversed() where volume.failure == nil { try? touch(volume, inode) }
        }
        // Until the client is made to wait, or could not be held up by anything but the limit on dirty nodes.
        var last = -1
        for _ in 0..<120 {
            usleep(500_000)
            let now = volume.lock.withLock { Int(volume.view.sequence.value) }
            if disk.isReached && now == last { break }
            last = now
        }
        #expect(disk.isReached)
        disk.release()
        client.join()
        #expect(events.failures == [])
        try touch(volume, inodes[0])
        try volume.checkpointNow()
        for index in 0..<9000 { try volume.unlink("f\(index)") }
        try volume.close()
        #expect(events.failures == [])
    }

    /// Shares cost nothing until they are settled; then each may lie in a node of its own, and all of these are written again.
    @Test func settlingSharesHasItsRoom() throws {
        let disk = try makeDisk(blocks: 65_536)
        let events = EventLog()
        let volume = try openVolume(disk, events: events, cacheBytes: 16 << 20)
        try volume.make("a")
        let a = try volume.find("a").inode
        for name in ["b", "c"] { try volume.make(name) }
        let (b, c) = (try volume.find("b").inode, try volume.find("c").inode)
        // Blocks in a row at homes far apart: a share item each.
        for block in 0..<6000 as Range<UInt64> {
            try volume.write("a", pattern(4096, block), at: block * 8192)
        }
        try volume.checkpointNow()
        func copy(_ to: InodeNumber) throws {
            var done: UInt64 = 0
            while done < 6000 * 8192 {
                let count = try volume.copyRange(from: a, at: done, to: to, at: done, length: 1 << 30, testCaller)
                guard count > 0 else { break }
                done += count
            }
        }
        try copy(b)
        for round in 0..<6 {
            fill(volume, leaving: volume.limits.reserve + 100)
            do { try copy(c) } catch { #expect(error as? OperationError == .noSpace) }
            do { try volume.truncate("c", 0) } catch { #expect(error as? OperationError == .noSpace) }
            #expect(events.failures == [], "round \(round)")
        }
        try volume.unlink("a")
        try volume.unlink("c")
        #expect(try volume.contents("b").prefix(4096) == pattern(4096, 0)[...])
        try volume.unlink("b")
        try volume.close()
        #expect(events.failures == [])
    }

    /// A dead list that is not ours may give up what a file has just been given. That must not be given out again with the file's data
    /// still to be written there.
    @Test func aBlockWithDataToBeWrittenIsNotGivenOut() throws {
        let events = EventLog()
        let volume = try openVolume(try makeDisk(), events: events)
        try volume.make("f")
        try volume.write("f", pattern(4096, 1))
        try volume.checkpointNow()
        try volume.write("f", pattern(10, 2))
        let inode = try volume.find("f").inode
        volume.lock.withLock {
            let map = volume.space!.map
            let home = try! volume.view.extent(inode, at: 0)!.extent.item.start
            let zone = { (block: BlockNumber) in block.value / UInt64(Region.zoneBlocks) }
            // No other zone is one for data, so that what is free in this one is taken first.
            var runs: [BlockRun] = []
            while let run = map.allocate(.node, wanted: 1024) { runs.append(run) }
            for run in runs where zone(run.start) != zone(home) && run.count > 1 {
                try! map.release(BlockRun(start: run.start + 1, count: run.count - 1))
            }
            try! map.release(BlockRun(start: home, count: 1))
        }
        try volume.make("g")
        #expect(throws: OperationError.self) { try volume.write("g", pattern(100, 3)) }
        #expect(events.failures.count == 1 && events.failures.allSatisfy { $0.contains("still to be written") }, "\(events.failures)")
        volume.abandon()
    }

    private final class Pin: @unchecked Sendable {
        private let lock = Lock()
        private var held = false
        var isHeld: Bool {
            get { lock.withLock { held } }
            set { lock.withLock { held = newValue } }
        }
    }

    /// Everything at once on a disk that stays full, while a reader comes and goes who holds history: whatever there is no room for is
    /// refused, nothing waits for ever, no checkpoint fails, and in the end all can be deleted.
    @Test(arguments: 0..<2) func aFullDiskStaysAlive(_ run: Int) throws {
        var random = SeededRandom(seed: UInt64(run) + 60)
        let disk = SimulatedDisk(blockCount: 16_384)
        if run % 2 == 1 { disk.hostRoom = 9000 }
        try Formatter.format(
            disk,
            FormatOptions(
                label: "full", id: FilesystemID(high: 1, low: 2), seed: HashSeed(k0: 1, k1: 2), nonce: 77,
                created: Timestamp(nanoseconds: 1_600_000_000_000_000_000)))
        let events = EventLog()
        let clock = TestClock(step: 5_000_000)
        let pin = Pin()
        var options = OpenOptions()
        options.accessTimes = .never
        options.commitSeconds = 1000
        options.cacheBytes = 16 << 20
        func open() throws -> Volume {
            try Volume.open(
                disk, options: options, clock: { clock.now() }, random: { 5 }, mayMoveHorizon: { _ in !pin.isHeld },
                onEvent: { events.add($0) })
        }
        var volume = try open()
        fill(volume, leaving: volume.limits.reserve + 4000)
        var refused = 0
        for step in 0..<900 {
            let (name, other) = ("f\(Int.random(in: 0..<40, using: &random))", "f\(Int.random(in: 0..<40, using: &random))")
            do {
                switch Int.random(in: 0..<16, using: &random) {
                case 0..<3: try volume.make(name)
                case 3..<7:
                    try volume.write(
                        name, pattern(Int.random(in: 1..<1_000_000, using: &random), random.next()), at: random.next() % 2000 * 4096)
                case 7..<9: try volume.write(name, pattern(50, random.next()), at: random.next() % 2_000_000)
                case 9..<12:
                    _ = try volume.copyRange(
                        from: try volume.find(other).inode, at: 0, to: try volume.find(name).inode, at: 4 << 20, length: 4 << 20, testCaller)
                case 12: try volume.truncate(name, random.next() % 1_000_000)
                case 13: try volume.unlink(name)
                case 14:
                    let inode = try volume.find(name).inode
                    let length = 4096 + random.next() % 4_000_000
                    try volume.fallocate(inode, mode: Bool.random(using: &random) ? 0 : 3, offset: 0, length: length, testCaller)
                default: try volume.commit()
                }
            } catch let error as OperationError where error == .noSpace {
                refused += 1
            } catch let error as OperationError where error == .notFound || error == .exists {}
            if step % 100 == 99 { pin.isHeld = step % 300 == 299 }
            if step == 650 {
                // A crash, on a full disk.
                try volume.commit()
                volume.abandon()
                volume = try open()
            }
        }
        pin.isHeld = false
        #expect(refused > 0)
        for index in 0..<40 {
            for attempt in 0..<600 {
                do { try volume.unlink("f\(index)") } catch let error as OperationError where error == .noSpace || error == .notFound {
                    if error == .noSpace && attempt < 599 { continue }
                }
                break
            }
        }
        #expect(try volume.names("").isEmpty)
        try volume.close()
        #expect(events.failures.filter { !$0.hasSuffix("abandoned") } == [])
    }
}
