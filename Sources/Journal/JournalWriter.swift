// JournalWriter: from records to frames on the medium.
//
//   append ──► pending ──seal──► sealed, queued ──write + flush──► durable
//              (records)         (position, chain, CRC)
//
// (W1) Sequence numbers are given by `append`; the order of appending is the order of applying and of frames.
// (W2) Frames are written one at a time: frame n+1 only after the flush that covers n (invariant 1).
// (W3) A chunk's successor is allocated when the chunk is opened and named in its header, so a reader always knows where to
//      look next. The header is written together with the chunk's first frame, before the same flush.
// (W4) After any failed write or flush nothing more is written in this epoch (invariant 2).
//
// If the power fails between seal and flush, the frame may be there, torn, or missing: the reader decides by its CRC (and
// recovery by the CRCs of the data it names).
//
// Appending and sealing happen under the volume's lock; writing without it, by one thread at a time.

public import Device
public import Format
public import Memory

/// A frame on its way to the medium.
public final class SealedFrame: @unchecked Sendable {
    public let header: FrameHeader
    public let after: JournalPosition
    let buffer: ByteBuffer
    let blocks: Int
    let opened: ChunkHeader?

    init(header: FrameHeader, after: JournalPosition, buffer: ByteBuffer, blocks: Int, opened: ChunkHeader?) {
        self.header = header
        self.after = after
        self.buffer = buffer
        self.blocks = blocks
        self.opened = opened
    }
}

public final class JournalWriter: @unchecked Sendable {
    public let device: any BlockDevice
    public let id: FilesystemID
    public let chunkBlocks: UInt32

    /// Where the next frame to be sealed goes.
    public private(set) var position: JournalPosition
    public private(set) var successor: BlockNumber
    /// Commit time of the last sealed frame.
    public private(set) var lastTime: Timestamp
    /// The epoch to begin with the next chunk, after a recovery.
    private var comingEpoch: (epoch: UInt64, nonce: UInt64)?

    private var pending: ByteBuffer
    private var records: UInt32 = 0
    private var spare: [ByteBuffer] = []

    /// Starts behind `position`. With `newEpoch` the next frame opens the successor chunk and that epoch in it.
    public init(
        device: any BlockDevice, id: FilesystemID, chunkBlocks: UInt32, position: JournalPosition, successor: BlockNumber,
        lastTime: Timestamp, newEpoch: (epoch: UInt64, nonce: UInt64)?
    ) {
        self.device = device
        self.id = id
        self.chunkBlocks = chunkBlocks
        self.position = position
        self.successor = successor
        self.lastTime = lastTime
        comingEpoch = newEpoch
        pending = ByteBuffer(capacity: 64 << 10)
        begin()
    }

    private func begin() {
        pending.truncate(to: 0)
        _ = pending.append(zeros: FrameHeader.size)
        records = 0
    }

    /// Number of the last record appended.
    public var lastAppended: SequenceNumber { SequenceNumber(position.next.value + UInt64(records) - 1) }
    public var pendingRecords: Int { Int(records) }
    public var pendingBytes: Int { pending.count - FrameHeader.size }

    /// Whether `bytes` of records still fit the pending frame.
    public func fits(_ bytes: Int) -> Bool { pendingBytes + bytes <= FrameHeader.maximumPayload }

    /// Adds a record of zeros with its header filled in, and lends it to have its payload filled in. It must fit.
    public func append(
        _ type: RecordType, payload: Int, time: Timestamp, uid: UInt32, gid: UInt32, pid: UInt32
    ) -> RawBytes {
        let size = Record.size(payload: payload)
        precondition(fits(size))
        let bytes = pending.append(zeros: size)
        RecordHeader(type: type, sequence: lastAppended.next, time: time, uid: uid, gid: gid, pid: pid).store(bytes)
        records += 1
        return bytes
    }

    /// Takes back the last record, which could not be applied and of which nothing has been applied.
    public func retract(_ record: RawBytes) {
        pending.truncate(to: pending.count - record.count)
        records -= 1
    }

    // MARK: sealing

    /// Room for a frame of so many blocks in the current chunk is lacking: sealing will open the next one.
    private func mustOpen(_ blocks: Int) -> Bool { comingEpoch != nil || Int(position.block) + blocks > Int(chunkBlocks) }

    /// Whether the pending frame and `bytes` more fit into the current chunk, so that sealing opens none.
    public func hasRoom(_ bytes: Int) -> Bool { !mustOpen(FrameHeader.blocks(payload: pendingBytes + bytes)) }

    /// Ends the pending frame. `allocateChunk` gives the successor of a chunk that has to be opened, and is told of the
    /// chunk being opened; it may not fail (the reserve holds chunks back). Nil when there are no records.
    public func seal(time: Timestamp, allocateChunk: (JournalPosition) -> BlockNumber) -> SealedFrame? {
        guard records > 0 else { return nil }
        let payload = pendingBytes
        let blocks = FrameHeader.blocks(payload: payload)
        var opened: ChunkHeader?
        if mustOpen(blocks) {
            var next = position
            next.chunk = successor
            next.serial += 1
            next.block = 1
            var cut = JournalPosition(
                chunk: BlockNumber(0), serial: 0, block: 0, epoch: 0, nonce: 0, chain: 0, next: SequenceNumber(0))
            if let coming = comingEpoch {
                cut = position
                next.epoch = coming.epoch
                next.nonce = coming.nonce
                comingEpoch = nil
            }
            successor = allocateChunk(next)
            opened = ChunkHeader(position: next, successor: successor, cut: cut)
            position = next
        }
        let padding = (blocks << blockShift) - pending.count
        if padding > 0 { _ = pending.append(zeros: padding) }
        lastTime = max(lastTime, time)
        let header = FrameHeader(
            position: position, last: lastAppended, time: lastTime, payload: UInt32(payload), records: records, flags: 0)
        let chain = header.seal(pending.bytes, id: id)
        position.block += UInt32(blocks)
        position.chain = chain
        position.next = header.last.next
        let frame = SealedFrame(header: header, after: position, buffer: pending, blocks: blocks, opened: opened)
        pending = spare.popLast() ?? ByteBuffer(capacity: 64 << 10)
        begin()
        return frame
    }

    /// Gives a written frame's buffer back, under the lock.
    public func recycle(_ frame: SealedFrame) {
        if spare.count < 4 { spare.append(frame.buffer) }
    }

    // MARK: writing

    /// Writes the frame (and its chunk's header). Durable only after the device's next flush.
    public func write(_ frame: SealedFrame) throws(DeviceError) {
        if let opened = frame.opened {
            let page = AlignedBuffer(count: blockSize)
            opened.store(page.bytes, id: id)
            try device.write(opened.position.chunk, page.bytes)
        }
        try device.write(frame.header.address, frame.buffer.bytes)
    }
}
