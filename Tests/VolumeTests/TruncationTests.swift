// Goal: what was cut off a file is never read again, however much of it there was and whatever came in between.
// Method: files with more extents than one record frees, cut off and made to grow again in every order, and across a crash.

import Device
import Format
import Space
import TestSupport
import Testing

@testable import Memory
@testable import Volume

@Suite struct TruncationTests {
    private static let blocks = 600

    /// A file with every second block written, so that it has as many extents.
    private func makeScattered(_ volume: Volume, _ path: String) throws -> InodeNumber {
        let inode = try volume.make(path)
        for block in 0..<Self.blocks { try volume.write(path, pattern(4096, UInt64(block)), at: UInt64(block) * 8192) }
        return inode
    }

    private func grow(_ volume: Volume, _ inode: InodeNumber) throws {
        var change = AttributeChange()
        change.size = UInt64(Self.blocks) * 8192
        _ = try volume.setAttributes(inode, change, testCaller)
    }

    private func isZero(_ volume: Volume, _ inode: InodeNumber) throws -> Bool {
        let buffer = AlignedBuffer(count: 1 << 20)
        var at: UInt64 = 0
        while true {
            let count = try volume.read(inode, at: at, into: buffer.bytes)
            if count == 0 { return true }
            guard buffer.bytes.slice(0, count).isZero else { return false }
            at += UInt64(count)
        }
    }

    @Test func anUnlinkedFileThatIsCutOffAndGrowsHasLostItsData() throws {
        let volume = try openVolume(try makeDisk())
        let inode = try makeScattered(volume, "f")
        _ = try volume.lookup("f")
        try volume.unlink("f")
        var change = AttributeChange()
        change.size = 0
        _ = try volume.setAttributes(inode, change, testCaller)
        #expect(try volume.attributes(inode).item.blocks == 0)
        try grow(volume, inode)
        #expect(try isZero(volume, inode))
        // Another cut, and then the last one lets go: nothing of it stays.
        try volume.write(inode, pattern(4096, 1))
        volume.forget(inode, count: 1)
        try volume.close()
        #expect(volume.view.inodes == 1 && volume.view.dataBlocks == 0 && volume.orphans.isEmpty && volume.trimming.isEmpty)
    }

    @Test func aFileGrowsOnlyWhenWhatWasCutOffIsFreed() throws {
        for how in 0..<3 {
            let volume = try openVolume(try makeDisk())
            let inode = try makeScattered(volume, "f")
            #expect(try volume.cutOff(inode, at: 0, AttributeChange(), testCaller))
            switch how {
            case 0: try grow(volume, inode)
            case 1: try volume.fallocate(inode, mode: 0, offset: 0, length: UInt64(Self.blocks) * 8192, testCaller)
            default:
                try volume.write("f", [0], at: UInt64(Self.blocks) * 8192)
            }
            #expect(try isZero(volume, inode), "way \(how)")
            #expect(volume.orphans.isEmpty && volume.trimming.isEmpty)
            try volume.close()
        }
    }

    /// A file, or free space, in more pieces than one record may name: the range is done in several.
    @Test func fallocateOfScatteredFilesAndSpace() throws {
        let disk = try makeDisk()
        let volume = try openVolume(disk)
        let inode = try volume.make("f")
        let length: UInt64 = 3000 * 8192
        for block in 0..<3000 { try volume.write("f", [UInt8](repeating: 9, count: 4096), at: UInt64(block) * 8192) }
        try volume.fallocate(inode, mode: 0x10, offset: 100, length: length / 2, testCaller)
        try volume.fallocate(inode, mode: 3, offset: 100 + length / 2, length: length, testCaller)
        let found = try volume.contents("f")
        #expect(found[..<100] == [UInt8](repeating: 9, count: 100)[...] && found[100...].allSatisfy { $0 == 0 })
        #expect(found.count == 2999 * 8192 + 4096)
        // Free space of which every second block is taken.
        let runs = volume.lock.withLock { () -> [BlockRun] in
            let map = volume.space!.map
            var runs: [BlockRun] = []
            while map.free > volume.limits.reserve + 4000, let run = map.allocate(.data, wanted: 1024) { runs.append(run) }
            var free = 0
            for run in runs.reversed() where free < 2500 {
                for block in stride(from: run.start.value, to: run.end, by: 2) {
                    try! map.release(BlockRun(start: BlockNumber(block), count: 1))
                    free += 1
                }
            }
            return runs
        }
        #expect(!runs.isEmpty)
        let other = try volume.make("g")
        try volume.fallocate(other, mode: 0, offset: 0, length: 6000 * 4096, testCaller)
        #expect(try volume.attributes(other).item.blocks == 6000)
        volume.abandon()
    }

    /// What was set aside and not written counts as a hole (lseek(2)), and what was written before it does not.
    @Test func holesBeginWhereDataEnds() throws {
        let volume = try openVolume(try makeDisk())
        let inode = try volume.make("f")
        try volume.fallocate(inode, mode: 0, offset: 0, length: 65536, testCaller)
        try volume.write("f", pattern(8192, 1))
        try volume.write("f", pattern(4096, 1), at: 20480)
        func seek(_ offset: UInt64, _ target: SeekTarget) throws -> UInt64 { try volume.seek(inode, from: offset, to: target) }
        for (from, hole, data) in [(0, 8192, 0), (5000, 8192, 5000), (8192, 8192, 20480), (9000, 9000, 20480), (20480, 24576, 20480)] as [(UInt64, UInt64, UInt64)] {
            #expect(try seek(from, .hole) == hole, "from \(from)")
            #expect(try seek(from, .data) == data, "from \(from)")
        }
        #expect(throws: OperationError.noSuchOffset) { try seek(24576, .data) }
        try volume.close()
    }

    /// Cutting a file off within a block, with the tree not in memory, begins several times over; nothing stays behind of that.
    @Test func startingOverLosesNoPages() throws {
        let disk = try makeDisk()
        var volume = try openVolume(disk)
        try volume.make("f")
        for block in 0..<200 { try volume.write("f", pattern(4096, UInt64(block)), at: UInt64(block) * 8192) }
        try volume.close()
        volume = try openVolume(disk)
        try volume.truncate("f", 1000)
        #expect(try volume.contents("f") == Array(pattern(4096, 0)[..<1000]))
        volume.lock.withLock { #expect(volume.view.pages.cache.used == volume.view.pages.cache.bound) }
        try volume.close()
    }

    @Test func aFileCutOffBeforeACrashGrowsAfterIt() throws {
        let disk = try makeDisk()
        var volume = try openVolume(disk)
        let inode = try makeScattered(volume, "f")
        #expect(try volume.cutOff(inode, at: 0, AttributeChange(), testCaller))
        try volume.commit()
        let after = disk.copy()
        volume.abandon()
        volume = try openVolume(after)
        try grow(volume, inode)
        #expect(try isZero(volume, inode))
        try volume.close()
    }
}

extension Volume {
    fileprivate func lookup(_ path: String) throws -> Attributes {
        try Array(path.utf8).withRawBytes { (name) throws(OperationError) in try lookup(.root, name) }
    }
    fileprivate func write(_ inode: InodeNumber, _ bytes: [UInt8]) throws {
        try bytes.withRawBytes { (data) throws(OperationError) in
            try write(inode, at: 0, data, killPrivileges: false, testCaller)
        }
    }
}
