// Goal (P7): no image, however damaged, makes the checker or the recovery before it crash, hang, or write where it may not.
// Method: random bytes of random structures of a small image are changed, with the checksums above them put right, so that the damage
// is met deep inside; then what fsck does is done: replay into an overlay, check. A trap ends the test run; the seed is printed before.

import Check
import Device
import Format
import Foundation
import Memory
import Rebuild
import TestSupport
import Testing
import Volume

@Suite struct HostileTests {
    @Test func anyDamageIsSurvived() throws {
        let base = try image()
        let first = ProcessInfo.processInfo.environment["DAYBOOK_TEST_SEED"].flatMap { UInt64($0) }
        let count = UInt64(ProcessInfo.processInfo.environment["DAYBOOK_TEST_MUTATIONS"] ?? "150")!
        for seed in first.map({ $0..<($0 + 1) }) ?? 0..<count {
            var random = SeededRandom(seed: seed)
            let disk = base.copy()
            mutate(try Editor(disk), &random)
            // Said before, for a trap says nothing.
            FileHandle.standardError.write(Data("mutation \(seed)\r".utf8))
            let before = disk.operations
            let overlay = OverlayDevice(disk)
            if let volume = try? openVolume(overlay, cacheBytes: 8 << 20) {
                use(volume)
                try? volume.make("after")
                do { try volume.close() } catch { volume.abandon() }
            }
            _ = try? findings(overlay)
            _ = try? findings(disk)
            #expect(disk.operations == before, "seed \(seed): something was written below the overlay")
        }
    }

    /// Two directories, each in the other: their paths are asked for with every record.
    @Test func pathsInACircleEnd() throws {
        let disk = try makeDisk(blocks: 16384)
        let volume = try openVolume(disk)
        try volume.makeDirectory("a")
        try volume.makeDirectory("a/b")
        try volume.makeDirectory("a/b/c")
        try volume.close()
        let editor = try Editor(disk)
        let a = editor.entry("a").inode
        let b = editor.entry("b", in: a).inode
        let c = editor.entry("c", in: b).inode
        editor.insert(Key(b, .entry, editor.offset("x")), editor.entryValue("x", a, .directory))
        editor.inode(a) {
            $0.parent = b
            $0.parentEntry = editor.offset("x")
        }
        let view = try Image(disk).view(at: nil).view
        for inode in [a, b, c] { #expect(try view.path(inode) == nil) }
        _ = try findings(disk)
    }

    @Test func noDamageIsTooMuchForARepair() throws {
        let base = try image()
        let first = ProcessInfo.processInfo.environment["DAYBOOK_TEST_SEED"].flatMap { UInt64($0) }
        let count = UInt64(ProcessInfo.processInfo.environment["DAYBOOK_TEST_MUTATIONS"] ?? "60")!
        var repaired = 0
        for seed in first.map({ $0..<($0 + 1) }) ?? 0..<count {
            var random = SeededRandom(seed: seed)
            let disk = base.copy()
            mutate(try Editor(disk), &random)
            FileHandle.standardError.write(Data("repair of mutation \(seed)\r".utf8))
            let before = disk.operations
            if let outcome = try? makeRepairer(disk).plan() {
                repaired += 1
                #expect(try Checker(outcome.overlay).run().isClean, "seed \(seed)")
            }
            #expect(disk.operations == before, "seed \(seed): something was written below the overlay")
        }
        print("repaired \(repaired) of \(count) mutated images")
    }

    /// Blocks set aside have no checksums: forty bytes claim sixteen terabytes, in every set that blocks are counted in.
    @Test func aFewBytesThatClaimAFileOfHoles() throws {
        let whole = try makeDisk(blocks: 16384)
        let volume = try openVolume(whole)
        let inode = try volume.make("a")
        try volume.fallocate(inode, mode: 0, offset: 0, length: 8192, testCaller)
        try volume.close()
        let long = SimulatedDisk(blockCount: 1 << 33)
        let page = AlignedBuffer(count: blockSize)
        for block in 0..<16384 as Range<UInt64> {
            try whole.read(BlockNumber(block), into: page.bytes)
            if !page.bytes.isZero { long.corrupt(BlockNumber(block)) { $0 = page.bytes.array } }
        }
        let editor = try Editor(long)
        editor.superblock.blockCount = 1 << 33
        editor.editItem(Key(inode, .extent, 0)) { bytes in
            bytes.set(u64: 1 << 32, at: 0)
            bytes.set(u32: .max, at: 16)
            bytes.set(u32: .max, at: 20)
        }
        func resident() -> Int {
            var status = [UInt8](repeating: 0, count: 64)
            let descriptor = open("/proc/self/statm", O_RDONLY)
            defer { close(descriptor) }
            _ = read(descriptor, &status, status.count)
            return Int(String(decoding: status, as: UTF8.self).split(separator: " ")[1])! * 4096
        }
        let before = resident()
        #expect(try Checker(long).run().counts[.regionMissing] != nil)
        // Other tests run beside this one; it alone would take a gigabyte.
        #expect(resident() - before < 512 << 20, "\((resident() - before) >> 20) MiB more")
    }

    @Test func foreignAndTruncatedImagesAreRefused() throws {
        func refusal(_ disk: any BlockDevice) -> (text: String, isDaybook: Bool)? {
            do throws(CheckError) {
                _ = try Checker(disk)
                return nil
            } catch {
                if case .unusable(let text, let why) = error { return (text, why != .other) }
                return nil
            }
        }
        #expect(refusal(SimulatedDisk(blockCount: 4))?.isDaybook == false)
        #expect(refusal(SimulatedDisk(blockCount: 5000))?.isDaybook == false)
        let noise = SimulatedDisk(blockCount: 64)
        for block in 0..<64 as Range<UInt64> { noise.corrupt(BlockNumber(block)) { $0 = pattern(blockSize, block) } }
        #expect(refusal(noise)?.isDaybook == false)
        let whole = try makeDisk(blocks: 16384)
        let short = SimulatedDisk(blockCount: 9000)
        for block in 0..<9000 as Range<UInt64> {
            let page = AlignedBuffer(count: blockSize)
            try whole.read(BlockNumber(block), into: page.bytes)
            if !page.bytes.isZero { short.corrupt(BlockNumber(block)) { $0 = page.bytes.array } }
        }
        #expect(refusal(short)?.isDaybook == true)
        for slot in Superblock.slots { whole.corrupt(slot) { $0[700] ^= 1 } }
        #expect(refusal(whole)?.isDaybook == true)
    }

    /// Small, unclean, with a bit of everything: a tree of two levels, history, a journal to replay.
    private func image() throws -> SimulatedDisk {
        let disk = try makeDisk(blocks: 16384)
        let volume = try openVolume(disk)
        var work = Workload(seed: 4711)
        for step in 0..<300 {
            try work.step(volume)
            if step % 40 == 39 && step < 280 { try volume.checkpointNow() }
        }
        try volume.commit()
        let result = disk.copy()
        volume.abandon()
        return result
    }

    /// A little of everything, whatever it answers.
    private func use(_ volume: Volume) {
        let buffer = AlignedBuffer(count: 1 << 16)
        for number in 1..<120 as Range<UInt64> {
            let inode = InodeNumber(number)
            guard let found = try? volume.attributes(inode) else { continue }
            var names = 0
            try? volume.list(inode, from: 0, attributes: true) { _ in
                names += 1
                return names < 1000
            }
            for name in ((try? volume.listXattrs(inode, .housekeeping)) ?? []).split(separator: 0).prefix(20) {
                _ = try? Array(name).withRawBytes { (name) throws(OperationError) in try volume.xattr(inode, name) { $0.count } }
            }
            _ = try? volume.readLink(inode) { $0.count }
            _ = try? volume.read(inode, at: 0, into: buffer.bytes)
            _ = try? volume.seek(inode, from: 0, to: .hole)
            guard number % 3 == 0 else { continue }
            _ = try? volume.write(inode, at: 5000, buffer.bytes.slice(0, 3000), killPrivileges: false, testCaller)
            var change = AttributeChange()
            change.size = found.item.length / 2
            _ = try? volume.setAttributes(inode, change, testCaller)
        }
    }

    private func mutate(_ editor: Editor, _ random: inout SeededRandom) {
        // What the editor itself has to find its way by is damaged last.
        let kinds = (0..<Int.random(in: 1...3, using: &random)).map { _ in Int.random(in: 0..<10, using: &random) }
        for kind in kinds.sorted() {
            switch kind {
            case 0..<4:
                let key = editor.tree.randomElement(using: &random)!.key
                editor.editTree(key) { scramble(&$0, key, &random) }
            case 4:
                // A frame of the journal that is still to be replayed, with its checksum right: then it is the last.
                let position = editor.superblock.checkpoint.journal
                let page = editor.read(position.chunk + UInt64(position.block))
                guard let length = FrameHeader.length(page.bytes), Int(position.block) + length >> blockShift <= 256 else { return }
                let frame = AlignedBuffer(count: length)
                try! editor.disk.read(position.chunk + UInt64(position.block), into: frame.bytes)
                for _ in 0..<Int.random(in: 1...4, using: &random) {
                    frame.bytes.set(u8: UInt8.random(in: 0...255, using: &random), at: Int.random(in: 64..<length, using: &random))
                }
                frame.bytes.set(u32: frame.bytes.crc32c(skipping: 4), at: 4)
                for block in 0..<(length >> blockShift) {
                    let bytes = frame.bytes.slice(block << blockShift, blockSize).array
                    editor.disk.corrupt(position.chunk + UInt64(Int(position.block) + block)) { $0 = bytes }
                }
            case 5:
                guard let item = editor.checkpoints.filter({ $0.deadList.value != 0 }).randomElement(using: &random) else { return }
                let words = (0..<4).map { _ in UInt64.random(in: 0...UInt64.max, using: &random) >> UInt64.random(in: 0..<64, using: &random) }
                let index = Int.random(in: 0..<Int(item.deadEntries), using: &random)
                editor.deadList(item.sequence) { entries in
                    guard index < entries.count else { return }
                    entries[index].start = BlockNumber(words[0])
                    entries[index].count = UInt32(truncatingIfNeeded: words[1])
                    if words[2] & 1 == 0 { entries[index].death = SequenceNumber(words[3]) }
                }
            case 6..<9:
                let key = editor.space.randomElement(using: &random)!.key
                editor.editSpace(key) { scramble(&$0, key, &random) }
            default:
                let page = AlignedBuffer(count: blockSize)
                editor.superblock.store(page.bytes, slot: editor.slot)
                let at = Int.random(in: 120..<528, using: &random)
                page.bytes.set(u8: UInt8.random(in: 0...255, using: &random), at: at)
                page.bytes.set(u32: page.bytes.crc32c(skipping: 12), at: 12)
                editor.write(Superblock.slots[editor.slot], page)
                if let changed = try? Superblock(page.bytes, slot: editor.slot), changed.spaceRoot == editor.superblock.spaceRoot,
                    changed.checkpoint.root == editor.superblock.checkpoint.root, changed.spaceLevel == editor.superblock.spaceLevel,
                    changed.checkpoint.rootLevel == editor.superblock.checkpoint.rootLevel,
                    changed.checkpoint.sequence == editor.superblock.checkpoint.sequence
                {
                    editor.superblock = changed
                } else {
                    return
                }
            }
        }
    }

    /// Bytes of the value, its length, or the key.
    private func scramble(_ items: inout Items, _ key: Key, _ random: inout SeededRandom) {
        guard let index = items.firstIndex(where: { $0.key == key }) else { return }
        switch Int.random(in: 0..<8, using: &random) {
        case 0: items.remove(at: index)
        case 1 where !items[index].value.isEmpty: items[index].value.removeLast(Int.random(in: 1...items[index].value.count, using: &random))
        case 2: items[index].key.low ^= 1 << UInt64.random(in: 0..<64, using: &random)
        default:
            guard !items[index].value.isEmpty else { return }
            for _ in 0..<Int.random(in: 1...6, using: &random) {
                let at = Int.random(in: 0..<items[index].value.count, using: &random)
                items[index].value[at] = Bool.random(using: &random) ? 0xff : UInt8.random(in: 0...255, using: &random)
            }
        }
        items.sort { $0.key < $1.key }
        for index in items.indices.dropFirst().reversed() where items[index].key == items[index - 1].key { items.remove(at: index) }
    }
}
