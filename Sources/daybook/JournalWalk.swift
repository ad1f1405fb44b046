// JournalWalk: the retained journal, record by record, each with the view that it applies to.
//
//   checkpoint C1 ──records──► C2 ──records──► C3 ──records──► end
//     view of C1                 view of C2      view of C3
//
// (V1) One reader goes through all of it, so the chain is verified from one interval to the next.
// (V2) Each interval has a view of its own, opened at its checkpoint: what records leave in memory is bounded by the interval.
// (V3) Where a frame cannot be read, the walk goes on at the next checkpoint, and says what was lost.
// (V4) The view is for paths only. Where the tree is damaged records are still given, without a view.

import Device
import Format
import Journal
import Memory
import Volume

/// The end of the journal, as recovery would find it.
struct JournalTail {
    /// Last record of the last whole frame.
    let last: SequenceNumber
    let time: Timestamp
    let position: JournalPosition
    let successor: BlockNumber
    let frames: UInt64
    let records: UInt64
    let end: JournalEnd

    var isTorn: Bool {
        if case .torn = end { return true }
        return false
    }
}

extension Image {
    /// Follows the journal from the newest checkpoint to its end without applying it. The last frame counts only if the data
    /// that it names is there (Volume/Replay.swift, L2).
    func tail() throws(OpenError) -> JournalTail {
        let start = superblock.checkpoint
        var (last, time, position) = (start.sequence, start.time, start.journal)
        var (frames, records) = (UInt64(0), UInt64(0))
        var successor: BlockNumber
        var end: JournalEnd?
        do throws(JournalError) {
            let reader = try JournalReader(
                device: device, id: superblock.id, chunkBlocks: superblock.chunkBlocks, from: start.journal, cut: superblock.cut)
            successor = reader.successor
            let held = ByteBuffer(capacity: FrameHeader.maximumPayload)
            var heldFrame: (header: FrameHeader, after: JournalPosition, successor: BlockNumber)?
            while true {
                let frame = try reader.next()
                if let heldFrame {
                    if frame == nil, let damage = try damagedData(heldFrame.header, held.bytes) {
                        end = .torn(damage)
                        break
                    }
                    (last, time, position) = (heldFrame.header.last, heldFrame.header.time, heldFrame.after)
                    successor = heldFrame.successor
                    frames += 1
                    records += UInt64(heldFrame.header.records)
                }
                guard let frame else { break }
                held.truncate(to: 0)
                held.append(frame.payload)
                heldFrame = (frame.header, frame.after, reader.successor)
            }
            if end == nil { end = reader.end }
        } catch { throw error.asOpenError(device) }
        return JournalTail(
            last: last, time: time, position: position, successor: successor, frames: frames, records: records,
            end: end ?? .end)
    }

    private func damagedData(_ header: FrameHeader, _ payload: RawBytes) throws(JournalError) -> String? {
        var damage: String?
        let frame = Frame(header: header, payload: payload, after: header.position)
        try frame.forEachRecord(mapping: { JournalError.damaged($0.description) }) { (record) throws(JournalError) in
            guard damage == nil, let content = ContentPayload(of: record) else { return }
            for segment in content.allSegments where segment.kind == .run {
                guard damage == nil else { return }
                try verify(segment) { block, isRight in
                    if !isRight && damage == nil { damage = "data \(block) of record \(record.sequence) was not written" }
                }
            }
        }
        return damage
    }

    /// Reads the blocks of a run and says of each whether it is what the record says.
    func verify(_ segment: Segment, _ body: (BlockNumber, _ isRight: Bool) -> Void) throws(JournalError) {
        guard segment.home.value < superblock.blockCount, segment.blocks <= superblock.blockCount - segment.home.value else {
            throw .damaged("\(segment.blocks) blocks from \(segment.home) lie outside of the image")
        }
        let buffer = AlignedBuffer(count: Int(segment.blocks) << blockShift)
        do throws(DeviceError) { try device.read(segment.home, into: buffer.bytes) } catch { throw .device(error) }
        for index in 0..<Int(segment.blocks) {
            let sum = buffer.bytes.slice(index << blockShift, blockSize).crc32c()
            body(segment.home + UInt64(index), sum == segment.data.u32(at: index * 4))
        }
    }
}

extension SequenceNumber {
    /// The last record, whichever it may be.
    static let unknown = SequenceNumber(.max)
}

extension JournalError {
    func asOpenError(_ device: any BlockDevice) -> OpenError {
        switch self {
        case .damaged(let text): OpenError(.damaged, "\(device.name): \(text)")
        case .device(let error): OpenError(.device, error.description)
        }
    }
}

extension ContentPayload {
    /// The payload of a record that changes a file's content.
    init?(of record: Record) {
        switch record.type {
        case .write, .truncate, .fallocate: self.init(record.payload)
        case .clone:
            guard let clone = ClonePayload(record.payload) else { return nil }
            self = clone.content
        default: return nil
        }
    }

    var allSegments: [Segment] {
        var result: [Segment] = []
        var at = Self.firstSegment
        for _ in 0..<segments {
            guard let segment = Segment(bytes, at: at) else { return result }
            result.append(segment)
            at = segment.next
        }
        return result
    }
}

/// Walks records with `sequence` in a range. What could not be read is told to `onLoss`.
final class JournalWalk {
    struct Step {
        let frame: FrameHeader
        let record: Record
        /// The state before the record; nil where the tree could not be read.
        let view: View?
    }

    private let image: Image
    private let checkpoints: [CheckpointItem]
    private let wantsView: Bool
    /// Called with what is missing and why.
    var onLoss: ((String) -> Void)?

    private var view: View?
    /// Index of the checkpoint whose interval is being walked.
    private var interval = 0

    /// `checkpoints`: retained ones, oldest first, not empty.
    init(_ image: Image, _ checkpoints: [CheckpointItem], wantsView: Bool = true) {
        self.image = image
        self.checkpoints = checkpoints
        self.wantsView = wantsView
    }

    /// The interval that holds `sequence`, or the first.
    func interval(of sequence: SequenceNumber) -> Int { max(0, (checkpoints.lastIndex { $0.sequence < sequence }) ?? 0) }

    /// The interval that holds what was committed at `time`, or the first. Times never decrease along the journal.
    func interval(of time: Timestamp) -> Int { max(0, (checkpoints.lastIndex { $0.time < time }) ?? 0) }

    var intervals: Int { checkpoints.count }
    /// Last sequence of an interval; of the newest `end`.
    func last(_ interval: Int, _ end: SequenceNumber) -> SequenceNumber {
        interval + 1 < checkpoints.count ? min(checkpoints[interval + 1].sequence, end) : end
    }

    /// Gives every record from the start of interval `first` up to `last` to `body`, until it returns false. Returns false if
    /// `body` did.
    @discardableResult func run(
        from first: Int, through last: SequenceNumber, _ body: (Step) throws(CommandError) -> Bool
    ) throws(CommandError) -> Bool {
        open(first)
        var reader: JournalReader?
        while checkpoints[interval].sequence < last {
            do throws(WalkInterruption) {
                if reader == nil { reader = try startReader() }
                return try walk(reader!, through: last, body)
            } catch {
                switch error {
                case .command(let error): throw error
                case .journal(let text, let at):
                    guard let next = checkpoints.indices.first(where: { $0 > interval && checkpoints[$0].sequence >= at }) else {
                        onLoss?("the journal ends after sequence \(SequenceNumber(max(at.value, 1) - 1)): \(text)")
                        return true
                    }
                    onLoss?("records \(at) to \(min(checkpoints[next].sequence, last)) cannot be read: \(text)")
                    guard checkpoints[next].sequence < last else { return true }
                    open(next)
                    reader = nil
                }
            }
        }
        return true
    }

    private enum WalkInterruption: Error {
        case command(CommandError)
        /// The record at which reading ended.
        case journal(String, SequenceNumber)
    }

    private func open(_ index: Int) {
        interval = index
        guard wantsView else { return }
        view = View(checkpoint: checkpoints[index], superblock: image.superblock, device: image.device, cacheBytes: 32 << 20)
    }

    private func startReader() throws(WalkInterruption) -> JournalReader {
        let item = checkpoints[interval]
        do throws(JournalError) {
            return try JournalReader(
                device: image.device, id: image.superblock.id, chunkBlocks: image.superblock.chunkBlocks, from: item.journal,
                cut: image.superblock.cut)
        } catch { throw .journal(error.description, item.sequence.next) }
    }

    private func walk(
        _ reader: JournalReader, through last: SequenceNumber, _ body: (Step) throws(CommandError) -> Bool
    ) throws(WalkInterruption) -> Bool {
        while true {
            let due = reader.position.next
            guard due <= last else { return true }
            enter(due)
            let frame: Frame?
            do throws(JournalError) { frame = try reader.next() } catch { throw .journal(error.description, due) }
            guard let frame else {
                if last == .unknown { return true }
                throw .journal(reader.end?.description ?? "nothing follows", due)
            }
            var goesOn = true
            try frame.forEachRecord(mapping: { WalkInterruption.journal($0.description, due) }) {
                (record) throws(WalkInterruption) in
                guard goesOn, record.sequence <= last else { return }
                do throws(CommandError) {
                    goesOn = try body(Step(frame: frame.header, record: record, view: view))
                } catch { throw .command(error) }
                if goesOn { apply(record) }
            }
            guard goesOn else { return false }
        }
    }

    /// Changes to the view of the newest checkpoint that lies before the record due.
    private func enter(_ due: SequenceNumber) {
        while interval + 1 < checkpoints.count, checkpoints[interval + 1].sequence < due { open(interval + 1) }
    }

    private func apply(_ record: Record) {
        guard let view else { return }
        do throws(ViewError) {
            try view.apply(record, .replay)
            view.trim()
            view.freed.removeAll(keepingCapacity: true)
            view.shared.removeAll(keepingCapacity: true)
        } catch {
            onLoss?("no paths from record \(record.sequence) to the next checkpoint: \(error.text)")
            self.view = nil
        }
    }
}
