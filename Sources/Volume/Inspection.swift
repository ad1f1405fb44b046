// Inspection: what tools may ask of this layer without opening a volume, and what fsck may ask of an open one.

public import Format
import Memory
package import Space

extension VolumeLimits {
    /// The bounds that a volume of this geometry has with the default cache.
    public static func usual(for superblock: Superblock) -> VolumeLimits {
        VolumeLimits(
            blockCount: superblock.blockCount, chunkBlocks: superblock.chunkBlocks, cacheBytes: OpenOptions().cacheBytes)
    }
}

extension Volume {
    /// Marks blocks as free that a complete check has found to belong to nothing. The next checkpoint writes it. Returns how many
    /// blocks that were; what is not marked as used is left alone.
    public func release(leaked runs: [(start: BlockNumber, count: UInt64)]) -> UInt64 {
        lock.withLock {
            guard let space else { return 0 }
            var released: UInt64 = 0
            for run in runs where (try? space.map.release(BlockRun(start: run.start, count: run.count))) != nil { released += run.count }
            return released
        }
    }

    /// Marks blocks as used, as far as they are free, so that nothing is put there. For a repair, which writes the bitmaps anew in the
    /// end; only without threads.
    package func keepOff(_ runs: some Sequence<BlockRun>) {
        lock.withLock {
            guard let space else { return }
            for run in runs {
                for block in run.start.value..<run.end where !space.map.isUsed(BlockNumber(block)) {
                    try? space.map.claim(BlockRun(start: BlockNumber(block), count: 1), .data)
                }
            }
        }
    }
}
