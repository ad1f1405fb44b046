// Replay: frames from a checkpoint on, applied to a view.
//
// (L1) A frame is applied whole or not at all, in chain order.
// (L2) Only the last frame of the journal can have been cut off by a power failure together with its data; its data
//      blocks are therefore read and compared with its records before it is applied, and it is not applied if they
//      differ. Frames before it are covered by a flush (invariant 1).

import Device
public import Format
public import Journal
import Memory

/// How far a replay went and why it ended.
public struct ReplayResult: Sendable {
    public let from: SequenceNumber
    public let to: SequenceNumber
    public let frames: UInt64
    public let records: UInt64
    /// Behind the last frame applied.
    public let position: JournalPosition
    public let successor: BlockNumber
    public let end: JournalEnd?
    public let lastTime: Timestamp
}

public enum ReplayError: Error, Sendable {
    case journal(JournalError)
    case view(ViewError)

    public var text: String {
        switch self {
        case .journal(let error): error.description
        case .view(let error): error.text
        }
    }
}

public final class Replay {
    public let view: View
    public let reader: JournalReader
    private let held = ByteBuffer(capacity: FrameHeader.maximumPayload)
    private var heldFrame: (header: FrameHeader, after: JournalPosition, successor: BlockNumber, chunks: [ChunkHeader])?
    private var lastSuccessor: BlockNumber
    private var position: JournalPosition
    private var records: UInt64 = 0
    private var frames: UInt64 = 0
    private var lastTime: Timestamp
    private var torn: JournalEnd?
    private let start: SequenceNumber

    /// Called before the records of each frame are applied, and for each record after it was applied.
    public var onFrame: ((FrameHeader) throws(ViewError) -> Void)?
    public var onRecord: ((Record) throws(ViewError) -> Void)?
    /// Called for each chunk entered, before its frames.
    public var onChunk: ((ChunkHeader) throws(ViewError) -> Void)?
    private var chunks: [ChunkHeader] = []

    public init(_ view: View, from checkpoint: CheckpointItem) throws(ReplayError) {
        self.view = view
        do throws(JournalError) {
            reader = try JournalReader(
                device: view.device, id: view.superblock.id, chunkBlocks: view.superblock.chunkBlocks,
                from: checkpoint.journal, cut: view.superblock.cut)
        } catch { throw .journal(error) }
        position = checkpoint.journal
        lastSuccessor = reader.successor
        lastTime = checkpoint.time
        start = checkpoint.sequence
        reader.onChunk = { [unowned self] header in chunks.append(header) }
    }

    /// Applies frames until the journal ends or `stop` says of a frame that it is not wanted; within the last wanted frame,
    /// records up to `limit`.
    public func run(
        limit: SequenceNumber = SequenceNumber(.max), stop: (FrameHeader) -> Bool = { _ in false }
    ) throws(ReplayError) -> ReplayResult {
        while view.sequence < limit {
            let frame: Frame?
            do throws(JournalError) { frame = try reader.next() } catch { throw .journal(error) }
            // The frame read before this one is whole and not the last.
            if let heldFrame {
                self.heldFrame = nil
                if stop(heldFrame.header) { break }
                if frame == nil && heldFrame.header.last > view.superblock.checkpoint.sequence {
                    if let damage = try firstDamagedBlock(heldFrame.header) {
                        torn = .torn(damage)
                        break
                    }
                }
                try enter(heldFrame.chunks)
                try apply(heldFrame.header, limit)
                position = heldFrame.after
                lastSuccessor = heldFrame.successor
            }
            guard let frame else { break }
            held.truncate(to: 0)
            held.append(frame.payload)
            heldFrame = (frame.header, frame.after, reader.successor, chunks)
            chunks = []
        }
        // A chunk that was opened but holds no frame yet is where the journal stands.
        if torn == nil, reader.end != nil, heldFrame == nil, view.sequence.next == reader.position.next {
            try enter(chunks)
            chunks = []
            position = reader.position
            lastSuccessor = reader.successor
        }
        return ReplayResult(
            from: start, to: view.sequence, frames: frames, records: records, position: position, successor: lastSuccessor,
            end: torn ?? reader.end, lastTime: lastTime)
    }

    private func enter(_ chunks: [ChunkHeader]) throws(ReplayError) {
        for header in chunks {
            do throws(ViewError) { try onChunk?(header) } catch { throw .view(error) }
        }
    }

    private func apply(_ header: FrameHeader, _ limit: SequenceNumber) throws(ReplayError) {
        do throws(ViewError) {
            try onFrame?(header)
            try eachRecord(header) { (record) throws(ViewError) in
                guard record.sequence <= limit else { return }
                try view.apply(record, .replay)
                view.trim()
                records += 1
                try onRecord?(record)
            }
        } catch { throw .view(error) }
        frames += 1
        lastTime = header.time
    }

    private func eachRecord(_ header: FrameHeader, _ body: (Record) throws(ViewError) -> Void) throws(ViewError) {
        let frame = Frame(header: header, payload: held.bytes, after: position)
        try frame.forEachRecord(mapping: { ViewError.damaged($0.description) }, body)
    }

    /// A data block of the frame that is not what its record says, if any.
    private func firstDamagedBlock(_ header: FrameHeader) throws(ReplayError) -> String? {
        var buffer: AlignedBuffer?
        var damage: String?
        do throws(ViewError) {
            try eachRecord(header) { (record) throws(ViewError) in
                guard damage == nil, let content = contentPayload(record) else { return }
                var at = ContentPayload.firstSegment
                for _ in 0..<content.segments {
                    guard let segment = Segment(content.bytes, at: at) else { return }
                    at = segment.next
                    guard segment.kind == .run else { continue }
                    let blockCount = view.superblock.blockCount
                    guard segment.home.value < blockCount, segment.blocks <= blockCount - segment.home.value else {
                        throw .damaged("record \(record.sequence): blocks outside of the image")
                    }
                    let count = Int(segment.blocks) << blockShift
                    if buffer == nil || buffer!.bytes.count < count { buffer = AlignedBuffer(count: count) }
                    let bytes = buffer!.bytes.slice(0, count)
                    do throws(DeviceError) { try view.device.read(segment.home, into: bytes) } catch { throw .device(error) }
                    for index in 0..<Int(segment.blocks)
                    where bytes.slice(index << blockShift, blockSize).crc32c() != segment.data.u32(at: index * 4) {
                        damage = "data \(segment.home + UInt64(index)) of record \(record.sequence) was not written"
                        return
                    }
                }
            }
        } catch { throw .view(error) }
        withExtendedLifetime(buffer) {}
        return damage
    }

    private func contentPayload(_ record: Record) -> ContentPayload? {
        switch record.type {
        case .write, .truncate, .fallocate: ContentPayload(record.payload)
        default: nil
        }
    }
}
