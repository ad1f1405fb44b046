// Goal: files that share blocks never see each other's changes, and blocks are kept exactly as long as one of them, or history,
// needs them; through checkpoints, crashes and history giving way.
// Method: random copies among random changes, against bytes in memory; the checker's verdict on every image.

import Check
import Device
import Format
import Journal
import Memory
import Space
import TestSupport
import Testing

@testable import Volume

@Suite struct SharingTests {
    private func copy(_ volume: Volume, _ from: String, _ at: Int, _ to: String, _ offset: Int, _ length: Int) throws -> Int {
        let (source, destination) = (try volume.find(from).inode, try volume.find(to).inode)
        return Int(
            try volume.copyRange(
                from: source, at: UInt64(at), to: destination, at: UInt64(offset), length: UInt64(length), testCaller))
    }

    @Test(arguments: 0..<6) func randomCopies(_ run: Int) throws {
        let seed = UInt64(run) + 400
        var random = SeededRandom(seed: seed)
        let events = EventLog()
        let clock = TestClock()
        var disk = try makeDisk(blocks: 16384)
        var volume = try openVolume(disk, clock: clock, events: events)
        var model: [String: [UInt8]] = [:]
        func put(_ name: String, _ bytes: some Sequence<UInt8>, at offset: Int) {
            let bytes = Array(bytes)
            var file = model[name]!
            if file.count < offset + bytes.count { file += [UInt8](repeating: 0, count: offset + bytes.count - file.count) }
            file.replaceSubrange(offset..<offset + bytes.count, with: bytes)
            model[name] = file
        }
        for step in 0..<700 {
            let name = "f\(Int.random(in: 0..<5, using: &random))"
            let other = "f\(Int.random(in: 0..<5, using: &random))"
            let block = { Int.random(in: 0..<120, using: &random) * 4096 }
            if model[name] == nil {
                try volume.make(name)
                model[name] = []
            }
            switch Int.random(in: 0..<20, using: &random) {
            case 0:
                try volume.unlink(name)
                model[name] = nil
            case 1:
                let size = Int.random(in: 0..<500_000, using: &random)
                try volume.truncate(name, UInt64(size))
                model[name] = Array(model[name]!.prefix(size)) + [UInt8](repeating: 0, count: max(0, size - model[name]!.count))
            case 2..<6:
                let bytes = pattern(Int.random(in: 1..<200_000, using: &random), random.next())
                let at = block()
                try volume.write(name, bytes, at: UInt64(at))
                put(name, bytes, at: at)
            case 6..<9:
                let bytes = pattern(Int.random(in: 1..<600, using: &random), random.next())
                let at = Int.random(in: 0..<400_000, using: &random)
                try volume.write(name, bytes, at: UInt64(at))
                put(name, bytes, at: at)
            case 9:
                let (at, length) = (block(), block() + 4096)
                try volume.fallocate(try volume.find(name).inode, mode: 3, offset: UInt64(at), length: UInt64(length), testCaller)
                let end = min(at + length, model[name]!.count)
                if at < end { model[name]!.replaceSubrange(at..<end, with: [UInt8](repeating: 0, count: end - at)) }
            case 10: try volume.commit()
            case 11 where step % 3 == 0: try volume.checkpointNow()
            case 12 where step % 9 == 0:
                try volume.commit()
                volume.abandon()
                disk = disk.copy()
                volume = try openVolume(disk, clock: clock, events: events)
            default:
                guard let source = model[other] else { continue }
                var (from, to) = (block(), block())
                var length = Int.random(in: 1..<400_000, using: &random)
                if Bool.random(using: &random) { length = (length + 4095) & ~4095 }
                if Int.random(in: 0..<8, using: &random) == 0 {
                    let shift = Int.random(in: 1..<4096, using: &random)
                    (from, to) = (from + shift, to + shift)
                }
                // The kernel refuses ranges of one file that overlap.
                if name == other { length = max(0, min(length, source.count - from)) }
                guard name != other || from + length <= to || to + length <= from else { continue }
                var done = 0
                while done < length {
                    let count = try copy(volume, other, from + done, name, to + done, length - done)
                    if count == 0 { break }
                    done += count
                }
                let due = max(0, min(length, source.count - from))
                #expect(done == due, "seed \(seed) step \(step)")
                if due > 0 { put(name, source[from..<from + due], at: to) }
            }
            if step % 50 == 49 {
                for (name, bytes) in model { #expect(try volume.contents(name) == bytes, "seed \(seed) step \(step) \(name)") }
            }
        }
        #expect(events.failures.filter { !$0.hasSuffix("abandoned") } == [], "seed \(seed)")
        try volume.close()
        try expectClean(disk, "seed \(seed)")
        volume = try openVolume(disk, clock: clock, events: events)
        for (name, bytes) in model { #expect(try volume.contents(name) == bytes, "seed \(seed) \(name)") }
        for name in model.keys { try volume.unlink(name) }
        try volume.close()
        try expectClean(disk, "seed \(seed), emptied")
        #expect(try !Image(disk).space.findShares())
    }

    /// Every state that a crash can leave between copies is one of those in between, and sound.
    @Test func crashesBetweenCopies() throws {
        for seed in 900..<930 as Range<UInt64> {
            var random = SeededRandom(seed: seed)
            let disk = try makeDisk(blocks: 16384)
            let volume = try openVolume(disk)
            try volume.make("a")
            try volume.make("b")
            let first = pattern(300_000, seed)
            try volume.write("a", first)
            try volume.commit()
            _ = try copy(volume, "a", 0, "b", 0, 1 << 20)
            if Bool.random(using: &random) { try volume.checkpointNow() }
            try volume.write("a", pattern(50_000, seed + 1), at: 8192)
            if Bool.random(using: &random) { try volume.commit() }
            try volume.write("b", pattern(3, seed + 2), at: 100)
            let after = disk.crash(&random)
            volume.abandon()
            let second = try openVolume(after)
            let b = try second.contents("b")
            var patched = first
            patched.replaceSubrange(100..<103, with: pattern(3, seed + 2))
            #expect(b == [] || b == first || b == patched, "seed \(seed)")
            try second.close()
            try expectClean(after, "seed \(seed)")
        }
    }

    /// What is shared was posted by a checkpoint whose slot may be lost: the older slot's replay has the same blocks in memory, still to
    /// be posted, and goes on through the clone. And every point in between can be looked at.
    @Test(arguments: 0..<4) func theOlderSlotAndThePastKnowOfCopies(_ run: Int) throws {
        let seed = UInt64(run) + 700
        var random = SeededRandom(seed: seed)
        let disk = try makeDisk()
        let clock = TestClock()
        let volume = try openVolume(disk, clock: clock)
        var model: [String: [UInt8]] = [:]
        var past: [(at: SequenceNumber, files: [String: [UInt8]])] = []
        for name in ["a", "b", "c"] {
            try volume.make(name)
            model[name] = []
        }
        func put(_ name: String, _ bytes: [UInt8], at offset: Int) {
            var file = model[name]!
            if file.count < offset + bytes.count { file += [UInt8](repeating: 0, count: offset + bytes.count - file.count) }
            file.replaceSubrange(offset..<offset + bytes.count, with: bytes)
            model[name] = file
        }
        for step in 0..<160 {
            let name = ["a", "b", "c"].randomElement(using: &random)!
            switch Int.random(in: 0..<10, using: &random) {
            case 0..<2:
                let at = Int.random(in: 0..<20, using: &random) * 4096
                let bytes = pattern(Int.random(in: 1..<30_000, using: &random), random.next())
                try volume.write(name, bytes, at: UInt64(at))
                put(name, bytes, at: at)
            case 2..<6:
                let at = Int.random(in: 0..<80_000, using: &random)
                let bytes = pattern(Int.random(in: 1..<200, using: &random), random.next())
                try volume.write(name, bytes, at: UInt64(at))
                put(name, bytes, at: at)
            case 6:
                let size = Int.random(in: 0..<90_000, using: &random)
                try volume.truncate(name, UInt64(size))
                model[name] = Array(model[name]!.prefix(size)) + [UInt8](repeating: 0, count: max(0, size - model[name]!.count))
            case 7: try volume.checkpointNow()
            default:
                let other = ["a", "b", "c"].filter { $0 != name }.randomElement(using: &random)!
                let from = Int.random(in: 0..<12, using: &random) * 4096
                let to = Int.random(in: 0..<12, using: &random) * 4096
                let due = max(0, min(model[other]!.count - from, Int.random(in: 1..<12, using: &random) * 4096))
                guard due > 0 else { continue }
                #expect(try copy(volume, other, from, name, to, due) == due)
                put(name, Array(model[other]![from..<from + due]), at: to)
            }
            past.append((volume.sequence, model))
            guard step % 8 == 7 else { continue }
            try volume.commit()
            let copy = disk.copy()
            let image = try Image(copy)
            copy.corrupt(Superblock.slots[image.newestSlot]) { $0[100] ^= 1 }
            let older = try openVolume(copy, clock: clock)
            for (name, bytes) in model { #expect(try older.contents(name) == bytes, "seed \(seed) step \(step) \(name)") }
            try older.write("a", pattern(10, 1), at: 5000)
            try older.write("b", pattern(10, 2), at: 5000)
            try older.close()
            try expectClean(copy, "seed \(seed) step \(step)")
        }
        try volume.commit()
        let copy = disk.copy()
        for point in past.shuffled(using: &random).prefix(25) {
            let view = try openVolume(copy, mode: .at(.sequence(point.at)), clock: clock)
            for (name, bytes) in point.files { #expect(try view.contents(name) == bytes, "seed \(seed) at \(point.at) \(name)") }
        }
        volume.abandon()
    }

    @Test func rangesOfOneFile() throws {
        let disk = try makeDisk()
        let volume = try openVolume(disk)
        try volume.make("a")
        let bytes = pattern(40_960, 1)
        try volume.write("a", bytes)
        // Adjacent: the copy continues its own source.
        #expect(try copy(volume, "a", 0, "a", 40_960, 40_960) == 40_960)
        #expect(try volume.contents("a") == bytes + bytes)
        try volume.checkpointNow()
        #expect(try copy(volume, "a", 40_960, "a", 0, 40_960) == 40_960)
        #expect(throws: OperationError.invalid) { _ = try copy(volume, "a", 0, "a", 4096, 8192) }
        #expect(throws: OperationError.invalid) { _ = try copy(volume, "a", 8192, "a", 4096, 8192) }
        try volume.truncate("a", 20_000)
        try volume.checkpointNow()
        try volume.truncate("a", 0)
        try volume.close()
        try expectClean(disk)
        #expect(try !Image(disk).space.findShares())
    }

    /// A volume with a clone behind its checkpoint.
    private func cloned() throws -> SimulatedDisk {
        let disk = try makeDisk()
        let volume = try openVolume(disk)
        for name in ["a", "b", "x"] { try volume.make(name) }
        try volume.write("a", pattern(40_960, 1))
        try volume.write("x", pattern(40_960, 2))
        try volume.checkpointNow()
        _ = try copy(volume, "a", 0, "b", 0, 1 << 20)
        try volume.commit()
        let copy = disk.copy()
        volume.abandon()
        return copy
    }

    /// Gives the clone record, payload and all, to `change`; the frame's checksum is put right.
    private func editClone(_ disk: SimulatedDisk, _ change: (RawBytes) -> Void) throws {
        let image = try Image(disk)
        let reader = try JournalReader(
            device: disk, id: image.superblock.id, chunkBlocks: image.superblock.chunkBlocks, from: image.superblock.checkpoint.journal,
            cut: nil)
        let header = try #require(try reader.next()).header
        let frame = AlignedBuffer(count: FrameHeader.blocks(payload: Int(header.payload)) << blockShift)
        try disk.read(header.address, into: frame.bytes)
        var at = FrameHeader.size
        for _ in 0..<header.records {
            let record = try Record(frame.bytes.from(at))
            if record.type == .clone { change(record.payload) }
            at += record.bytes.count
        }
        _ = header.seal(frame.bytes, id: image.superblock.id)
        for index in 0..<frame.bytes.count >> blockShift {
            let bytes = frame.bytes.slice(index << blockShift, blockSize).array
            disk.corrupt(header.address + UInt64(index)) { $0 = bytes }
        }
    }

    /// A record that hands out blocks of somebody else, or of nobody, would free them with the file that it gives them to.
    @Test func aCloneOfWhatTheSourceDoesNotHoldIsRefused() throws {
        let segment = ClonePayload.fixed + ContentPayload.firstSegment
        let changes: [(String, (RawBytes) -> Void)] = [
            ("home", { $0.set(u64: 30_000, at: segment + 16) }),
            ("birth", { $0.set(u64: 1, at: segment + 24) }),
            ("checksum", { $0.set(u32: 7, at: segment + 32) }),
            ("source", { $0.set(u64: 4, at: 0) }),
            ("offset", { $0.set(u64: 4096, at: 8) }),
            ("unaligned", { $0.set(u64: 1, at: 8) }),
            ("far", { $0.set(u64: .max & ~4095, at: 8) }),
            ("unwritten", { $0.set(u8: Segment.Kind.unwritten.rawValue, at: segment) }),
        ]
        for (what, change) in changes {
            let disk = try cloned()
            try editClone(disk, change)
            let error = #expect(throws: OpenError.self, "\(what)") { try openVolume(disk).abandon() }
            #expect(error?.reason == .damaged, "\(what): \(error?.description ?? "")")
        }
        let untouched = try cloned()
        try editClone(untouched) { _ in }
        let volume = try openVolume(untouched)
        #expect(try volume.contents("b") == pattern(40_960, 1))
        try volume.close()
        try expectClean(untouched)
    }

    @Test func noCloneRecordIsATrap() throws {
        let original = try cloned()
        let buffer = AlignedBuffer(count: 1 << 16)
        var random = SeededRandom(seed: 31)
        for _ in 0..<400 {
            let disk = original.copy()
            try editClone(disk) { payload in
                for _ in 0..<Int.random(in: 1..<3, using: &random) {
                    let at = Int.random(in: 0..<(payload.count / 4), using: &random) * 4
                    let limit = min(at, 112) / 4 * 4
                    let value: UInt32 = [0, 1, 2, .max, 0x8000_0000, random.next()].randomElement(using: &random)!
                    payload.set(u32: value, at: Bool.random(using: &random) ? at : limit)
                }
            }
            guard let volume = try? openVolume(disk) else { continue }
            for name in ["a", "b", "x"] {
                // The length may be anything by now.
                if let inode = try? volume.find(name).inode { _ = try? volume.read(inode, at: 0, into: buffer.bytes) }
                try? volume.write(name, pattern(10, 1), at: 50)
                try? volume.unlink(name)
            }
            try? volume.checkpointNow()
            try? volume.close()
        }
    }

    /// Counts of the space tree that nothing of ours would write.
    @Test func noShareItemIsATrap() throws {
        let disk = try cloned()
        var volume = try openVolume(disk)
        try volume.close()
        let first = try Editor(disk)
        var random = SeededRandom(seed: 17)
        for _ in 0..<120 {
            let copy = disk.copy()
            let editor = try Editor(copy)
            let home = first.extents(first.entry("a").inode)[0].item.start.value
            editor.editSpace(Key(.share, home)) { items in
                items.removeAll { $0.key.high == UInt64(SpaceItemType.share.rawValue) }
                var at = home &- UInt64.random(in: 0..<6, using: &random)
                for _ in 0..<Int.random(in: 0..<4, using: &random) {
                    var value = [UInt8](repeating: 0, count: ShareItem.size)
                    let count: UInt32 = [1, 2, 5, 300, .max].randomElement(using: &random)!
                    let further: UInt32 = [0, 1, 2, .max - 1, .max].randomElement(using: &random)!
                    value.withRawBytes { ShareItem(count: count, further: further).store($0) }
                    items.append((Key(.share, at), value))
                    at += UInt64.random(in: 1..<7, using: &random)
                }
            }
            _ = try? findings(copy)
            guard let opened = try? openVolume(copy) else { continue }
            volume = opened
            _ = try? self.copy(volume, "a", 0, "x", 0, 1 << 20)
            for name in ["b", "a", "x"] {
                try? volume.truncate(name, 4096)
                try? volume.checkpointNow()
                try? volume.unlink(name)
            }
            try? volume.close()
        }
    }

    /// An extent that is set aside has no checksums: a few bytes of a hostile image claim as much as they like. Counting that block by
    /// block would take fsck hours, and memory for all of it; so no share item covers it.
    @Test func whatIsSetAsideIsNotShared() throws {
        let disk = try makeDisk(blocks: 1 << 20)
        let volume = try openVolume(disk)
        try volume.make("x")
        try volume.close()
        let editor = try Editor(disk)
        let inode = editor.entry("x").inode
        let claimed = UInt32(1 << 19)
        editor.editSpace(Key(.share, 100_000)) { items in
            var value = [UInt8](repeating: 0, count: ShareItem.size)
            value.withRawBytes { ShareItem(count: claimed, further: 2).store($0) }
            items.append((Key(.share, 100_000), value))
        }
        for index in 0..<3 as Range<UInt64> {
            let item = ExtentItem(
                start: BlockNumber(100_000), birth: SequenceNumber(1), blocks: claimed, flags: ExtentItem.flagUnwritten)
            var value = [UInt8](repeating: 0, count: item.size)
            value.withRawBytes { item.storeHeader($0) }
            editor.insert(Key(inode, .extent, 1 << 30 + index << 26), value)
        }
        let counts = try Checker(disk).run().counts
        #expect(counts[.blockShared] == 2 && counts[.shareCount] == 1, "\(counts)")
    }
}
