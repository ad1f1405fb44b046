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

    /// `count` bytes, zeroed, beginning on a 4 KiB boundary.
    public init(count: Int) {
        var pointer: UnsafeMutableRawPointer?
        let status = posix_memalign(&pointer, 4096, Swift.max(count, 4096))
        precondition(status == 0, "out of memory")
        bytes = RawBytes(base: pointer!, count: count)
        bytes.zero()
    }

    deinit { free(bytes.pointer) }
}
