// JournalReader: frames in order from one position to where the journal ends, and why it ends there.
//
//            ┌───────────── chunk s ─────────────┐      ┌──── chunk s+1 ────
//   start ──►│ frame │ frame │ … │ not a frame ──┼─┬───►│ header of the same epoch, same chain:   go on
//            └───────────────────────────────────┘ │    │ header of a later epoch whose cut is here: go on in it
//                                                  └──► │ neither: the journal ends
//
// (R1) A frame is taken only if it is the one due: ID, epoch, nonce, place, serial, sequence and chain agree and its CRC
//      holds. Anything else is where the journal may end.
// (R2) A cut, known from the superblock or from the header that follows it, is final: frames behind it were never
//      acknowledged and are not read, whole or not.
// (R3) A power cut can break only the last frame written. A whole frame of the same epoch further on, after one that is
//      not whole, is therefore damage: reported as such, never passed over.
//
// Reads only; several readers may read while the writer writes.

public import Device
public import Format
public import Memory

/// A whole frame, its records still encoded.
public struct Frame: Sendable {
    public let header: FrameHeader
    /// All records. Valid until the next call of the reader.
    public let payload: RawBytes
    /// Between this frame and the next.
    public let after: JournalPosition

    public init(header: FrameHeader, payload: RawBytes, after: JournalPosition) {
        self.header = header
        self.payload = payload
        self.after = after
    }

    /// Gives each record to `body`, checking encoding and sequence numbers.
    public func forEachRecord<E: Error>(
        mapping: (FormatError) -> E, _ body: (Record) throws(E) -> Void
    ) throws(E) {
        var at = 0
        for index in 0..<UInt64(header.records) {
            let record: Record
            do throws(FormatError) {
                record = try Record(payload.from(at))
                guard record.sequence.value == header.first.value + index else {
                    throw FormatError("record \(record.sequence) where \(header.first.value + index) is due")
                }
            } catch { throw mapping(error) }
            try body(record)
            at += record.bytes.count
        }
        guard at == payload.count else { throw mapping(FormatError("frame at \(header.address): bytes behind its last record")) }
    }
}

public enum JournalError: Error, Sendable, CustomStringConvertible {
    case damaged(String)
    case device(DeviceError)

    public var description: String {
        switch self {
        case .damaged(let text): text
        case .device(let error): error.description
        }
    }
}

/// Why a journal ends where it does.
public enum JournalEnd: Sendable, Equatable, CustomStringConvertible {
    /// Nothing more was written.
    case end
    /// A frame was begun and is not whole: the power failed while it was written.
    case torn(String)
    /// A recovery ended the journal here.
    case cut

    public var description: String {
        switch self {
        case .end: "nothing follows"
        case .torn(let what): "the last frame was not completely written (\(what))"
        case .cut: "an earlier recovery cut it here"
        }
    }
}

public final class JournalReader {
    public let device: any BlockDevice
    public let id: FilesystemID
    public let chunkBlocks: UInt32
    public private(set) var position: JournalPosition
    /// The chunk after the current one.
    public private(set) var successor: BlockNumber
    public private(set) var end: JournalEnd?
    public private(set) var frames: UInt64 = 0
    /// Called with each chunk entered after the first, and its successor.
    public var onChunk: ((ChunkHeader) -> Void)?

    private let cut: JournalPosition?
    /// Where the current chunk was cut, if it was (R2).
    private var chunkCut: JournalPosition?
    /// First block of the current chunk that is not to be read.
    private var limit: UInt32 { chunkCut?.block ?? chunkBlocks }
    private let window: AlignedBuffer
    private var windowStart: UInt64 = 0
    private var windowBlocks = 0

    /// Begins at `position`. `cut`, from the superblock, is where the last recovery ended the epoch before.
    public init(
        device: any BlockDevice, id: FilesystemID, chunkBlocks: UInt32, from position: JournalPosition, cut: JournalPosition?
    ) throws(JournalError) {
        self.device = device
        self.id = id
        self.chunkBlocks = chunkBlocks
        self.position = position
        self.cut = cut.flatMap { $0.epoch == 0 ? nil : $0 }
        window = AlignedBuffer(count: (FrameHeader.blocks(payload: FrameHeader.maximumPayload) + 128) << blockShift, zeroed: false)
        successor = BlockNumber(0)
        guard position.block >= 1, position.block <= chunkBlocks else {
            throw .damaged("journal position \(position.block) lies outside of its chunk")
        }
        guard let header = try Self.readHeader(device, id, position.chunk, chunkBlocks), header.position.serial == position.serial else {
            throw .damaged("journal chunk \(position.serial) at \(position.chunk): its header is missing or damaged")
        }
        successor = header.successor
        try lookAhead()
    }

    static func readHeader(
        _ device: any BlockDevice, _ id: FilesystemID, _ chunk: BlockNumber, _ chunkBlocks: UInt32
    ) throws(JournalError) -> ChunkHeader? {
        guard chunk.value > 0, chunk.value < device.blockCount, device.blockCount - chunk.value >= UInt64(chunkBlocks) else { return nil }
        let buffer = AlignedBuffer(count: blockSize)
        do throws(DeviceError) { try device.read(chunk, into: buffer.bytes) } catch { throw .device(error) }
        // Where it says the journal goes on something will be written: that has to be a place.
        guard let header = ChunkHeader(buffer.bytes, at: chunk, id: id), header.successor.value >= Superblock.reservedBlocks,
            header.successor.value < device.blockCount, device.blockCount - header.successor.value > UInt64(chunkBlocks)
        else { return nil }
        return header
    }

    /// The next frame, or nil at the end of the journal (then `end` says why).
    public func next() throws(JournalError) -> Frame? {
        while end == nil {
            if position.block < limit {
                switch try readFrame() {
                case .success(let frame):
                    frames += 1
                    position = frame.after
                    return frame
                case .failure(let refused):
                    if try enterSuccessor() { continue }
                    if let frame = try conclude(refused.rejection) {
                        frames += 1
                        position = frame.after
                        return frame
                    }
                }
            } else if try enterSuccessor() {
                continue
            } else {
                end = chunkCut != nil ? .cut : .end
            }
        }
        return nil
    }

    // MARK: frames

    private func readFrame() throws(JournalError) -> Result<Frame, FrameHeader.RejectionError> {
        let address = position.chunk + UInt64(position.block)
        let first = try bytes(address, 1)
        let length = FrameHeader.length(first) ?? blockSize
        let blocks = length >> blockShift
        // A length that runs past the chunk (or the cut) belongs to no whole frame.
        let available = Int(limit - position.block)
        let frame = try bytes(address, min(blocks, available))
        return FrameHeader.decode(frame, at: position, id: id).map { header in
            var after = position
            after.block += UInt32(blocks)
            after.chain = FrameHeader.chain(frame)
            after.next = header.last.next
            return Frame(header: header, payload: frame.slice(FrameHeader.size, Int(header.payload)), after: after)
        }
    }

    /// Blocks of the current chunk, through a window that reads ahead.
    private func bytes(_ address: BlockNumber, _ count: Int) throws(JournalError) -> RawBytes {
        if address.value < windowStart || address.value + UInt64(count) > windowStart + UInt64(windowBlocks) {
            let chunkEnd = position.chunk.value + UInt64(chunkBlocks)
            let blocks = min(window.bytes.count >> blockShift, Int(min(chunkEnd, device.blockCount) - address.value))
            guard blocks >= count else { throw .damaged("journal chunk at \(position.chunk) lies outside of the image") }
            // A little at first: most journals end soon after where one begins to read.
            let ask = max(count, windowBlocks == 0 ? min(blocks, 16) : blocks)
            windowBlocks = 0
            do throws(DeviceError) {
                try device.read(address, into: window.bytes.slice(0, ask << blockShift))
            } catch { throw .device(error) }
            windowStart = address.value
            windowBlocks = ask
        }
        return window.bytes.slice(Int(address.value - windowStart) << blockShift, count << blockShift)
    }

    /// Forgets what was read ahead: a live journal may have grown.
    public func refresh() {
        windowBlocks = 0
        end = nil
    }

    // MARK: chunks

    /// Reads the header after the current chunk only to learn of a cut in this one.
    private func lookAhead() throws(JournalError) {
        chunkCut = nil
        func take(_ cut: JournalPosition) {
            guard cut.chunk == position.chunk, cut.serial == position.serial, cut.epoch == position.epoch,
                cut.block >= 1, cut.block <= limit
            else { return }
            chunkCut = cut
        }
        if let cut { take(cut) }
        if let header = try Self.readHeader(device, id, successor, chunkBlocks), header.position.serial == position.serial + 1,
            header.position.epoch > position.epoch
        { take(header.cut) }
    }

    private func enterSuccessor() throws(JournalError) -> Bool {
        guard let header = try Self.readHeader(device, id, successor, chunkBlocks), header.position.serial == position.serial + 1 else {
            return false
        }
        let next = header.position
        if next.epoch == position.epoch {
            guard chunkCut == nil, next.nonce == position.nonce, next.chain == position.chain, next.next == position.next else { return false }
        } else {
            guard next.epoch > position.epoch, header.cut == position, next.next == position.next else { return false }
        }
        position = next
        successor = header.successor
        windowBlocks = 0
        try lookAhead()
        onChunk?(header)
        return true
    }

    // MARK: the end

    /// The frame due is not there. Is it the end, a torn tail, or damage? Or was it, in a live journal, only being written when it
    /// was read: then it is returned.
    private func conclude(_ rejection: FrameHeader.Rejection) throws(JournalError) -> Frame? {
        if chunkCut != nil {
            throw .damaged(
                "journal frame due at \(position.chunk + UInt64(position.block)) (sequence \(position.next)) lies before the"
                    + " cut at block \(limit) of its chunk, but is not readable: \(rejection)")
        }
        if let later = try laterFrame() {
            windowBlocks = 0
            if case .success(let frame) = try readFrame() { return frame }
            throw .damaged(
                "journal frame due at \(position.chunk + UInt64(position.block)) (sequence \(position.next)) is not readable"
                    + " (\(rejection)), but a later one of the same epoch is whole at \(later)")
        }
        if case .torn(let what) = rejection { end = .torn(what) } else { end = .end }
        return nil
    }

    /// A whole frame of this epoch further on in the chunk, or a successor chunk opened in this epoch (R3).
    private func laterFrame() throws(JournalError) -> BlockNumber? {
        var block = position.block + 1
        while block < chunkBlocks {
            let address = position.chunk + UInt64(block)
            let first = try bytes(address, 1)
            if let length = FrameHeader.length(first), length >> blockShift <= Int(chunkBlocks - block) {
                let frame = try bytes(address, length >> blockShift)
                if FrameHeader.isWhole(frame, epoch: position.epoch, nonce: position.nonce, at: address, id: id,
                    after: position.next)
                { return address }
            }
            block += 1
        }
        if let header = try Self.readHeader(device, id, successor, chunkBlocks), header.position.serial == position.serial + 1,
            header.position.epoch == position.epoch, header.position.nonce == position.nonce,
            header.position.next > position.next
        { return successor }
        return nil
    }
}
