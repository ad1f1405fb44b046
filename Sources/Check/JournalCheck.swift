// JournalCheck: the retained journal, from the oldest checkpoint's position to the newest one's, every frame and record.
//
//   checkpoint C0 ──► frames ──► end of chunk s, as the header of chunk s+1 states it ──► … ──► newest checkpoint's position
//
// Between these two nothing may be missing: recovery has settled where each epoch ends, and a cut is stated in the header of the
// chunk that begins the next one.

import Device
import Format
import Memory

extension Checker {
    func checkJournal() throws(Cancelled) {
        guard let oldest = checkpoints.first, !chunks.isEmpty else {
            ownersAreMissing = true
            return
        }
        let walk = ChunkWalk(self, from: oldest.journal)
        let first = oldest.sequence.value
        let span = Double(max(1, superblock.checkpoint.sequence.value &- first))
        for index in chunks.indices where chunks[index].serial >= oldest.journal.serial {
            if isCancelled() { throw Cancelled() }
            let next = index + 1 < chunks.count ? chunks[index + 1].item.address : nil
            guard walk.chunk(chunks[index].serial, chunks[index].item, next: next) else { break }
            progress(.journal, Double(walk.position.next.value &- first) / span)
        }
        walk.claimSuccessor()
        walk.finish()
        report.frames = walk.frames
        report.records = walk.records
    }
}

private final class ChunkWalk {
    unowned let checker: Checker
    var position: JournalPosition
    var frames: UInt64 = 0
    var records: UInt64 = 0
    private var time: Timestamp
    private var waiting: ArraySlice<CheckpointItem>
    private let buffer: AlignedBuffer
    private let header = AlignedBuffer(count: blockSize)
    private var entered = false
    private let start: JournalPosition

    init(_ checker: Checker, from start: JournalPosition) {
        self.checker = checker
        self.start = start
        position = start
        time = checker.checkpoints[0].time
        waiting = checker.checkpoints[...]
        buffer = AlignedBuffer(count: Int(checker.superblock.chunkBlocks) << blockShift, zeroed: false)
    }

    /// Where the chunk's frames end, if the header of the following one says so.
    private enum End {
        case newest(JournalPosition)
        case continued(ChunkHeader)
    }

    /// Walks one chunk; false when the journal cannot be followed any further.
    func chunk(_ serial: UInt64, _ item: ChunkItem, next: BlockNumber?) -> Bool {
        guard let own = readHeader(item.address, serial) else { return false }
        guard own.position.serial == serial, own.position.epoch == item.epoch, own.position.next == item.first else {
            checker.found(.chunkHeader, "chunk \(serial): its header is that of chunk \(own.position.serial)", block: item.address)
            return false
        }
        if !entered {
            entered = true
            guard start.chunk == item.address, start.serial == serial, start.epoch == own.position.epoch, start.nonce == own.position.nonce,
                start.next >= own.position.next
            else {
                checker.found(.checkpointPosition, "checkpoint \(checker.checkpoints[0].sequence) goes on elsewhere than in chunk \(serial)", block: item.address)
                return false
            }
        } else {
            position = own.position
        }
        let end: End
        if let next {
            guard own.successor == next else {
                checker.found(.chunkHeader, "chunk \(serial) is followed by \(own.successor), the index says \(next)", block: item.address)
                return false
            }
            guard let following = readHeader(next, serial + 1) else { return false }
            end = .continued(following)
        } else {
            end = .newest(checker.superblock.checkpoint.journal)
        }
        do throws(DeviceError) { try checker.device.read(item.address, into: buffer.bytes) } catch {
            checker.found(.frameUnreadable, error.description, block: item.address)
            return false
        }
        return frames(serial, end)
    }

    /// The last chunk's successor is named by nothing but its header.
    func claimSuccessor() {
        guard let last = checker.chunks.last, (try? checker.device.read(last.item.address, into: header.bytes)) != nil,
            let own = ChunkHeader(header.bytes, at: last.item.address, id: checker.superblock.id)
        else {
            checker.ownersAreMissing = true
            return
        }
        let size = UInt64(checker.superblock.chunkBlocks)
        if checker.claim(own.successor, size, "the journal's next chunk"), own.successor.value % size != 0 {
            checker.found(.chunkHeader, "the next chunk does not begin at a multiple of its size", block: own.successor)
        }
    }

    private func readHeader(_ address: BlockNumber, _ serial: UInt64) -> ChunkHeader? {
        do throws(DeviceError) { try checker.device.read(address, into: header.bytes) } catch {
            checker.found(.chunkHeader, "chunk \(serial): \(error.description)", block: address)
            return nil
        }
        guard let found = ChunkHeader(header.bytes, at: address, id: checker.superblock.id) else {
            checker.found(.chunkHeader, "chunk \(serial): no valid header", block: address)
            return nil
        }
        return found
    }

    private func frames(_ serial: UInt64, _ end: End) -> Bool {
        while true {
            meet()
            if isAt(end) { break }
            guard position.block < checker.superblock.chunkBlocks else {
                checker.found(.frameUnreadable, "the journal should go on after sequence \(position.next.value &- 1), but chunk \(serial) is full", block: position.chunk)
                return false
            }
            let at = Int(position.block) << blockShift
            switch FrameHeader.decode(buffer.bytes.from(at), at: position, id: checker.superblock.id) {
            case .failure(let error):
                checker.found(
                    .frameUnreadable, "where sequence \(position.next) is due: \(error.rejection)", block: position.chunk + UInt64(position.block))
                return false
            case .success(let frame): take(frame, buffer.bytes.from(at))
            }
        }
        switch end {
        case .newest: return checkBehind()
        case .continued(let following):
            let next = following.position
            guard next.serial == serial + 1, next.next == position.next else {
                checker.found(.chunkHeader, "chunk \(serial + 1) begins with sequence \(next.next), \(position.next) is due", block: next.chunk)
                return false
            }
            leave(before: next)
            return true
        }
    }

    private func isAt(_ end: End) -> Bool {
        switch end {
        case .newest(let newest): return position.next >= newest.next
        case .continued(let following):
            if following.position.epoch == position.epoch {
                return following.position.nonce == position.nonce && following.position.chain == position.chain
            }
            return following.position.epoch > position.epoch && following.cut == position
        }
    }

    private func take(_ frame: FrameHeader, _ bytes: RawBytes) {
        let address = frame.address
        if frame.time < time { checker.found(.recordMalformed, "the frame of sequence \(frame.first) is older than the one before", block: address) }
        time = frame.time
        frames += 1
        var at = FrameHeader.size
        let end = FrameHeader.size + Int(frame.payload)
        for index in 0..<UInt64(frame.records) {
            do throws(FormatError) {
                let record = try Record(bytes.slice(at, end - at))
                guard record.sequence.value == frame.first.value &+ index else {
                    throw FormatError("record \(record.sequence), where \(frame.first.value &+ index) is due")
                }
                at += record.bytes.count
                records += 1
            } catch {
                checker.found(.recordMalformed, error.description, block: address)
                at = end
                break
            }
        }
        if at != end { checker.found(.recordMalformed, "the frame of sequence \(frame.first) has bytes behind its last record", block: address) }
        position.block += UInt32(FrameHeader.blocks(payload: Int(frame.payload)))
        position.chain = FrameHeader.chain(bytes)
        position.next = SequenceNumber(frame.last.value &+ 1)
    }

    // MARK: checkpoints on the way

    /// Checkpoints that go on exactly here.
    private func meet() {
        while let first = waiting.first, first.journal == position { waiting = waiting.dropFirst() }
        while let first = waiting.first, first.journal.next < position.next { miss(first) }
    }

    /// The next chunk is entered: a checkpoint that goes on in this one should have been met.
    private func leave(before next: JournalPosition) {
        while let first = waiting.first, first.journal.serial < next.serial { miss(first) }
    }

    private func miss(_ item: CheckpointItem) {
        checker.found(.checkpointPosition, "checkpoint \(item.sequence) goes on at block \(item.journal.block) of chunk \(item.journal.serial)", block: item.journal.chunk)
        waiting = waiting.dropFirst()
    }

    func finish() {
        // When the walk broke off, that has been reported.
        guard position.next.value &- 1 == checker.superblock.checkpoint.sequence.value else { return }
        while let first = waiting.first { miss(first) }
    }

    /// Behind a clean checkpoint there is nothing.
    private func checkBehind() -> Bool {
        guard position == checker.superblock.checkpoint.journal else { return true }
        guard checker.superblock.isClean, position.block < checker.superblock.chunkBlocks,
            checker.superblock.epoch == position.epoch
        else { return true }
        let bytes = buffer.bytes.from(Int(position.block) << blockShift)
        if case .success = FrameHeader.decode(bytes, at: position, id: checker.superblock.id) {
            checker.found(.journalContinues, "a frame of sequence \(position.next)", block: position.chunk + UInt64(position.block))
        }
        return true
    }
}
