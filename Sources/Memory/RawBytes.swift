// RawBytes: bytes that somebody else owns, read and written little-endian with every bound checked.
//
// This module is the buffer pool of the project, and the one place below Device where pointers are handled. It is
// unsafe in exactly one respect, lifetime: a RawBytes must not outlive the memory it points into. That memory is
// either a PageCache arena or a ByteBuffer, both of which live as long as the volume, view or reader that
// owns them; a RawBytes is used within one call and never stored beyond it.

public struct RawBytes: @unchecked Sendable {
    @usableFromInline let base: UnsafeMutableRawPointer
    public let count: Int

    /// `base` must stay valid for `count` bytes while the value is in use.
    @inlinable public init(base: UnsafeMutableRawPointer, count: Int) {
        precondition(count >= 0)
        self.base = base
        self.count = count
    }

    @inlinable @inline(__always) public var pointer: UnsafeMutableRawPointer { base }

    @inlinable @inline(__always) func check(_ offset: Int, _ length: Int) {
        precondition(offset >= 0 && length >= 0 && offset <= count &- length, "RawBytes: out of bounds")
    }

    // MARK: reading

    @inlinable @inline(__always) public func u8(at offset: Int) -> UInt8 {
        check(offset, 1)
        return base.load(fromByteOffset: offset, as: UInt8.self)
    }
    @inlinable @inline(__always) public func u16(at offset: Int) -> UInt16 {
        check(offset, 2)
        return UInt16(littleEndian: base.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
    }
    @inlinable @inline(__always) public func u32(at offset: Int) -> UInt32 {
        check(offset, 4)
        return UInt32(littleEndian: base.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }
    @inlinable @inline(__always) public func u64(at offset: Int) -> UInt64 {
        check(offset, 8)
        return UInt64(littleEndian: base.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
    }
    @inlinable @inline(__always) public func i64(at offset: Int) -> Int64 { Int64(bitPattern: u64(at: offset)) }

    // MARK: writing

    @inlinable @inline(__always) public func set(u8 value: UInt8, at offset: Int) {
        check(offset, 1)
        base.storeBytes(of: value, toByteOffset: offset, as: UInt8.self)
    }
    @inlinable @inline(__always) public func set(u16 value: UInt16, at offset: Int) {
        check(offset, 2)
        base.storeBytes(of: value.littleEndian, toByteOffset: offset, as: UInt16.self)
    }
    @inlinable @inline(__always) public func set(u32 value: UInt32, at offset: Int) {
        check(offset, 4)
        base.storeBytes(of: value.littleEndian, toByteOffset: offset, as: UInt32.self)
    }
    @inlinable @inline(__always) public func set(u64 value: UInt64, at offset: Int) {
        check(offset, 8)
        base.storeBytes(of: value.littleEndian, toByteOffset: offset, as: UInt64.self)
    }
    @inlinable @inline(__always) public func set(i64 value: Int64, at offset: Int) {
        set(u64: UInt64(bitPattern: value), at: offset)
    }

    // MARK: ranges

    @inlinable @inline(__always) public func slice(_ offset: Int, _ length: Int) -> RawBytes {
        check(offset, length)
        return RawBytes(base: base + offset, count: length)
    }

    @inlinable public func from(_ offset: Int) -> RawBytes { slice(offset, count - offset) }

    /// Copies all of `source` to `offset`. The two may overlap.
    @inlinable @inline(__always) public func copy(_ source: RawBytes, to offset: Int = 0) {
        check(offset, source.count)
        (base + offset).copyMemory(from: source.base, byteCount: source.count)
    }

    @inlinable public func copy(_ source: [UInt8], to offset: Int = 0) {
        check(offset, source.count)
        source.withUnsafeBytes { bytes in
            if let address = bytes.baseAddress { (base + offset).copyMemory(from: address, byteCount: bytes.count) }
        }
    }

    @inlinable @inline(__always) public func move(from source: Int, to destination: Int, length: Int) {
        check(source, length)
        check(destination, length)
        (base + destination).copyMemory(from: base + source, byteCount: length)
    }

    @inlinable public func zero() { fill(base, count) }
    @inlinable public func zero(_ offset: Int, _ length: Int) { slice(offset, length).zero() }

    @inlinable public var isZero: Bool {
        var offset = 0
        while offset + 8 <= count {
            if u64(at: offset) != 0 { return false }
            offset += 8
        }
        while offset < count {
            if u8(at: offset) != 0 { return false }
            offset += 1
        }
        return true
    }

    @inlinable public var array: [UInt8] { [UInt8](UnsafeRawBufferPointer(start: base, count: count)) }

    @inlinable public func equals(_ other: RawBytes) -> Bool {
        count == other.count && Memory.compare(base, other.base, count) == 0
    }

    /// Lexicographic order of bytes: negative, zero or positive.
    @inlinable public func compared(to other: RawBytes) -> Int {
        let order = Memory.compare(base, other.base, Swift.min(count, other.count))
        return order != 0 ? order : count - other.count
    }

    /// The bytes as text, for messages; what is not UTF-8 is shown as the replacement character.
    public var text: String { String(decoding: UnsafeRawBufferPointer(start: base, count: count), as: UTF8.self) }
}

extension [UInt8] {
    /// Lends the array's bytes. They must not be written to unless the array is this call's own.
    @inlinable public func withRawBytes<R, E: Error>(_ body: (RawBytes) throws(E) -> R) throws(E) -> R {
        var result: Result<R, E>?
        self.withUnsafeBytes { bytes in
            // An empty array may have no address; the placeholder is never read, for the count is zero.
            let base = bytes.baseAddress ?? UnsafeRawPointer(bitPattern: 16)!
            do throws(E) {
                result = .success(try body(RawBytes(base: UnsafeMutableRawPointer(mutating: base), count: bytes.count)))
            } catch { result = .failure(error) }
        }
        return try result!.get()
    }
}
