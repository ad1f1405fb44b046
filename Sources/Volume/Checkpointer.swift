// Checkpointer: writing the state at one sequence, while operations go on.
//
//   1 freeze    (lock)  seal the pending frame; C = its last sequence; freeze tree, unposted pages, space map
//   2 commit            frames up to C are durable
//   3 write             posted pages to their homes, nodes and space state to free blocks
//   4 flush
//   5 slot              the superblock slot that does not hold the newest generation
//   6 flush
//   7 finish    (lock)  frozen nodes are clean; what the overwritten slot alone named is free
//
// Power failing before 6 has returned leaves the other slot the newest valid one, and everything it names untouched: 3
// writes only to blocks free in its map. A torn slot fails its CRC. After 6, recovery starts from C.

import Device
import Format
import Glibc
import Journal
import Memory
import Space
import Tree

extension Volume {
    /// Writes a checkpoint of the present state. On the checkpointer thread, or with no other threads.
    func checkpoint(clean: Bool) throws(OperationError) {
        guard let journal, let space else { return }
        lock.lock()
        defer { lock.unlock() }
        guard failureText == nil else { throw .io(failureText!) }

        seal()
        let sequence = view.sequence
        // All that it may take is its own from here on; the reserve is for the one after it (invariant 14).
        space.owed = checkpointNeed
        let frozen = view.tree.freeze()
        let posting = view.pages.freeze()
        space.dead = view.freed
        view.freed = []
        space.sharings = view.shared
        view.shared = []
        space.spareChunks = spareChunks
        var frozenSpace = space.freeze()
        let item = CheckpointItem(
            sequence: sequence, time: journal.lastTime, root: frozen.root, rootLevel: frozen.level, nextInode: view.nextInode,
            inodes: view.inodes, dataBlocks: view.dataBlocks, journal: journal.position)
        recordsSinceCheckpoint = 0
        let horizon = horizon
        try commit(upTo: sequence)

        lock.unlock()
        var outcome: Result<(Superblock, WrittenSpace), Space.Failure>
        do throws(Space.Failure) {
            outcome = .success(
                try write(item, frozen, posting, &frozenSpace, space, horizon: horizon, clean: clean))
        } catch { outcome = .failure(error) }
        lock.lock()
        space.owed = 0

        switch outcome {
        case .failure(let error):
            let text = switch error {
            case .damaged(let text): text
            case .device(let error): error.description
            }
            fail("checkpoint at sequence \(sequence): \(text)")
            throw .io(text)
        case .success(let (written, state)):
            view.tree.finish(frozen)
            view.pages.posted(posting)
            do throws(Space.Failure) { try space.finish(state) } catch {
                fail("after the checkpoint at \(sequence): \(error)")
            }
            // The slot just overwritten is gone; the other one is now the older.
            olderCheckpoint = superblock.checkpoint.sequence
            superblock = written
            newestSlot = 1 - newestSlot
            roomQuiet = false
            view.trim()
            lock.broadcast()
        }
    }

    /// Steps 3 to 6, without the lock.
    private func write(
        _ checkpoint: CheckpointItem, _ frozen: FrozenTree, _ posting: [PageSlot], _ frozenSpace: inout FrozenSpace,
        _ space: Space, horizon: SequenceNumber, clean: Bool
    ) throws(Space.Failure) -> (Superblock, WrittenSpace) {
        var item = checkpoint
        do throws(DeviceError) { try writeData(posting) } catch { throw .device(error) }
        let blocks = try space.take(.node, frozen.count, &frozenSpace, lock: lock)
        do throws(DeviceError) {
            try frozen.write(view.tree, to: blocks, birth: item.sequence) { (block, bytes) throws(DeviceError) in
                try device.write(block, bytes)
            }
        } catch { throw .device(error) }
        item.root = frozen.sealedRoot
        let state = try space.write(item, deadNodes: frozen.deadNodes, &frozenSpace, lock: lock)

        var next = superblock
        next.generation += 1
        next.flags = (next.flags & ~Superblock.flagClean) | (clean ? Superblock.flagClean : 0)
        next.written = now()
        next.horizon = horizon
        next.checkpoint = state.checkpoint
        next.spaceRoot = state.root
        next.spaceLevel = state.level
        next.pendingList = state.pendingList
        next.pendingCRC = state.pendingCRC
        next.historyBlocks = state.historyBlocks
        do throws(DeviceError) {
            try device.flush()
        } catch { throw .device(error) }
        // A commit whose flush failed meanwhile may have been told of an error in what this checkpoint wrote; the host tells it
        // only once, and the flush above then means nothing (invariants 2 and 8).
        if let why = lock.withLock({ failureText }) { throw .device(DeviceError(.flush, errno: EIO, why)) }
        do throws(DeviceError) { try Volume.writeSlot(next, slot: 1 - newestSlot, device) } catch { throw .device(error) }
        return (next, state)
    }

    /// Writes and flushes one superblock slot.
    static func writeSlot(_ superblock: Superblock, slot: Int, _ device: any BlockDevice) throws(DeviceError) {
        let page = AlignedBuffer(count: blockSize)
        superblock.store(page.bytes, slot: slot)
        try device.write(Superblock.slots[slot], page.bytes)
        try device.flush()
    }
}
