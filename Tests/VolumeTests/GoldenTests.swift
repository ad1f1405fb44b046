// Goal: the format does not change unnoticed. A change here is a change of Docs/FORMAT.md and of the version or feature bits.
// Method: a fixed history on a fixed disk, with a fixed clock and fixed random numbers; every block that is not zero is summed.

import Device
import Format
import Memory
import TestSupport
import Testing

@testable import Volume

@Suite struct GoldenTests {
    private static func sums(_ disk: SimulatedDisk) throws -> [UInt64: UInt32] {
        let buffer = AlignedBuffer(count: blockSize)
        let page = buffer.bytes
        defer { withExtendedLifetime(buffer) {} }
        var result: [UInt64: UInt32] = [:]
        for block in 0..<disk.blockCount {
            try disk.read(BlockNumber(block), into: page)
            if !page.isZero { result[block] = page.crc32c() }
        }
        return result
    }

    private static func total(_ sums: [UInt64: UInt32]) -> UInt32 {
        let buffer = ByteBuffer(capacity: sums.count * 12)
        for block in sums.keys.sorted() {
            let item = buffer.append(zeros: 12)
            item.set(u64: block, at: 0)
            item.set(u32: sums[block]!, at: 8)
        }
        return buffer.bytes.crc32c()
    }

    @Test func aNewFilesystem() throws {
        let sums = try Self.sums(try makeDisk(blocks: 16384))
        #expect(sums.count == 7)
        #expect(hex(Self.total(sums)) == "2dafda13")
    }

    @Test func aShortHistory() throws {
        let disk = try makeDisk(blocks: 16384)
        let volume = try openVolume(disk, clock: TestClock(step: 0))
        // Where data go depends on what the journal has taken before.
        #expect(waitFor { volume.lock.withLock { volume.spareChunks.count == volume.limits.spareChunks } })
        try volume.makeDirectory("d")
        try volume.make("d/a")
        try volume.write("d/a", pattern(10_000, 1))
        try volume.write("d/a", pattern(100, 2), at: 5000)
        try volume.make("d/s", mode: 0o120777, target: String(repeating: "x", count: 2000))
        try volume.link("d/a", "b")
        try volume.rename("d/s", "s")
        try volume.truncate("b", 6000)
        try volume.commit()
        try volume.make("c")
        try volume.close()
        let sum = hex(Self.total(try Self.sums(disk)))
        #expect(sum == "db643b25")
    }
}
