// Inspection: what tools may ask of this layer without opening a volume.

public import Format

extension VolumeLimits {
    /// The bounds that a volume of this geometry has with the default cache.
    public static func usual(for superblock: Superblock) -> VolumeLimits {
        VolumeLimits(
            blockCount: superblock.blockCount, chunkBlocks: superblock.chunkBlocks, cacheBytes: OpenOptions().cacheBytes)
    }
}
