// Operate: how every operation runs: under the lock, starting over when something it needs has to be read first.
//
// (O1) The body of an operation changes nothing until it calls `perform`; whatever may be missing from memory, or may be
//      refused, comes before. So starting over is safe.
// (O2) What `perform` appends it applies; if that fails, memory and journal no longer agree and the volume stops writing.
// (O3) An operation of several records has them all in one frame: it calls `makeRoom` for their sum before the first. A frame is
//      accepted whole or not at all (invariant 1), so after a crash the operation is there whole or not at all. What is too long
//      for that (invariant 12) is a record that leaves a legal state, and others that follow in their own time.

import Device
import Format
import Journal
import Memory
import Space
import Tree

extension Volume {
    /// Runs a reading operation.
    @inline(__always) func operate<R>(_ body: () throws(ViewError) -> R) throws(OperationError) -> R {
        lock.lock()
        defer { lock.unlock() }
        while true {
            do throws(ViewError) {
                let result = try body()
                view.trim()
                return result
            } catch { try supply(error) }
        }
    }

    /// Runs a changing operation that may need `blocks` of new space.
    /// `onCheckpointer`: the caller is the checkpointer's thread, which everybody else waits for.
    @inline(__always) func mutate<R>(
        blocks: Int = 0, deletes: Bool = false, onCheckpointer: Bool = false, _ body: () throws(ViewError) -> R
    ) throws(OperationError) -> R {
        lock.lock()
        defer { lock.unlock() }
        guard journal != nil else { throw .readOnly }
        while true {
            if onCheckpointer { try admitHousekeeping(deletes: deletes) } else { try admit(blocks: blocks, deletes: deletes) }
            do throws(ViewError) {
                let result = try body()
                view.trim()
                return result
            } catch { try supply(error) }
        }
    }

    /// Waits until the operation may run: not too far ahead of the checkpoint or the journal, space for the worst case.
    @inline(__always) private func admit(blocks: Int, deletes: Bool) throws(OperationError) {
        guard failureText == nil else { throw .readOnly }
        if view.tree.dirtyCount < 2 * limits.dirtyNodes && sealed.count <= 4 && view.pages.dirty.count <= limits.dirtyPages
            && view.pages.unposted < 2 * limits.unposted && view.unsettled < 2 * limits.deadEntries && spareChunks.count > 1
            && space!.map.backedFree >= limits.reserve + blocks + spokenFor
        { return }
        try admitSlowly(blocks: blocks, deletes: deletes)
    }

    private func admitSlowly(blocks: Int, deletes: Bool) throws(OperationError) {
        while true {
            guard failureText == nil else { throw .readOnly }
            let backed = space!.map.backedFree
            let needed = limits.reserve + blocks + spokenFor
            if view.tree.dirtyCount >= 2 * limits.dirtyNodes || view.pages.unposted >= 2 * limits.unposted
                || view.unsettled >= 2 * limits.deadEntries
            {
                checkpointWanted = true
            } else if sealed.count > 4 || view.pages.dirty.count > limits.dirtyPages {
                commitWanted = sealed.count > 4
                writeBackWanted = true
            } else if backed < needed && space!.free > backed {
                try backMore(needed)
                continue
            } else if backed < needed || spareChunks.count <= 1 {
                // What deletes may go on into the reserve: it is there so that a full disk can delete. A checkpoint of what they
                // do, and the few in which history gives way after it, must still find room.
                if deletes && backed >= space!.owed + checkpointNeed + limits.reserve / 4 + blocks
                    && (spareChunks.count > 1 || journal!.hasRoom(Self.roomToDelete))
                { return }
                let isOnlySpokenFor = backed >= limits.reserve + blocks && spareChunks.count > 1
                let mayHelp = deletes && roomExhausted && recordsSinceCheckpoint > 0 && backed >= checkpointNeed
                if space!.owed > 0 || isOnlySpokenFor || mayHelp {
                    // Once that is written there is room, or it is known that there is none.
                    checkpointForced = checkpointForced || space!.owed == 0
                } else if roomExhausted {
                    // A reader that held history may have gone since, or the host have room again; nobody tells us.
                    let waited = now().nanoseconds - exhaustedSince
                    guard waited < 0 || waited >= Self.exhaustionHolds else { throw .noSpace }
                    roomExhausted = false
                    space!.tryHostAgain()
                    continue
                } else {
                    roomWanted = max(roomWanted, blocks + 1)
                    checkpointWanted = true
                }
            } else {
                return
            }
            lock.broadcast()
            waitForThreads()
        }
    }

    /// Blocks besides the reserve that operations must leave: what the checkpoint under way has still to take, and what settling
    /// shares may add to the next.
    @inline(__always) var spokenFor: Int { space!.owed + shareNodes }

    /// Nodes of the space tree that settling may touch: two for each clone or death, as far apart as they can be, but no more than
    /// there would be if every block were shared on its own.
    @inline(__always) private var shareNodes: Int {
        view.shared.isEmpty && !space!.hasShares ? 0 : min(2 * view.unsettled, limits.shareNodes)
    }

    /// Blocks that a checkpoint of the present state takes at most; what it posts has its homes already (invariant 14).
    var checkpointNeed: Int {
        let nodes = view.tree.dirtyCount
        return nodes + shareNodes + limits.spaceState + (view.freed.count + nodes) / VolumeLimits.deadListItems + 1
    }

    /// Asks the host for room for `wanted` free blocks and some more. With the lock held; drops it.
    func backMore(_ wanted: Int) throws(OperationError) {
        lock.unlock()
        defer { lock.lock() }
        do throws(Space.Failure) { try space!.back(atLeast: wanted + Self.backingAhead, lock: lock) } catch {
            let why = "backing for free blocks: \(error)"
            lock.withLock { fail(why) }
            throw .io(why)
        }
    }

    /// Blocks backed beyond what is asked for: 64 MiB.
    static let backingAhead = 16_384
    /// Nanoseconds for which "no more room can be made" is believed.
    private static let exhaustionHolds: Int64 = 2_000_000_000

    /// The checkpointer cannot wait for itself: what others would wait for, it does, or it goes without.
    private func admitHousekeeping(deletes: Bool) throws(OperationError) {
        guard failureText == nil else { throw .readOnly }
        func writeOut() throws(OperationError) {
            lock.unlock()
            defer { lock.lock() }
            try checkpoint(clean: false)
        }
        // While there is room for one: what has been done must be written before more is.
        func isTight(_ more: Int) -> Bool { space!.map.backedFree < checkpointNeed + more }
        let isPressing = isTight(limits.reserve / 4) && !isTight(0) && recordsSinceCheckpoint > 0
        if view.tree.dirtyCount >= 2 * limits.dirtyNodes || view.pages.unposted >= 2 * limits.unposted || sealed.count > 4
            || view.unsettled >= 2 * limits.deadEntries || isPressing
        { try writeOut() }
        if spareChunks.isEmpty { refillChunks() }
        if spareChunks.isEmpty && !journal!.hasRoom(Self.roomToKeepHouse) && recordsSinceCheckpoint > 0 && !isTight(0) {
            // The nodes were in the chunk's way.
            try writeOut()
            refillChunks()
        }
        guard failureText == nil else { throw .readOnly }
        guard !spareChunks.isEmpty || journal!.hasRoom(Self.roomToKeepHouse) else { throw .noSpace }
        // Moving the horizon is what makes room; reclaiming can wait for it.
        guard !deletes || !isTight(limits.reserve / 8) else { throw .noSpace }
    }

    // When chunks run out, those who can help go on longest: other operations leave the last spare chunk alone; deletes do not even
    // open one then, and leave as much of the current one as these differ by to housekeeping, which may take all there is: history
    // gives way by a record.
    private static let roomToDelete = 256 << 10
    private static let roomToKeepHouse = 16 << 10

    /// Brings in what an operation found missing, dropping the lock to read it; passes everything else on. If blocks were given up
    /// meanwhile, what was read may have been written since for another purpose: then the operation just begins again.
    @inline(never) func supply(_ error: ViewError) throws(OperationError) {
        let buffer = AlignedBuffer(count: blockSize)
        let releases = space?.releases
        switch error {
        case .tree(.missing(let reference, let level)):
            lock.unlock()
            let outcome: TreeError?
            do throws(TreeError) {
                try view.tree.readMissing(reference, level: level, into: buffer.bytes)
                outcome = nil
            } catch { outcome = error }
            lock.lock()
            guard space?.releases == releases else { return }
            if let outcome { throw report(.tree(outcome)) }
            view.tree.adopt(reference, buffer.bytes)
        case .missingPage(let home, let crc, let inode, let fileBlock):
            lock.unlock()
            let outcome: ViewError?
            do throws(ViewError) {
                try view.readBlock(home, crc: crc, inode, fileBlock, into: buffer.bytes)
                outcome = nil
            } catch { outcome = error }
            lock.lock()
            guard space?.releases == releases else { return }
            if let outcome { throw report(outcome, inode) }
            view.pages.addClean(home: home, crc: crc, buffer.bytes)
        default:
            throw report(error)
        }
    }

    /// Tells the log of anything that is not an ordinary refusal. With the lock held. `inode`: whose data it was.
    func report(_ error: ViewError, _ inode: InodeNumber? = nil) -> OperationError {
        if case .refused(let refusal) = error { return refusal }
        // Where the way to it lies in memory, as it mostly does for what is being read.
        let path = inode.flatMap { (try? view.path($0)) ?? nil }
        onEvent(.warning("input/output error: \(path.map { String(decoding: $0, as: UTF8.self) + ": " } ?? "")\(error.text)"))
        return error.operationError
    }

    // MARK: records

    /// Appends a record with `payload` bytes, lets `fill` write them, and applies it. With the lock held. `sequence` of the view is
    /// the record's afterwards.
    @inline(__always) func perform(
        _ type: RecordType, payload: Int, _ caller: Caller, time: Timestamp, flags: UInt16 = 0, _ fill: (RawBytes) -> Void
    ) throws(ViewError) {
        let journal = journal!
        if !journal.fits(Record.size(payload: payload)) { try sealFull() }
        let bytes = journal.append(type, payload: payload, time: time, uid: caller.uid, gid: caller.gid, pid: caller.pid)
        if flags != 0 { bytes.set(u16: flags, at: 6) }
        fill(bytes.from(RecordHeader.size))
        view.tree.mayRead = true
        defer { view.tree.mayRead = false }
        do throws(ViewError) {
            let record: Record
            do throws(FormatError) { record = try Record(bytes) } catch { throw .damaged(error.description) }
            try view.apply(record, .live)
        } catch {
            fail("record \(journal.lastAppended) could not be applied: \(error.text)")
            throw error
        }
        recordsSinceCheckpoint += 1
        if roomExhausted && !view.freed.isEmpty { roomExhausted = false }
        if journal.pendingBytes > 256 << 10 && !commitWanted {
            commitWanted = true
            lock.broadcast()
        }
        if !checkpointWanted
            && (view.tree.dirtyCount >= limits.dirtyNodes || recordsSinceCheckpoint >= limits.records
                || view.pages.unposted >= limits.unposted || view.unsettled >= limits.deadEntries || space!.free < limits.lowWater && !roomQuiet)
        {
            checkpointWanted = true
            lock.broadcast()
        }
    }

    /// Lets the records that follow, `bytes` in all, go into one frame (O3). With the lock held until the last of them.
    @inline(__always) func makeRoom(_ bytes: Int) throws(ViewError) {
        precondition(bytes <= FrameHeader.maximumPayload, "an operation does not fit a frame")
        if !journal!.fits(bytes) { try sealFull() }
    }

    @inline(never) private func sealFull() throws(ViewError) {
        seal()
        guard failureText == nil else { throw .refused(.readOnly) }
    }

    /// The time for a new record; never before the one of the last frame.
    @inline(__always) func now() -> Timestamp { clock() }

    /// Ends the pending frame. With the lock held.
    func seal() {
        guard let journal, let space else { return }
        let frame = journal.seal(time: now()) { next in
            space.openedChunks[next.serial] = ChunkItem(address: next.chunk, first: next.next, epoch: next.epoch)
            if let chunk = spareChunks.popLast() {
                // From now on a header names it, so the next checkpoint's map must count it as used.
                space.map.markDirty(Int(chunk.value) / Region.blocks)
                lock.broadcast()
                return chunk
            }
            if let chunk = space.map.allocateChunk(UInt64(superblock.chunkBlocks)) { return chunk }
            // Never reached while `admit` insists on a spare chunk; a frame is smaller than half a chunk.
            fail("no space for the journal's next chunk")
            return BlockNumber(0)
        }
        if let frame { sealed.append(frame) }
    }
}
