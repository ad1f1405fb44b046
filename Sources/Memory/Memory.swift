// Platform memory calls used by the buffer pool.

public import Glibc
import CSupport

@inlinable func compare(_ a: UnsafeRawPointer, _ b: UnsafeRawPointer, _ count: Int) -> Int { Int(memcmp(a, b, count)) }

@inlinable func fill(_ base: UnsafeMutableRawPointer, _ count: Int) { memset(base, 0, count) }

extension RawBytes {
    /// CRC32C of the bytes; `start` continues an earlier one.
    public func crc32c(_ start: UInt32 = 0) -> UInt32 { daybook_crc32c(start, pointer, count) }
}

/// Page-aligned memory for device I/O, as O_DIRECT wants it; freed with its owner.
public final class AlignedBuffer: @unchecked Sendable {
    public let bytes: RawBytes

    /// `count` bytes, beginning on a 4 KiB boundary; zeros unless `zeroed` is false, for what is read into before it is looked at.
    /// `huge`: on a 2 MiB boundary, and in huge pages if the kernel has some; then it looks up one page instead of 512 for every transfer.
    public init(count: Int, huge: Bool = false, zeroed: Bool = true) {
        var pointer: UnsafeMutableRawPointer?
        let alignment = huge ? 2 << 20 : 4096
        let size = (Swift.max(count, 1) + alignment - 1) & ~(alignment - 1)
        let status = posix_memalign(&pointer, alignment, size)
        precondition(status == 0, "out of memory")
        if huge { madvise(pointer, size, MADV_HUGEPAGE) }
        bytes = RawBytes(base: pointer!, count: count)
        if zeroed { bytes.zero() }
    }

    deinit { free(bytes.pointer) }
}
