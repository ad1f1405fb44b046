// Housekeeping: what the checkpointer thread does besides checkpoints: chunks zeroed ahead of use, orphans reclaimed, history
// giving way when space is needed.
//
// Moving the horizon to checkpoint H (which must be no later than the older slot's, invariant 5):
//
//   1 no reader pins a sequence before H        (mayMoveHorizon)
//   2 record `horizon H`, committed             power fails before: nothing happened; after: replay does step 3
//   3 dead lists up to H are read and their blocks freed in memory
//   4 the next checkpoint writes the map        until then the blocks may already be in use again: the older maps do not
//                                               say so, but the journal, replayed from there, does, in the same order

import Device
import Format
import Journal
import Memory
import Space
import Tree

extension Volume {
    /// The `checkpointer` thread.
    func checkpointerLoop() {
        lock.lock()
        defer { lock.unlock() }
        while !stopping {
            guard failureText == nil else {
                lock.wait()
                continue
            }
            if keepHouse() { continue }
            if spareChunks.count < limits.spareChunks || reclaimable.isEmpty { _ = lock.wait(nanoseconds: 200_000_000) }
        }
    }

    /// One round of what is due. With the lock held; drops it. False when no checkpoint was wanted.
    private func keepHouse() -> Bool {
        if spareChunks.count < limits.spareChunks { refillChunks() }
        if !reclaimable.isEmpty { _ = reclaimBatch() }
        guard checkpointWanted || checkpointForced || roomWanted > 0 else { return false }
        checkpointWanted = false
        let due = checkpointForced || view.tree.dirtyCount >= limits.dirtyNodes || recordsSinceCheckpoint >= limits.records
            || view.pages.unposted >= limits.unposted || view.unsettled >= limits.deadEntries
        checkpointForced = false
        if due { unlocked { try? checkpoint(clean: false) } }
        if space!.free < limits.lowWater && !roomQuiet || roomWanted > 0 { makeRoom() }
        return true
    }

    /// Waits for the threads; or, where there are none, does what they would. With the lock held; drops it.
    func waitForThreads() {
        guard isAlone else { return lock.wait() }
        if commitWanted || writeBackWanted {
            (commitWanted, writeBackWanted) = (false, false)
            unlocked { try? commit() }
        }
        _ = keepHouse()
    }

    private func unlocked(_ body: () -> Void) {
        lock.unlock()
        body()
        lock.lock()
    }

    // MARK: chunks

    /// Takes chunks and zeroes them, so that commits overwrite blocks which the host has already allocated and written.
    func refillChunks() {
        while spareChunks.count < limits.spareChunks, failureText == nil, let chunk = takeChunk() {
            var failed: DeviceError?
            unlocked {
                do throws(DeviceError) { try Volume.zero(chunk, count: UInt64(superblock.chunkBlocks), device) } catch {
                    failed = error
                }
            }
            if let failed {
                // Out of space below: give the chunk back and let operations see ENOSPC.
                try? space!.map.release(BlockRun(start: chunk, count: UInt64(superblock.chunkBlocks)))
                if failed.operation != .allocate { fail(failed.description) }
                return
            }
            spareChunks.append(chunk)
            lock.broadcast()
        }
    }

    /// A chunk, unless checkpoints need its blocks. With none in hand, only the nodes count: without a chunk nothing can be recorded,
    /// not even that history gives way.
    private func takeChunk() -> BlockNumber? {
        let blocks = Int(superblock.chunkBlocks)
        func some() -> BlockNumber? {
            let kept = spareChunks.isEmpty ? spokenFor + view.tree.dirtyCount : space!.owed + checkpointNeed + blocks
            return space!.map.backedFree >= kept + blocks ? space!.map.allocateChunk(UInt64(blocks)) : nil
        }
        if let chunk = some() { return chunk }
        let backed = space!.map.backedFree
        guard space!.free > backed, (try? backMore(max(backed, limits.reserve))) != nil else { return nil }
        return some()
    }

    static func zero(_ start: BlockNumber, count: UInt64, _ device: any BlockDevice) throws(DeviceError) {
        try device.provide(start, count: count)
        let buffer = AlignedBuffer(count: 64 << blockShift)
        var done: UInt64 = 0
        while done < count {
            let blocks = min(64, count - done)
            try device.write(start + done, buffer.bytes.slice(0, Int(blocks) << blockShift))
            done += blocks
        }
    }

    // MARK: orphans

    /// Reclaims some of the inodes that nobody refers to any more. With the lock held; drops it. False when there was no room for
    /// it: then they wait for the next time.
    func reclaimBatch() -> Bool {
        let batch = Array(reclaimable.prefix(256))
        reclaimable.removeFirst(batch.count)
        var full = false
        unlocked {
            do throws(OperationError) { try reclaim(batch, onCheckpointer: true) } catch {
                full = error == .noSpace
                guard !full else { return }
                onEvent(.warning("reclaiming inodes: \(error)"))
                // One of them cannot be read, say. The others go all the same.
                for inode in batch { try? reclaim([inode], onCheckpointer: true) }
            }
        }
        if full { reclaimable.insert(contentsOf: batch, at: 0) }
        return !full
    }

    /// Data blocks of inodes that nobody refers to any more and that are not reclaimed yet; of some, if they are many.
    func blocksToReclaim() throws(ViewError) -> UInt64 {
        var sum: UInt64 = 0
        for number in orphans.prefix(1024) where !references.isHeld(number) {
            guard let item = try view.item(InodeNumber(number)), item.links == 0 else { continue }
            sum += item.blocks
        }
        return sum
    }

    /// Frees the inodes, or what lies beyond their end, in bounded records (invariant 12).
    func reclaim(_ inodes: [UInt64], onCheckpointer: Bool = false) throws(OperationError) {
        var rest = inodes[...]
        while !rest.isEmpty {
            let done = try mutate(deletes: true, onCheckpointer: onCheckpointer) { () throws(ViewError) -> Int in try reclaimRecord(rest) }
            rest = rest.dropFirst(done)
        }
    }

    /// Frees what an earlier truncation left beyond the file's end, before the file grows over it.
    func finishTrim(_ inode: InodeNumber) throws(OperationError) {
        while lock.withLock({ trimming.contains(inode.value) }) { try reclaim([inode.value]) }
    }

    /// As `finishTrim`, within an operation, for the case that somebody cut the file off since.
    func finishTrimNow(_ inode: InodeNumber) throws(ViewError) {
        while trimming.contains(inode.value) { _ = try reclaimRecord([inode.value]) }
    }

    /// One record for as many of `inodes` as its bounds allow. Returns how many of them are finished.
    private func reclaimRecord(_ inodes: ArraySlice<UInt64>) throws(ViewError) -> Int {
        var entries: [(inode: InodeNumber, fromBlock: UInt64, outcome: ReclaimPayload.Outcome, links: UInt32)] = []
        var budget = ReclaimPayload.maximumExtents
        var finished = 0
        for number in inodes.prefix(64) where budget > 0 {
            let inode = InodeNumber(number)
            guard orphans.contains(number), let item = try view.item(inode) else {
                trimming.remove(number)
                finished += 1
                continue
            }
            // Somebody holds it (still, or again: a look-up raced with the last forget); its next forget brings it back.
            let goes = item.links == 0 && !references.isHeld(number)
            if item.links == 0 && !goes && !trimming.contains(number) {
                finished += 1
                continue
            }
            let floor = goes ? 0 : (item.length + UInt64(blockSize) - 1) >> UInt64(blockShift)
            var from = UInt64.max
            var complete = true
            while let extent = try view.lastExtent(inode, before: from), extent.end > floor {
                guard budget > 0 else {
                    complete = false
                    break
                }
                from = max(extent.fileBlock, floor)
                budget -= 1
                if from == floor { break }
            }
            if complete { from = floor }
            if goes && complete {
                try view.bringInRest(inode, item)
            } else {
                try view.bringInOrphan(inode)
                try view.bringInExtents(inode, from: from, to: from)
            }
            entries.append((inode, from, complete ? (goes ? .remove : .trimmed) : .partly, item.links))
            guard complete else { break }
            finished += 1
        }
        guard !entries.isEmpty else { return finished }
        try perform(
            .reclaim, payload: ReclaimPayload.fixed + entries.count * ReclaimPayload.item, .housekeeping, time: now()
        ) { bytes in
            for (index, entry) in entries.enumerated() {
                ReclaimPayload.store(bytes, index, inode: entry.inode, fromBlock: entry.fromBlock, outcome: entry.outcome)
            }
        }
        for entry in entries where entry.outcome != .partly {
            trimming.remove(entry.inode.value)
            if entry.outcome == .remove || entry.links > 0 { orphans.remove(entry.inode.value) }
        }
        return finished
    }

    // MARK: history gives way

    /// Frees blocks that only history needs, oldest first. With the lock held; drops it. Afterwards either there is room, or
    /// `roomExhausted` says that there is none to be made.
    private func makeRoom() {
        while !reclaimable.isEmpty && failureText == nil { guard reclaimBatch() else { break } }
        let target = roomWanted > 0 ? limits.reserve + roomWanted : limits.lowWater
        let wanted = roomWanted
        let before = space!.free
        // Moving the horizon is itself a record, which the next checkpoint writes and the next move could give up: what counts is the
        // space won. What died lately is free two checkpoints and a move later, so a few steps may pass without any.
        var idle = 0
        var best = before
        // Free blocks in which no chunk of the journal finds a place are as good as none.
        while space!.free < target || spareChunks.count <= 1, failureText == nil && !stopping && idle < 6 {
            idle += 1
            let missing = max(target - space!.free, Int(superblock.chunkBlocks))
            let ceiling = olderCheckpoint
            let current = horizon
            var candidate: SequenceNumber?
            unlocked { candidate = horizonCandidate(after: current, upTo: ceiling, freeing: missing) }
            if let candidate, !mayMoveHorizon(candidate) {
                // A reader pins what has to go. Most do so for moments; ENOSPC can wait for them a little.
                _ = lock.wait(nanoseconds: 100_000_000)
            } else if let candidate {
                unlocked { moveHorizon(to: candidate) }
                if spareChunks.count < limits.spareChunks { refillChunks() }
            } else if superblock.checkpoint.sequence < view.sequence || olderCheckpoint < superblock.checkpoint.sequence {
                // A checkpoint lets the horizon follow.
                unlocked { try? checkpoint(clean: false) }
            } else {
                break
            }
            if space!.free >= best + 64 {
                best = space!.free
                idle = 0
            }
        }
        let free = space!.free
        if wanted > 0 {
            exhaustedSince = now().nanoseconds
            roomExhausted = free < limits.reserve + wanted || spareChunks.count <= 1
            roomWanted = 0
        } else if free <= before {
            roomQuiet = true
        }
        lock.broadcast()
    }

    /// The first checkpoint after the horizon whose dead lists free enough, or the last one that may be taken.
    private func horizonCandidate(after: SequenceNumber, upTo: SequenceNumber, freeing: Int) -> SequenceNumber? {
        guard let items = try? space!.checkpoints() else { return nil }
        var sum = 0
        var last: SequenceNumber?
        for item in items where item.sequence > after && item.sequence <= upTo {
            sum += Int(item.deadBlocks)
            last = item.sequence
            if sum >= freeing { break }
        }
        return last
    }

    func moveHorizon(to sequence: SequenceNumber) {
        do throws(OperationError) {
            try mutate(onCheckpointer: true) { () throws(ViewError) in
                try perform(.horizon, payload: 8, .housekeeping, time: now()) { $0.set(u64: sequence.value, at: 0) }
            }
            try commit()
        } catch {
            onEvent(.warning("history could not give way: \(error)"))
            return
        }
        // Durable: what only sequences before it need may be used again (invariant 4).
        do throws(Space.Failure) {
            _ = try space!.moveHorizon(to: sequence, lock: lock)
            lock.withLock { horizon = sequence }
        } catch {
            lock.withLock { fail("moving the horizon to \(sequence): \(error)") }
        }
    }
}
