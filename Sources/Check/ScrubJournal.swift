// ScrubJournal: the Scrubber's way through the journal's frames, and the data that their records name.

import Format
import Journal
import Memory

extension Scrubber {
    func scrubJournal() throws(Cancelled) {
        var from = 0
        while from < checkpoints.count {
            if isCancelled() { throw Cancelled() }
            var due = checkpoints[from].sequence.next
            let problem: String?
            var block: BlockNumber?
            do throws(JournalError) {
                let reader = try JournalReader(
                    device: device, id: superblock.id, chunkBlocks: superblock.chunkBlocks, from: checkpoints[from].journal,
                    cut: superblock.cut)
                block = reader.position.chunk + UInt64(reader.position.block)
                try follow(reader, &due, &block)
                problem = due <= superblock.checkpoint.sequence ? reader.end?.description ?? "nothing follows" : nil
            } catch { problem = error.description }
            if isCancelled() { throw Cancelled() }
            guard let problem else { return }
            if isGivenUp(checkpoints[from].sequence) {
                from += 1
                continue
            }
            let next = checkpoints.indices.first { $0 > from && checkpoints[$0].sequence >= due }
            var damage = Damage(.journal, block, problem)
            damage.first = due
            // No frame of theirs can be read: the times are those of the checkpoints on both sides.
            damage.firstTime = checkpoints.last { $0.sequence < due }?.time
            if let next {
                damage.last = checkpoints[next].sequence
                damage.lastTime = checkpoints[next].time
            }
            found(damage)
            guard let next else { return }
            from = next
        }
    }

    /// Every frame to the end of the journal. `due`: the first record that was not read.
    func follow(_ reader: JournalReader, _ due: inout SequenceNumber, _ block: inout BlockNumber?) throws(JournalError) {
        let held = ByteBuffer(capacity: FrameHeader.maximumPayload)
        var heldHeader: FrameHeader?
        while !isCancelled() {
            block = reader.position.chunk + UInt64(reader.position.block)
            let outcome: Result<Frame?, JournalError>
            do throws(JournalError) { outcome = .success(try reader.next()) } catch { outcome = .failure(error) }
            if let header = heldHeader {
                heldHeader = nil
                var follows = header.last <= superblock.checkpoint.sequence  // (B3)
                if case .success(.some) = outcome { follows = true }
                if !follows, case .success(nil) = outcome { follows = commit() }
                if follows { try scrubRecords(Frame(header: header, payload: held.bytes, after: header.position)) }
            }
            guard let frame = try outcome.get() else { return }
            report.frames += 1
            due = frame.header.last.next
            held.truncate(to: 0)
            held.append(frame.payload)
            heldHeader = frame.header
        }
    }

    func scrubRecords(_ frame: Frame) throws(JournalError) {
        try frame.forEachRecord(mapping: { JournalError.damaged($0.description) }) { (record) throws(JournalError) in
            guard !isCancelled(), [.write, .truncate, .fallocate].contains(record.type), let content = ContentPayload(record.payload)
            else { return }
            var at = ContentPayload.firstSegment
            for _ in 0..<content.segments {
                guard let segment = Segment(content.bytes, at: at) else { return }
                at = segment.next
                guard segment.kind == .run else { continue }
                verify(segment.home, segment.blocks, crcs: segment.data) { block, count, text in
                    guard !isGivenUp(SequenceNumber(record.sequence.value - 1)) else { return }
                    var damage = Damage(.data, block, "record \(record.sequence): \(text)")
                    damage.inode = content.inode
                    damage.offset = (segment.fileBlock + (block.value - segment.home.value)) << UInt64(blockShift)
                    damage.length = count << UInt64(blockShift)
                    damage.first = record.sequence
                    damage.firstTime = frame.header.time
                    // The nearest trees on both sides may know the file.
                    let after = checkpoints.first { $0.sequence >= record.sequence }
                    damage.path = path(of: content.inode, in: after ?? superblock.checkpoint) ?? replayedPath(of: content.inode, record.sequence)
                    if let after { narrow(&damage, block, content.inode, after) }
                    found(damage)
                }
            }
        }
    }

    /// Until when a block that a record of the interval up to `after` wrote was needed.
    func narrow(_ damage: inout Damage, _ block: BlockNumber, _ inode: InodeNumber, _ after: CheckpointItem) {
        for list in deadLists where wantsDetail && list.item.sequence >= after.sequence {
            for entry in list.entries()
            where entry.start <= block && block.value - entry.start.value < UInt64(entry.count) && entry.death.value > 0
                && entry.birth <= after.sequence
            {
                damage.last = SequenceNumber(entry.death.value - 1)
                damage.lastTime = time(of: SequenceNumber(entry.death.value - 1))
                return
            }
        }
    }
}
