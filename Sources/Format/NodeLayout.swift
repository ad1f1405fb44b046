// NodeLayout: one block of a tree, in memory as on disk.
//
//   0     4     8         16      24    25    26     28         30       32             64
//   ├magic┼ CRC ┼ address ┼ birth ┼level┼kind ┼count ┼ heapStart┼ garbage┼ filesystem ID ┤ reserved to 64
//   ├ slots: count × 20 bytes ─────────►          free          ◄──────────── heap of values ┤ 4096
//
// A slot is a key (16 bytes), the value's offset (2) and its length (2). In a node of level above 0 each value is a
// ChildReference, and a slot's key is no greater than any key below that child; the first slot's key may be smaller.
//
// (N1) Keys ascend strictly.  (N2) Values lie in [heapStart, 4096) and do not overlap.  (N3) A clean node's CRC is that
// held by its parent (or by the checkpoint item, for a root): the node alone cannot vouch for itself.

public import Memory

public enum NodeLayout {
    public static let header = 64
    public static let slot = 20
    public static let crc = 4
    public static let capacity = blockSize - header
    /// The longest value: three items must fit a node, so that a split always makes room.
    public static let longestValue = 1300
    /// More levels than 2^64 items could need.
    public static let maximumLevel: UInt8 = 24
    /// More than any tree has that was not made to trap: what is left to `maximumLevel` cannot be filled.
    public static let plausibleLevel: UInt8 = 16

    public enum Kind: UInt8, Sendable {
        case main = 1
        case space = 2
    }

    public static func initialize(_ page: RawBytes, kind: Kind, level: UInt8, id: FilesystemID) {
        page.zero()
        page.set(u32: magicNode, at: 0)
        page.set(u8: level, at: 24)
        page.set(u8: kind.rawValue, at: 25)
        page.set(u16: UInt16(blockSize), at: 28)
        page.set(u64: id.high, at: 32)
        page.set(u64: id.low, at: 40)
    }

    @inlinable @inline(__always) public static func level(_ page: RawBytes) -> UInt8 { page.u8(at: 24) }
    @inlinable @inline(__always) public static func count(_ page: RawBytes) -> Int { Int(page.u16(at: 26)) }
    @inlinable @inline(__always) public static func heapStart(_ page: RawBytes) -> Int { Int(page.u16(at: 28)) }
    @inlinable @inline(__always) public static func garbage(_ page: RawBytes) -> Int { Int(page.u16(at: 30)) }
    @inlinable public static func birth(_ page: RawBytes) -> SequenceNumber { SequenceNumber(page.u64(at: 16)) }
    @inlinable public static func address(_ page: RawBytes) -> BlockNumber { BlockNumber(page.u64(at: 8)) }

    @inlinable @inline(__always) public static func key(_ page: RawBytes, _ index: Int) -> Key {
        let at = header + index * slot
        return Key(high: page.u64(at: at), low: page.u64(at: at + 8))
    }
    @inlinable @inline(__always) public static func value(_ page: RawBytes, _ index: Int) -> RawBytes {
        let at = header + index * slot
        return page.slice(Int(page.u16(at: at + 16)), Int(page.u16(at: at + 18)))
    }

    /// Stamps address and birth and returns the CRC that the parent has to keep.
    public static func seal(_ page: RawBytes, address: BlockNumber, birth: SequenceNumber) -> UInt32 {
        page.set(u64: address.value, at: 8)
        page.set(u64: birth.value, at: 16)
        let sum = page.crc32c(skipping: crc)
        page.set(u32: sum, at: crc)
        return sum
    }

    /// Checks everything that the accessors above rely on, and that this is the node the parent meant.
    public static func validate(
        _ page: RawBytes, kind: Kind, id: FilesystemID, expected: ChildReference, level: UInt8?
    ) throws(FormatError) {
        let address = expected.address
        func fail(_ what: String) -> FormatError { FormatError("tree node at \(address): \(what)") }
        guard page.u32(at: 0) == magicNode else { throw fail("not a node (magic \(hex(page.u32(at: 0))))") }
        let sum = page.crc32c(skipping: crc)
        guard sum == page.u32(at: crc), sum == expected.crc else {
            throw fail("checksum \(hex(sum)), its parent expects \(hex(expected.crc))")
        }
        guard self.address(page) == address else { throw fail("says it belongs at \(self.address(page))") }
        guard birth(page) == expected.birth else { throw fail("birth \(birth(page)), expected \(expected.birth)") }
        guard page.u8(at: 25) == kind.rawValue else { throw fail("of another tree") }
        guard page.u64(at: 32) == id.high, page.u64(at: 40) == id.low else { throw fail("of another filesystem") }
        guard self.level(page) <= maximumLevel, level == nil || self.level(page) == level else {
            throw fail("level \(self.level(page)), expected \(level ?? 0)")
        }
        guard page.slice(48, 16).isZero else { throw fail("reserved bytes are not zero") }
        let count = count(page)
        let heap = heapStart(page)
        guard header + count * slot <= heap, heap <= blockSize else { throw fail("\(count) items do not fit") }
        guard self.level(page) == 0 || count > 0 else { throw fail("inner node without children") }
        var bytes = 0
        var previous = Key.first
        for index in 0..<count {
            let at = header + index * slot
            let offset = Int(page.u16(at: at + 16))
            let length = Int(page.u16(at: at + 18))
            guard offset >= heap, length <= longestValue, offset + length <= blockSize else {
                throw fail("value of item \(index) lies outside of the node")
            }
            guard self.level(page) == 0 || length == ChildReference.size else { throw fail("item \(index) is no child") }
            // In memory the upper numbers mean something else (Tree.virtualFlag); on disk nobody may use them.
            guard self.level(page) == 0 || ChildReference(page.slice(offset, length)).isPossible else {
                throw fail("child \(index) lies beyond any image")
            }
            let key = key(page, index)
            guard index == 0 || previous < key else { throw fail("keys out of order at item \(index)") }
            previous = key
            bytes += length
        }
        guard heap + bytes + garbage(page) == blockSize else { throw fail("values overlap or space is lost") }
    }
}

/// What a parent knows of a child: place, checkpoint that wrote it, checksum. 20 bytes.
public struct ChildReference: Hashable, Sendable {
    public static let size = 20
    public var address: BlockNumber
    public var birth: SequenceNumber
    public var crc: UInt32

    @inlinable public init(address: BlockNumber, birth: SequenceNumber, crc: UInt32) {
        self.address = address
        self.birth = birth
        self.crc = crc
    }
    @inlinable public init(_ bytes: RawBytes) {
        address = BlockNumber(bytes.u64(at: 0))
        birth = SequenceNumber(bytes.u64(at: 8))
        crc = bytes.u32(at: 16)
    }
    /// Whether the address could be one on disk.
    @inlinable public var isPossible: Bool { address.value < 1 << 48 }
    @inlinable public func store(_ bytes: RawBytes) {
        bytes.set(u64: address.value, at: 0)
        bytes.set(u64: birth.value, at: 8)
        bytes.set(u32: crc, at: 16)
    }
}
