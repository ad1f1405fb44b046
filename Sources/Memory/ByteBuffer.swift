// ByteBuffer: a growing run of bytes with a fixed upper bound, page-aligned so that it can be written to the device as
// it is. The journal encodes records into one; it grows seldom and never shrinks, so appending allocates nothing.

import Glibc

public final class ByteBuffer: @unchecked Sendable {
    @usableFromInline var base: UnsafeMutableRawPointer
    @usableFromInline var capacity: Int
    public private(set) var count = 0

    public init(capacity: Int) {
        self.capacity = Swift.max(4096, (capacity + 4095) & ~4095)
        var pointer: UnsafeMutableRawPointer?
        precondition(posix_memalign(&pointer, 4096, self.capacity) == 0, "out of memory")
        base = pointer!
    }

    deinit { free(base) }

    /// Everything appended so far. Invalid after the next append.
    public var bytes: RawBytes { RawBytes(base: base, count: count) }

    /// Appends `length` zero bytes and returns them to be filled in; they stay valid until the next append.
    public func append(zeros length: Int) -> RawBytes {
        reserve(count + length)
        let added = RawBytes(base: base + count, count: length)
        added.zero()
        count += length
        return added
    }

    public func append(_ bytes: RawBytes) {
        reserve(count + bytes.count)
        (base + count).copyMemory(from: bytes.pointer, byteCount: bytes.count)
        count += bytes.count
    }

    /// Forgets what lies beyond `length`.
    public func truncate(to length: Int) {
        precondition(length >= 0 && length <= count)
        count = length
    }

    private func reserve(_ needed: Int) {
        guard needed > capacity else { return }
        let larger = (Swift.max(needed, capacity * 2) + 4095) & ~4095
        var pointer: UnsafeMutableRawPointer?
        precondition(posix_memalign(&pointer, 4096, larger) == 0, "out of memory")
        pointer!.copyMemory(from: base, byteCount: count)
        free(base)
        base = pointer!
        capacity = larger
    }
}
