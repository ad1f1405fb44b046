// Goal: files that share blocks never see each other's changes, and blocks are kept exactly as long as one of them, or history,
// needs them; through checkpoints, crashes and history giving way.
// Method: random copies among random changes, against bytes in memory; the checker's verdict on every image.

import Check
import Device
import Format
import Memory
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
}
