// Key: the order of everything in the tree.
//
//   high: [ inode number, 56 bits ][ item type, 8 bits ]     low: offset within the type, 64 bits
//
// so an inode, its attributes, its entries and its extents lie side by side.

public enum ItemType: UInt8, Sendable {
    /// low 0; value: InodeItem.
    case inode = 1
    /// low: name hash and ordinal; value: XattrItem.
    case xattr = 2
    /// low: name hash and ordinal; value: EntryItem. Of directories.
    case entry = 3
    /// low: first file block; value: ExtentItem.
    case extent = 4
    /// low: number of the piece; value: up to `Piece.size` bytes of a symlink's target (key: its inode) or of a large
    /// extended attribute (key: a number of its own).
    case piece = 5
    /// inode 0, low: an inode with no name left, to be reclaimed once nobody holds it; value: empty.
    case orphan = 6
}

/// The kinds of item in the space tree; `low` is named with each.
public enum SpaceItemType: UInt8, Sendable {
    /// low: region index; value: RegionItem.
    case region = 1
    /// low: sequence; value: CheckpointItem.
    case checkpoint = 2
    /// low: chunk serial; value: ChunkItem.
    case chunk = 3
    /// Blocks that several extents hold, by the first of them.
    case share = 4
    /// Cancelled dead entries. Reserved.
    case cancellation = 5
    /// Tags. Reserved.
    case tag = 6
}

public struct Key: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var high: UInt64
    public var low: UInt64

    @inlinable @inline(__always) public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }
    @inlinable @inline(__always) public init(_ inode: InodeNumber, _ type: ItemType, _ low: UInt64 = 0) {
        high = inode.value << 8 | UInt64(type.rawValue)
        self.low = low
    }
    @inlinable @inline(__always) public init(_ type: SpaceItemType, _ low: UInt64) {
        high = UInt64(type.rawValue)
        self.low = low
    }
    @inlinable @inline(__always) public static func < (a: Key, b: Key) -> Bool {
        a.high != b.high ? a.high < b.high : a.low < b.low
    }
    @inlinable public static var first: Key { Key(high: 0, low: 0) }
    @inlinable public static var last: Key { Key(high: .max, low: .max) }

    @inlinable public var inode: InodeNumber { InodeNumber(high >> 8) }
    @inlinable public var type: UInt8 { UInt8(truncatingIfNeeded: high) }
    @inlinable public func isOf(_ inode: InodeNumber, _ type: ItemType) -> Bool {
        high == inode.value << 8 | UInt64(type.rawValue)
    }

    public var description: String {
        "(\(inode), \(ItemType(rawValue: type).map { "\($0)" } ?? String(type)), \(low))"
    }
}
