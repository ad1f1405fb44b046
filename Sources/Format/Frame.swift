// Frame and chunk headers: the journal's chain (Docs/FORMAT.md, "Journal").
//
//   chunk   │ header │ frame │ frame │   frame   │ frame │ … zeros │
//             1 block  each a whole number of blocks
//
//   frame   │ header, 128 bytes │ records, each a multiple of 8 bytes │ zeros to the block's end │
//
// A frame is accepted when its CRC over everything holds and ID, epoch, nonce, address, serial, first sequence and
// chain are those expected: nothing left over from another time or place can pass, and nothing written by a user (the
// nonce is secret and new in each epoch).

public import Memory

public struct FrameHeader: Sendable, Equatable {
    public static let size = 128
    static let crc = 4
    /// Bytes of records in one frame, at most. Half of the smallest chunk, so that a frame always fits a fresh one.
    public static let maximumPayload = 512 << 10

    /// A flush came between this frame and the data that it names.
    public static let flagDataFlushed: UInt32 = 1

    public var position: JournalPosition
    public var last: SequenceNumber
    public var time: Timestamp
    public var payload: UInt32
    public var records: UInt32
    public var flags: UInt32

    public init(
        position: JournalPosition, last: SequenceNumber, time: Timestamp, payload: UInt32, records: UInt32, flags: UInt32
    ) {
        self.position = position
        self.last = last
        self.time = time
        self.payload = payload
        self.records = records
        self.flags = flags
    }

    public var first: SequenceNumber { position.next }
    public var address: BlockNumber { position.chunk + UInt64(position.block) }

    /// Blocks that a frame with so many bytes of records takes.
    public static func blocks(payload: Int) -> Int { (size + payload + blockSize - 1) >> blockShift }

    /// Fills in the header of `frame`, whose records are already in place; returns the hash that the next must carry.
    public func seal(_ frame: RawBytes, id: FilesystemID) -> UInt64 {
        frame.zero(0, Self.size)
        frame.set(u32: magicFrame, at: 0)
        frame.set(u64: id.high, at: 8)
        frame.set(u64: id.low, at: 16)
        frame.set(u64: position.epoch, at: 24)
        frame.set(u64: position.nonce, at: 32)
        frame.set(u64: address.value, at: 40)
        frame.set(u64: position.serial, at: 48)
        frame.set(u64: position.next.value, at: 56)
        frame.set(u64: last.value, at: 64)
        frame.set(i64: time.nanoseconds, at: 72)
        frame.set(u32: payload, at: 80)
        frame.set(u32: records, at: 84)
        frame.set(u64: position.chain, at: 88)
        frame.set(u32: flags, at: 96)
        frame.set(u32: frame.crc32c(skipping: Self.crc), at: Self.crc)
        return Self.chain(frame)
    }

    /// The 64-bit hash of a sealed frame's header, keyed with its nonce. The header holds the CRC of all the rest.
    public static func chain(_ frame: RawBytes) -> UInt64 {
        NameHash.sipHash24(frame.slice(0, size), HashSeed(k0: frame.u64(at: 32), k1: frame.u64(at: 24)))
    }

    /// Why a block is not the expected frame's first.
    public enum Rejection: Sendable, Equatable, CustomStringConvertible {
        /// All zero, or something else than a frame: where the journal ends.
        case absent
        /// A frame, but not of this place in the chain.
        case foreign(String)
        /// The expected frame, not whole.
        case torn(String)

        public var description: String {
            switch self {
            case .absent: "no frame"
            case .foreign(let what): "a frame of another time or place (\(what))"
            case .torn(let what): "an incomplete frame (\(what))"
            }
        }
    }

    /// Bytes that the frame beginning in `block` says it takes, if that is possible at all.
    public static func length(_ block: RawBytes) -> Int? {
        guard block.u32(at: 0) == magicFrame, block.u32(at: 80) <= maximumPayload else { return nil }
        return blocks(payload: Int(block.u32(at: 80))) << blockShift
    }

    /// Decodes the frame held in `frame` (whole blocks) if it is the one due at `position`.
    public static func decode(_ frame: RawBytes, at position: JournalPosition, id: FilesystemID) -> Result<FrameHeader, RejectionError> {
        func no(_ rejection: Rejection) -> Result<FrameHeader, RejectionError> { .failure(RejectionError(rejection: rejection)) }
        guard frame.u32(at: 0) == magicFrame else { return no(.absent) }
        let address = position.chunk + UInt64(position.block)
        guard frame.u64(at: 8) == id.high, frame.u64(at: 16) == id.low else { return no(.foreign("filesystem")) }
        guard frame.u64(at: 24) == position.epoch, frame.u64(at: 32) == position.nonce else {
            return no(.foreign("epoch \(frame.u64(at: 24)), expected \(position.epoch)"))
        }
        guard frame.u64(at: 40) == address.value, frame.u64(at: 48) == position.serial else {
            return no(.foreign("written for \(BlockNumber(frame.u64(at: 40))), chunk \(frame.u64(at: 48))"))
        }
        guard let length = length(frame), length <= frame.count else { return no(.torn("impossible length")) }
        let bytes = frame.slice(0, length)
        guard bytes.crc32c(skipping: crc) == bytes.u32(at: crc) else { return no(.torn("checksum")) }
        let header = FrameHeader(
            position: position, last: SequenceNumber(frame.u64(at: 64)), time: Timestamp(nanoseconds: frame.i64(at: 72)),
            payload: frame.u32(at: 80), records: frame.u32(at: 84), flags: frame.u32(at: 96))
        guard frame.u64(at: 88) == position.chain else { return no(.foreign("chain")) }
        guard frame.u64(at: 56) == position.next.value else {
            return no(.foreign("sequence \(frame.u64(at: 56)), expected \(position.next)"))
        }
        guard header.records > 0, header.last.value &- header.first.value == UInt64(header.records) - 1 else {
            return no(.torn("\(header.records) records up to \(header.last)"))
        }
        return .success(header)
    }

    /// Whether `frame` is a whole frame of this epoch, written at `address`, of a sequence above `after`.
    public static func isWhole(
        _ frame: RawBytes, epoch: UInt64, nonce: UInt64, at address: BlockNumber, id: FilesystemID, after: SequenceNumber
    ) -> Bool {
        frame.u64(at: 8) == id.high && frame.u64(at: 16) == id.low && frame.u64(at: 24) == epoch
            && frame.u64(at: 32) == nonce && frame.u64(at: 40) == address.value && frame.u64(at: 56) > after.value
            && frame.crc32c(skipping: crc) == frame.u32(at: crc)
    }

    public struct RejectionError: Error, Sendable { public let rejection: Rejection }
}

/// The first block of a chunk.
public struct ChunkHeader: Sendable, Equatable {
    static let crc = 4

    /// Where this chunk's first frame goes and what it must agree with.
    public var position: JournalPosition
    /// The chunk that follows: allocated before this header is written, and fixed by it.
    public var successor: BlockNumber
    /// When this chunk begins an epoch: where the epoch before was cut (`cut.epoch` is 0 otherwise).
    public var cut: JournalPosition

    public init(position: JournalPosition, successor: BlockNumber, cut: JournalPosition) {
        self.position = position
        self.successor = successor
        self.cut = cut
    }

    public func store(_ page: RawBytes, id: FilesystemID) {
        page.zero()
        page.set(u32: magicChunk, at: 0)
        page.set(u64: id.high, at: 8)
        page.set(u64: id.low, at: 16)
        page.set(u64: successor.value, at: 24)
        position.store(page.slice(32, JournalPosition.size))
        cut.store(page.slice(96, JournalPosition.size))
        page.set(u32: page.crc32c(skipping: Self.crc), at: Self.crc)
    }

    /// Decodes the header found at `address`; nil when there is none, or one of another filesystem or place.
    public init?(_ page: RawBytes, at address: BlockNumber, id: FilesystemID) {
        guard page.u32(at: 0) == magicChunk, page.u32(at: Self.crc) == page.crc32c(skipping: Self.crc),
            page.u64(at: 8) == id.high, page.u64(at: 16) == id.low
        else { return nil }
        successor = BlockNumber(page.u64(at: 24))
        position = JournalPosition(page.slice(32, JournalPosition.size))
        cut = JournalPosition(page.slice(96, JournalPosition.size))
        guard position.chunk == address, position.block == 1, position.serial < Limit.count, position.epoch < Limit.count,
            position.next.value < Limit.count
        else { return nil }
    }
}
