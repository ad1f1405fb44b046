// Numbers that must not be mixed, and the sizes everything is measured in (Docs/FORMAT.md, "Units").

public let blockSize = 4096
public let blockShift = 12

/// A 4 KiB block of the image, counted from its start.
public struct BlockNumber: Hashable, Comparable, Sendable, CustomStringConvertible {
    public let value: UInt64
    @inlinable public init(_ value: UInt64) { self.value = value }
    @inlinable public static func < (a: Self, b: Self) -> Bool { a.value < b.value }
    @inlinable public static func + (a: Self, count: UInt64) -> Self { Self(a.value + count) }
    public var description: String { "block \(value)" }
}

/// A record's number: 1 for the first after mkfs, never reused. The state "at N" is that after record N.
public struct SequenceNumber: Hashable, Comparable, Sendable, CustomStringConvertible {
    public let value: UInt64
    @inlinable public init(_ value: UInt64) { self.value = value }
    @inlinable public static func < (a: Self, b: Self) -> Bool { a.value < b.value }
    @inlinable public var next: Self { Self(value + 1) }
    public var description: String { String(value) }
}

/// An inode's number: 1 is the root directory; below 2^56; never reused.
public struct InodeNumber: Hashable, Comparable, Sendable, CustomStringConvertible {
    public let value: UInt64
    @inlinable public init(_ value: UInt64) { self.value = value }
    @inlinable public static func < (a: Self, b: Self) -> Bool { a.value < b.value }
    @inlinable public static var root: Self { Self(1) }
    @inlinable public static var none: Self { Self(0) }
    public var description: String { String(value) }
}

/// Nanoseconds since 1970-01-01T00:00:00Z, from 1677 to 2262.
public struct Timestamp: Hashable, Comparable, Sendable {
    public let nanoseconds: Int64
    @inlinable public init(nanoseconds: Int64) { self.nanoseconds = nanoseconds }
    @inlinable public static func < (a: Self, b: Self) -> Bool { a.nanoseconds < b.nanoseconds }
}

/// Limits of names and values, from the Linux VFS.
public enum Limit {
    public static let name = 255
    public static let symlinkTarget = 4095
    public static let xattrValue = 65536
    public static let links: UInt32 = 1 << 30
    /// Largest file in bytes: what a signed 64-bit offset can name, less one block.
    public static let fileSize: UInt64 = (1 << 63) - 4096
    /// Inode numbers share a 64-bit key word with the item type.
    public static let inode: UInt64 = 1 << 56
    /// Sequences, epochs, serials and generations found on disk are below this, so that they can be counted on for ever.
    public static let count: UInt64 = 1 << 62
}

/// What a structure on disk must be and was not. Never a trap: every byte read from the device may be hostile.
public struct FormatError: Error, CustomStringConvertible, Sendable {
    public let description: String
    /// What was read is whole, but of a version or with features that this code does not know.
    public let isUnknown: Bool
    public init(_ description: String, isUnknown: Bool = false) {
        self.description = description
        self.isUnknown = isUnknown
    }
}

public let magicSuperblock: UInt64 = 0x4b4f_4f42_5941_4401  // "\u{1}DAYBOOK"
public let magicFrame: UInt32 = 0x7266_4244  // "DBfr"
public let magicChunk: UInt32 = 0x6863_4244  // "DBch"
public let magicNode: UInt32 = 0x646e_4244  // "DBnd"
public let magicBitmap: UInt32 = 0x6d62_4244  // "DBbm"
public let magicDeadList: UInt32 = 0x6c64_4244  // "DBdl"
public let magicPending: UInt32 = 0x6e70_4244  // "DBpn"

/// The filesystem's identity.
public struct FilesystemID: Hashable, Sendable, CustomStringConvertible {
    public let high: UInt64
    public let low: UInt64
    public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }
    public var description: String {
        let digits = (hex(high) + hex(low)).map(String.init)
        return [0..<8, 8..<12, 12..<16, 16..<20, 20..<32].map { digits[$0].joined() }.joined(separator: "-")
    }
}

/// Sixteen hexadecimal digits.
public func hex(_ value: UInt64) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: 16 - digits.count) + digits
}

/// Eight hexadecimal digits.
public func hex(_ value: UInt32) -> String { String(hex(UInt64(value)).suffix(8)) }
