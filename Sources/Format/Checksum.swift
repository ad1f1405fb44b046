// Checksums of structures that check themselves: the CRC field counts as zero.

public import Memory

extension RawBytes {
    /// CRC32C over all bytes, with the four at `field` taken as zero.
    public func crc32c(skipping field: Int) -> UInt32 {
        let before = slice(0, field).crc32c()
        let zeros: [UInt8] = [0, 0, 0, 0]
        let middle = zeros.withRawBytes { $0.crc32c(before) }
        return from(field + 4).crc32c(middle)
    }
}
