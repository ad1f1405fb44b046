// Goal: the fifteen invariants of the design (Docs/DESIGN.md), each tried by itself.
// Method: where an invariant is about order, the writes and flushes of a traced disk; where it is about states, disks copied or
// crashed at the moment in question. The allocation invariants are tried again by every run of the checker.

import Device
import Foundation
import Format
import Journal
import Memory
import Space
import TestSupport
import Testing
import Tree

@testable import Volume

private func frames(in bytes: [UInt8]) -> [UInt8]? { bytes.prefix(4) == [0x44, 0x42, 0x66, 0x72] ? bytes : nil }

/// All items of a view's tree, in order.
private func items(_ view: View) throws -> [(Key, [UInt8])] {
    var result: [(Key, [UInt8])] = []
    try view.tree.scan(from: Key.first, mapping: ViewError.tree) { (key, value) throws(ViewError) -> Bool in
        result.append((key, value.array))
        return true
    }
    return result
}

/// A volume that has done some work on a traced disk.
private func workedOn(seed: UInt64, blocks: UInt64 = 32768, steps: Int = 200) throws -> (TracedDisk, Volume, Workload) {
    let traced = TracedDisk(try makeDisk(blocks: blocks))
    let volume = try openVolume(traced)
    var work = Workload(seed: seed)
    for step in 0..<steps {
        try work.step(volume)
        if step % 20 == 19 { try volume.commit() }
        if step % 70 == 69 { try volume.checkpointNow() }
    }
    return (traced, volume, work)
}

@Suite struct InvariantTests {
    @Test func invariant1FramesFollowFlushesAndDataPrecedesThem() throws {
        let (traced, volume, _) = try workedOn(seed: 1)
        try volume.commit()
        var written: Set<UInt64> = []
        var named: [UInt64] = []
        var unflushedFrame = false
        var count = 0
        for event in traced.events {
            switch event {
            case .flush:
                // Everything a frame names was written before the flush that makes the frame durable.
                for home in named { #expect(written.contains(home), "home \(home) of a flushed frame was not written") }
                named = []
                unflushedFrame = false
            case .write(let block, let bytes):
                for index in 0..<bytes.count / blockSize { written.insert(block.value + UInt64(index)) }
                guard let frame = frames(in: bytes) else { continue }
                #expect(!unflushedFrame, "a frame was written before the flush of the one before it")
                unflushedFrame = true
                count += 1
                frame.withRawBytes { frame in
                    var at = FrameHeader.size
                    for _ in 0..<frame.u32(at: 84) {
                        guard let record = try? Record(frame.from(at)) else { break }
                        at += record.bytes.count
                        guard [.write, .truncate, .fallocate].contains(record.type), let content = ContentPayload(record.payload)
                        else { continue }
                        var next = ContentPayload.firstSegment
                        for _ in 0..<content.segments {
                            let segment = Segment(content.bytes, at: next)!
                            next = segment.next
                            if segment.kind == .run { named += (0..<segment.blocks).map { segment.home.value + $0 } }
                        }
                    }
                }
            }
        }
        #expect(count >= 10)
        try volume.close()
    }

    @Test func invariant2AFailedWriteEndsTheEpoch() throws {
        for failing in 0..<2 {
            let disk = try makeDisk()
            let events = EventLog()
            let volume = try openVolume(disk, events: events)
            try volume.make("kept")
            try volume.write("kept", pattern(5000, 1))
            try volume.commit()
            try volume.make("lost")
            disk.failsAfter = disk.operations + failing
            #expect(throws: OperationError.self) { try volume.commit() }
            disk.failsAfter = .max
            // Never retried, whatever the disk does now.
            #expect(throws: OperationError.self) { try volume.commit() }
            #expect(throws: OperationError.readOnly) { try volume.make("more") }
            #expect(!volume.isCommitted)
            #expect(try volume.contents("kept") == pattern(5000, 1))
            #expect(events.failures.count == 1)
            #expect(throws: OperationError.self) { try volume.close() }
            let again = try openVolume(disk)
            #expect(try again.contents("kept") == pattern(5000, 1))
            try again.close()
        }
    }

    @Test func invariant2RecoveryWritesBothSlotsBeforeServing() throws {
        let (traced, volume, _) = try workedOn(seed: 2)
        let disk = traced.disk.copy()
        volume.abandon()
        let second = TracedDisk(disk)
        let recovered = try openVolume(second)
        var order: [String] = []
        for event in second.events.prefix(4) {
            switch event {
            case .flush: order.append("flush")
            case .write(let block, _): order.append(Superblock.slots.contains(block) ? "slot" : "other")
            }
        }
        #expect(order == ["slot", "flush", "slot", "flush"])
        try recovered.close()
    }

    @Test func invariant3NodesStayOutOfTheJournal() throws {
        let (traced, volume, _) = try workedOn(seed: 3)
        try volume.close()
        let image = try Image(traced)
        let chunks = try image.space.chunks().map { $0.item.address.value } + [image.superblock.checkpoint.journal.chunk.value]
        let size = UInt64(image.superblock.chunkBlocks)
        let (view, _) = try image.view(at: nil)
        func check(_ reference: ChildReference, _ level: UInt8) throws {
            #expect(!chunks.contains { $0 <= reference.address.value && reference.address.value < $0 + size })
            guard level > 0 else { return }
            let buffer = AlignedBuffer(count: blockSize)
            let page = buffer.bytes
            defer { withExtendedLifetime(buffer) {} }
            try traced.read(reference.address, into: page)
            for index in 0..<NodeLayout.count(page) { try check(ChildReference(NodeLayout.value(page, index)), level - 1) }
        }
        try check(view.tree.root, view.tree.level)
        #expect(chunks.count > 1)
    }

    /// Invariants 4 and 6: a disk whose newest slot is destroyed recovers from the older one, at any moment, although blocks have
    /// been freed and used again meanwhile. The image is small, so that they are.
    @Test(arguments: [4, 6, 46]) func invariants4And6TheOlderSlotStaysUsable(seed: UInt64) throws {
        let disk = try makeDisk(blocks: 16384)
        let volume = try openVolume(disk)
        for round in 0..<120 {
            let path = "f\(round % 8)"
            if round < 8 { try volume.make(path) }
            try volume.truncate(path, 0)
            try volume.write(path, pattern(900_000, UInt64(round) &+ seed))
            guard round % 10 == 9 else { continue }
            try volume.commit()
            let copy = disk.copy()
            let image = try Image(copy)
            copy.corrupt(Superblock.slots[image.newestSlot]) { $0[100] ^= 1 }
            let older = try openVolume(copy)
            for index in 0..<8 where index <= round {
                let last = round - (round - index) % 8
                #expect(try older.contents("f\(index)") == pattern(900_000, UInt64(last) &+ seed), "round \(round), file \(index)")
            }
            older.abandon()
        }
        #expect(try Image(disk).superblock.horizon > SequenceNumber(0), "history was to give way in this test")
        try volume.close()
    }

    @Test func invariant5TheHorizonIsARetainedCheckpointBehindBothSlots() throws {
        let disk = try makeDisk(blocks: 16384)
        let volume = try openVolume(disk)
        var moved = false
        for round in 0..<100 {
            if round < 5 { try volume.make("f\(round)") }
            try volume.truncate("f\(round % 5)", 0)
            try volume.write("f\(round % 5)", pattern(1 << 20, UInt64(round)))
            try volume.commit()
            let image = try Image(disk.copy())
            for case .success(let slot) in image.slots {
                #expect(image.superblock.horizon <= slot.checkpoint.sequence, "round \(round)")
            }
            #expect(try image.space.checkpoints().first?.sequence == image.superblock.horizon)
            moved = moved || image.superblock.horizon > SequenceNumber(0)
        }
        // What moved since the last checkpoint is in the slots after the next.
        try volume.close()
        #expect(try moved || Image(disk).superblock.horizon > SequenceNumber(0))
    }

    @Test func invariant7ReplayClaimsOnlyFreeBlocks() throws {
        let disk = try makeDisk()
        let volume = try openVolume(disk)
        try volume.make("a")
        try volume.write("a", pattern(4096, 1))
        try volume.commit()
        try volume.checkpointNow()
        try volume.make("b")
        try volume.write("b", pattern(4096, 2))
        try volume.commit()
        let copy = disk.copy()
        volume.abandon()
        // The frame is made to name the home that "a" holds; all checksums are put right.
        let image = try Image(copy)
        let reader = try JournalReader(
            device: copy, id: image.superblock.id, chunkBlocks: image.superblock.chunkBlocks, from: image.superblock.checkpoint.journal,
            cut: nil)
        let (view, _) = try image.view(at: .sequence(image.superblock.checkpoint.sequence))
        let home = try view.home(try view.lookup(.root, "a"), at: 0)
        let frame = try #require(try reader.next())
        let header = frame.header
        copy.corrupt(header.address) { bytes in
            bytes.withRawBytes { bytes in
                var at = FrameHeader.size
                for _ in 0..<header.records {
                    let record = try! Record(bytes.from(at))
                    if record.type == .write {
                        record.payload.set(u64: home.value, at: ContentPayload.firstSegment + 16)
                        record.payload.set(u32: pattern(4096, 1).withRawBytes { $0.crc32c() }, at: ContentPayload.firstSegment + 24)
                    }
                    at += record.bytes.count
                }
                _ = header.seal(bytes, id: image.superblock.id)
            }
        }
        do {
            _ = try openVolume(copy)
            Issue.record("a record that puts used blocks to use was accepted")
        } catch let error as OpenError { #expect(error.description.contains("claimed but not free"), "\(error)") }
    }

    @Test func invariant8ASlotFollowsTheFlushOfAllThatItNames() throws {
        let (traced, volume, _) = try workedOn(seed: 8)
        try volume.close()
        var unflushed: Set<UInt64> = []
        var slots = 0
        var expectFlush = false
        for event in traced.events {
            switch event {
            case .flush:
                unflushed = []
                expectFlush = false
            case .write(let block, _) where Superblock.slots.contains(block):
                slots += 1
                // Frames and data of later operations may be under way; nodes, bitmaps and lists may not.
                #expect(!unflushed.contains { traced.isStructure($0) }, "slot written before what it names was flushed")
                expectFlush = true
            case .write(let block, let bytes):
                if expectFlush && bytes.count >= 4 { #expect(!hasStructureMagic(bytes), "structure written between slot and flush") }
                for index in 0..<bytes.count / blockSize { unflushed.insert(block.value + UInt64(index)) }
            }
        }
        #expect(slots >= 4)
    }

    @Test func invariant9NothingIsFreedTwice() throws {
        let map = SpaceMap.empty(blockCount: 65536)
        let run = try #require(map.allocate(.data, wanted: 10))
        try map.release(run)
        #expect(throws: SpaceError.self) { try map.release(run) }
        #expect(throws: SpaceError.self) { try map.release(BlockRun(start: run.start, count: 0 &+ UInt64.max)) }
        try map.claim(run, .data)
        #expect(throws: SpaceError.self) { try map.claim(run, .data) }
        // A second checkpoint of the same sequence keeps what the first found dead, to be consumed once.
        let disk = try makeDisk(blocks: 16384)
        let volume = try openVolume(disk)
        try volume.make("f")
        try volume.write("f", pattern(1 << 20, 1))
        try volume.checkpointNow()
        try volume.unlink("f")
        try volume.commit()
        try volume.close()
        let dead = try Image(disk).space.checkpoints().reduce(0) { $0 + $1.deadBlocks }
        let again = try openVolume(disk)
        try again.close()
        #expect(try Image(disk).space.checkpoints().reduce(0) { $0 + $1.deadBlocks } >= dead)
        #expect(dead >= 256)
    }

    /// Tags (10) do not exist yet. Until they do, what would need them is refused.
    @Test func invariant10IsNotYetReachable() throws {
        for type in [RecordType.tag, .note, .rollback, .restore] {
            let owner = AlignedBuffer(count: 64)
            let buffer = owner.bytes
            defer { withExtendedLifetime(owner) {} }
            RecordHeader(type: type, sequence: SequenceNumber(1), time: Timestamp(nanoseconds: 0), uid: 0, gid: 0, pid: 0)
                .store(buffer)
            #expect(throws: FormatError.self) { try Record(buffer) }
        }
    }

    @Test func invariant11TheLastExtentMakesOneDeadEntry() throws {
        let disk = try makeDisk()
        let volume = try openVolume(disk)
        for name in ["a", "b", "c"] { try volume.make(name) }
        try volume.write("a", pattern(20_000, 1))
        let (a, b, c) = (try volume.find("a").inode, try volume.find("b").inode, try volume.find("c").inode)
        #expect(try volume.copyRange(from: a, at: 0, to: b, at: 0, length: 1 << 20, testCaller) == 20_000)
        #expect(try volume.copyRange(from: b, at: 4096, to: c, at: 0, length: 8192, testCaller) == 8192)
        let home = try volume.view.extent(a, at: 0)!.extent.item.start
        #expect(try volume.view.extent(b, at: 0)!.extent.item.start == home)
        #expect(try volume.view.extent(c, at: 0)!.extent.item.start == home + 1)
        func deadData() throws -> UInt64 {
            try volume.checkpointNow()
            let item = try Image(disk).space.checkpoints().last!
            guard item.deadList.value != 0 else { return 0 }
            return try ListChain.readDead(item.deadList, crc: item.deadListCRC, id: volume.id, device: disk).entries
                .filter { $0.kind == DeadEntry.Kind.data.rawValue }.reduce(0) { $0 + UInt64($1.count) }
        }
        try volume.unlink("a")
        #expect(try deadData() == 0)
        try volume.write("b", pattern(20_000, 2))
        // The first block and the last two are nobody's now; the two in between are still those of c.
        #expect(try deadData() == 3)
        #expect(try volume.contents("c") == Array(pattern(20_000, 1)[4096..<12_288]))
        try volume.unlink("c")
        #expect(try deadData() == 2)
        try volume.close()
    }

    @Test func invariant12LongWorkIsBoundedRecords() throws {
        let disk = try makeDisk(blocks: 65536)
        var volume = try openVolume(disk)
        try volume.make("big")
        // Every second block: as many extents as blocks.
        for block in 0..<3000 { try volume.write("big", pattern(4096, UInt64(block)), at: UInt64(block) * 8192) }
        try volume.truncate("big", 4096)
        #expect(try volume.contents("big") == pattern(4096, 0))
        for block in 0..<3000 { try volume.write("big", pattern(4096, UInt64(block)), at: UInt64(block) * 8192) }
        try volume.unlink("big")
        try volume.close()
        let image = try Image(disk)
        let view = View(
            checkpoint: try image.space.checkpoints().first!, superblock: image.superblock, device: disk, cacheBytes: 32 << 20)
        let replay = try Replay(view, from: try image.space.checkpoints().first!)
        var most = 0
        var reclaims = 0
        var before = 0
        replay.onRecord = { (record) throws(ViewError) in
            if record.type == .reclaim { reclaims += 1 }
            most = max(most, view.freed.count - before)
            before = view.freed.count
        }
        _ = try replay.run()
        #expect(most <= ReclaimPayload.maximumExtents)
        #expect(reclaims >= 6)
        volume = try openVolume(disk)
        #expect(try volume.names("") == [])
        #expect(volume.view.inodes == 1 && volume.view.dataBlocks == 0)
        try volume.close()
    }

    @Test func invariant13SequencesFollowOneAnotherAcrossThreads() throws {
        let disk = try makeDisk()
        let volume = try openVolume(disk)
        let threads = (0..<4).map { number in
            Thread(name: "client \(number)") {
                for index in 0..<100 {
                    _ = try? volume.make("t\(number)i\(index)")
                    try? volume.write("t\(number)i\(index)", pattern(3000, UInt64(index)))
                    if index % 10 == 0 { try? volume.commit() }
                }
            }
        }
        for thread in threads { thread.join() }
        try volume.close()
        let image = try Image(disk)
        let start = try image.space.checkpoints().first!
        let reader = try JournalReader(
            device: disk, id: image.superblock.id, chunkBlocks: image.superblock.chunkBlocks, from: start.journal, cut: nil)
        var expected = start.sequence.next
        while let frame = try reader.next() {
            try frame.forEachRecord(mapping: { $0 }) { (record) throws(FormatError) in
                #expect(record.sequence == expected)
                expected = expected.next
            }
        }
        #expect(expected > SequenceNumber(800))
        #expect(try openVolume(disk, mode: .readOnly).names("").count == 400)
    }

    @Test func invariant14DirtyNodesAndUnpostedDataStayBounded() throws {
        let disk = try makeDisk(blocks: 65536)
        let volume = try openVolume(disk)
        var mostNodes = 0
        var mostUnposted = 0
        for index in 0..<6000 {
            try volume.make("f\(index)")
            try volume.write("f\(index)", pattern(100, UInt64(index)))
            volume.lock.withLock {
                mostNodes = max(mostNodes, volume.view.tree.dirtyCount)
                mostUnposted = max(mostUnposted, volume.view.pages.unposted)
            }
        }
        #expect(mostNodes <= 2 * volume.limits.dirtyNodes + 32)
        #expect(mostUnposted <= 2 * volume.limits.unposted + 2)
        #expect(mostUnposted > volume.limits.unposted / 2, "the test did not come near the limit")
        try volume.close()
    }

    @Test(arguments: [15, 16, 17]) func invariant15JournalAndCheckpointAgree(seed: UInt64) throws {
        let (traced, volume, _) = try workedOn(seed: seed, steps: 400)
        try volume.close()
        let image = try Image(traced)
        let checkpoints = try image.space.checkpoints()
        #expect(checkpoints.count >= 4)
        let last = checkpoints.last!
        let newest = View(checkpoint: last, superblock: image.superblock, device: traced, cacheBytes: 32 << 20)
        let rebuilt = View(checkpoint: checkpoints[0], superblock: image.superblock, device: traced, cacheBytes: 32 << 20)
        _ = try Replay(rebuilt, from: checkpoints[0]).run(limit: last.sequence)
        let (a, b) = (try items(newest), try items(rebuilt))
        #expect(a.count == b.count)
        for (left, right) in zip(a, b) { #expect(left.0 == right.0 && left.1 == right.1, "item \(left.0) / \(right.0)") }
        #expect(newest.nextInode == rebuilt.nextInode && newest.inodes == rebuilt.inodes && newest.dataBlocks == rebuilt.dataBlocks)
    }
}

private func hasStructureMagic(_ bytes: [UInt8]) -> Bool {
    bytes[0] == 0x44 && bytes[1] == 0x42 && ["nd", "bm", "dl", "pn"].contains(String(decoding: bytes[2..<4], as: UTF8.self))
}

extension TracedDisk {
    func isStructure(_ block: UInt64) -> Bool {
        let buffer = AlignedBuffer(count: blockSize)
        try! read(BlockNumber(block), into: buffer.bytes)
        return hasStructureMagic(buffer.bytes.array)
    }
}

extension View {
    fileprivate func lookup(_ parent: InodeNumber, _ name: String) throws -> InodeNumber {
        try Array(name.utf8).withRawBytes { (name) throws(ViewError) in try lookup(parent, name).inode }
    }
    fileprivate func home(_ inode: InodeNumber, at block: UInt64) throws -> BlockNumber {
        try extent(inode, at: block)!.extent.home(block)
    }
}
