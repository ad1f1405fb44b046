// Bugs of the core that the checker brought to light, each with the shortest way to it.

import Check
import Device
import Format
import Memory
import Space
import TestSupport
import Testing
import Tree
import Volume

@Suite struct CoreTests {
    /// Closing a volume in which nothing was done wrote a second checkpoint of the same sequence, and lost the dead list of the first.
    @Test func closingWithoutAChangeKeepsTheDeadList() throws {
        let disk = try makeDisk()
        var volume = try openVolume(disk)
        try volume.make("a")
        try volume.write("a", pattern(100_000, 1))
        try volume.checkpointNow()
        try volume.write("a", pattern(100_000, 2))
        try volume.close()
        let before = try Checker(disk).run().historyBlocks
        #expect(before > 0)
        volume = try openVolume(disk)
        try volume.close()
        try expectClean(disk)
        #expect(try Checker(disk).run().historyBlocks == before)
    }

    /// Near the end of the space the checkpointer gave up history for ever, one record of its own after the other, or waited for itself,
    /// while the writer waited for it. A full disk must say so, and go on when something is deleted.
    @Test func aFullDiskSaysSo() throws {
        let disk = try makeDisk(blocks: 16384)
        var volume = try openVolume(disk)
        try volume.make("filler")
        // All free blocks of the volume but its reserve, so that zones have to be shared.
        func fill(_ volume: Volume, _ path: String) throws {
            var offset: UInt64 = try volume.find(path).item.length
            for size in [1 << 20, 256 << 10] {
                do {
                    while true {
                        try volume.write(path, [UInt8](repeating: 7, count: size), at: offset)
                        offset += UInt64(size)
                    }
                } catch OperationError.noSpace {}
            }
        }
        try fill(volume, "filler")
        try volume.close()
        for round in 0..<3 as Range<UInt64> {
            volume = try openVolume(disk)
            // Each block written anew dies and leaves fewer free ones.
            for block in 0..<200 as Range<UInt64> {
                do { try volume.write("filler", pattern(4096, block), at: (round * 200 + block) * 4096) } catch OperationError.noSpace { break }
            }
            try volume.commit()
            let after = disk.copy()
            volume.abandon()
            let recovered = try openVolume(after)
            try recovered.close()
            try expectClean(after, "round \(round)")
            let again = try openVolume(disk)
            try again.close()
        }
    }

    /// When the first child of an inner node went, its range fell to the right neighbour, whose own first separator stayed above it;
    /// a later split there put the new node on the wrong side.
    @Test func keysComeBackIntoARangeThatWasEmptied() throws {
        let disk = SimulatedDisk(blockCount: 65536)
        let tree = Tree(cache: PageCache(limit: 60_000, reserved: 100_000), device: disk, kind: .main, id: FilesystemID(high: 1, low: 2))
        func key(_ number: UInt64) -> Key { Key(InodeNumber(2), .entry, number << 20) }
        func put(_ key: Key) throws { try tree.put(key, count: 300).zero() }
        let count: UInt64 = 60_000
        for number in 0..<count { try put(key(number)) }
        var random = SeededRandom(seed: 3)
        var expected = Set<Key>()
        for number in 0..<count / 2 { try tree.remove(key(number)) }
        for number in count / 2..<count { expected.insert(key(number)) }
        for _ in 0..<30_000 {
            let fresh = Key(InodeNumber(2), .entry, UInt64.random(in: 0..<(count / 2) << 20, using: &random))
            try put(fresh)
            expected.insert(fresh)
        }
        var seen = 0
        var previous = Key.first
        try tree.scan(from: Key.first, mapping: { $0 }) { (key, _) throws(TreeError) -> Bool in
            if !(previous < key) || !expected.contains(key) { Issue.record("\(key) after \(previous)") }
            previous = key
            seen += 1
            return true
        }
        #expect(seen == expected.count)
        var missing = 0
        for key in expected where try tree.find(key) == nil { missing += 1 }
        #expect(missing == 0)
    }

    /// Closing reclaimed orphans when the threads that make room for it had already ended, and waited for them for ever.
    @Test(.timeLimit(.minutes(1))) func closingWithManyOrphansEnds() throws {
        let disk = try makeDisk(blocks: 16384)
        let volume = try openVolume(disk)
        for index in 0..<12_000 {
            try volume.make("f\(index)")
            if index % 2 == 0 { _ = try volume.make("keep\(index)") }
            if index % 2000 == 0 { try volume.commit() }
        }
        // As if the kernel held all of them, so that none is reclaimed before the volume is closed.
        for index in 0..<12_000 { _ = try Array("f\(index)".utf8).withRawBytes { (name) throws(OperationError) in try volume.lookup(.root, name) } }
        for index in 0..<12_000 { try volume.unlink("f\(index)") }
        try volume.close()
        try expectClean(disk)
    }
}
