// Content: the payload of write, truncate, fallocate and (behind the source) clone: the new length, and segments that say
// what each touched run of file blocks becomes.
//
//   payload  │ inode 8 │ offset 8 │ length 8 │ new size 8 │ mode 4 │ segments 4 │ fallocate mode 4 │ 0 4 │ segments … │
//   segment  │ kind 1 │ 0 1 │ at 2 │ blocks or bytes 4 │ file block 8 │ home 8 │ CRCs or CRC + bytes, padded to 8 │
//
// offset and length are what was asked for, for whoever reads the log; the segments are what was done.

public import Memory

public struct ContentPayload: Sendable {
    public static let fixed = 48
    public let inode: InodeNumber
    public let offset: UInt64
    public let length: UInt64
    /// The file's length afterwards.
    public let size: UInt64
    /// The file's mode afterwards (suid and sgid may have been cleared).
    public let mode: UInt32
    public let segments: Int
    public let fallocateMode: UInt32
    public let bytes: RawBytes

    public init?(_ bytes: RawBytes) {
        guard bytes.count >= Self.fixed else { return nil }
        inode = InodeNumber(bytes.u64(at: 0))
        offset = bytes.u64(at: 8)
        length = bytes.u64(at: 16)
        size = bytes.u64(at: 24)
        mode = bytes.u32(at: 32)
        segments = Int(bytes.u32(at: 36))
        fallocateMode = bytes.u32(at: 40)
        guard size <= Limit.fileSize, FileKind(mode: mode) == .regular else { return nil }
        self.bytes = bytes
    }

    public static func store(
        _ bytes: RawBytes, inode: InodeNumber, offset: UInt64, length: UInt64, size: UInt64, mode: UInt32, segments: Int,
        fallocateMode: UInt32
    ) {
        bytes.set(u64: inode.value, at: 0)
        bytes.set(u64: offset, at: 8)
        bytes.set(u64: length, at: 16)
        bytes.set(u64: size, at: 24)
        bytes.set(u32: mode, at: 32)
        bytes.set(u32: UInt32(segments), at: 36)
        bytes.set(u32: fallocateMode, at: 40)
    }

    /// Where the first segment begins; then `Segment.next`.
    public static var firstSegment: Int { fixed }

    func validateSegments() throws(FormatError) {
        var at = Self.firstSegment
        for index in 0..<segments {
            guard let segment = Segment(bytes, at: at) else { throw FormatError("segment \(index) is malformed") }
            at = segment.next
        }
    }
}

public struct Segment: Sendable {
    public static let fixed = 24
    /// Blocks that one run names, at most: what a 1 MiB write can touch.
    public static let maximumRun = 4096

    public enum Kind: UInt8, Sendable {
        /// Whole blocks, written to their home before the frame; a CRC for each.
        case run = 0
        /// Bytes for the block at `home`, which lives in memory until a checkpoint posts it. The block starts as a copy of
        /// what the file has there, unless it is at that home already.
        case patch = 1
        /// Blocks set aside and reading as zero.
        case unwritten = 2
        /// No blocks: reading as zero.
        case hole = 3
        /// Blocks that another extent holds already and goes on holding; when they were born, and a CRC for each.
        case shared = 4
    }

    public let kind: Kind
    public let fileBlock: UInt64
    public let home: BlockNumber
    /// File blocks (one for a patch).
    public let blocks: UInt64
    /// Of a patch: first byte within the block.
    public let offset: Int
    /// Of a patch: the bytes. Of a run or shared blocks: the CRCs.
    public let data: RawBytes
    /// Of shared blocks: the birth of the extent that they were taken from.
    public let birth: SequenceNumber
    let crcField: RawBytes
    /// Where the next segment begins.
    public let next: Int

    /// Decodes the segment at `at` within a content payload.
    @inlinable public init?(_ bytes: RawBytes, at: Int) {
        guard at >= 0, bytes.count - at >= Self.fixed, let kind = Kind(rawValue: bytes.u8(at: at)), bytes.u8(at: at + 1) == 0
        else { return nil }
        self.init(bytes, at: at, kind: kind)
    }

    @usableFromInline init?(_ bytes: RawBytes, at: Int, kind: Kind) {
        self.kind = kind
        fileBlock = bytes.u64(at: at + 8)
        home = BlockNumber(bytes.u64(at: at + 16))
        let number = Int(bytes.u32(at: at + 4))
        let start = at + Self.fixed
        guard fileBlock <= 1 << 51 else { return nil }
        birth = kind == .shared && bytes.count - start >= 8 ? SequenceNumber(bytes.u64(at: start)) : SequenceNumber(0)
        switch kind {
        case .shared:
            guard number > 0, number <= Self.maximumRun, bytes.count - start >= 8 + (number * 4 + 7) & ~7 else { return nil }
            offset = 0
            blocks = UInt64(number)
            crcField = bytes.slice(start, 0)
            data = bytes.slice(start + 8, number * 4)
            next = start + 8 + ((number * 4 + 7) & ~7)
        case .run:
            guard number > 0, number <= Self.maximumRun, bytes.count - start >= (number * 4 + 7) & ~7 else { return nil }
            offset = 0
            blocks = UInt64(number)
            crcField = bytes.slice(start, 0)
            data = bytes.slice(start, number * 4)
            next = start + ((number * 4 + 7) & ~7)
        case .patch:
            offset = Int(bytes.u16(at: at + 2))
            guard number <= blockSize - offset, bytes.count - start >= (4 + number + 7) & ~7 else { return nil }
            blocks = 1
            crcField = bytes.slice(start, 4)
            data = bytes.slice(start + 4, number)
            next = start + ((4 + number + 7) & ~7)
        case .unwritten, .hole:
            guard number > 0 else { return nil }
            offset = 0
            blocks = UInt64(number)
            crcField = bytes.slice(start, 0)
            data = crcField
            next = start
        }
    }

    /// Of a patch: the CRC of the whole block once patched.
    public var patchedCRC: UInt32 { crcField.u32(at: 0) }
    /// Fills that CRC in, by the live side, before the frame is sealed.
    public func setPatchedCRC(_ value: UInt32) { crcField.set(u32: value, at: 0) }

    public static func size(run blocks: Int) -> Int { fixed + (blocks * 4 + 7) & ~7 }
    public static func size(shared blocks: Int) -> Int { fixed + 8 + (blocks * 4 + 7) & ~7 }
    public static func size(patch bytes: Int) -> Int { fixed + (4 + bytes + 7) & ~7 }

    private static func storeFixed(_ bytes: RawBytes, _ kind: Kind, at offset: Int, _ number: Int, _ fileBlock: UInt64, _ home: BlockNumber) {
        bytes.set(u8: kind.rawValue, at: 0)
        bytes.set(u8: 0, at: 1)
        bytes.set(u16: UInt16(offset), at: 2)
        bytes.set(u32: UInt32(number), at: 4)
        bytes.set(u64: fileBlock, at: 8)
        bytes.set(u64: home.value, at: 16)
    }

    public static func storeRun(_ bytes: RawBytes, fileBlock: UInt64, home: BlockNumber, blocks: Int) {
        storeFixed(bytes, .run, at: 0, blocks, fileBlock, home)
    }
    public static func setRunCRC(_ bytes: RawBytes, _ index: Int, _ crc: UInt32) { bytes.set(u32: crc, at: fixed + index * 4) }

    public static func storePatch(_ bytes: RawBytes, fileBlock: UInt64, home: BlockNumber, offset: Int, data: RawBytes) {
        storeFixed(bytes, .patch, at: offset, data.count, fileBlock, home)
        bytes.copy(data, to: fixed + 4)
    }
    public static func storeShared(
        _ bytes: RawBytes, fileBlock: UInt64, home: BlockNumber, birth: SequenceNumber, crcs: RawBytes
    ) {
        storeFixed(bytes, .shared, at: 0, crcs.count / 4, fileBlock, home)
        bytes.set(u64: birth.value, at: fixed)
        bytes.copy(crcs, to: fixed + 8)
    }
    public static func storePlain(_ bytes: RawBytes, kind: Kind, fileBlock: UInt64, home: BlockNumber, blocks: Int) {
        storeFixed(bytes, kind, at: 0, blocks, fileBlock, home)
    }
}

/// clone: where it was taken from, then a content payload for the file that it went to.
public struct ClonePayload: Sendable {
    public static let fixed = 16
    public let source: InodeNumber
    /// Bytes.
    public let sourceOffset: UInt64
    public let content: ContentPayload

    public init?(_ bytes: RawBytes) {
        guard bytes.count >= Self.fixed, let content = ContentPayload(bytes.from(Self.fixed)) else { return nil }
        source = InodeNumber(bytes.u64(at: 0))
        sourceOffset = bytes.u64(at: 8)
        self.content = content
    }

    public static func store(_ bytes: RawBytes, source: InodeNumber, offset: UInt64) {
        bytes.set(u64: source.value, at: 0)
        bytes.set(u64: offset, at: 8)
    }
}
