// Recovery: opening a volume, and what a crash left to do.
//
//   newest valid slot ─► space state, view of its checkpoint ─► replay ─► cut, new epoch in both slots ─► serve
//
// | found                                        | then                                                               |
// | slot clean, no frame after the checkpoint    | go on in the same epoch; one slot written with the clean flag off  |
// | frames after the checkpoint, whole           | apply them; new epoch                                              |
// | … and the last one, or its data, not whole   | it is cut off; new epoch                                           |
// | not clean, no frame                          | new epoch (a frame may have been begun)                            |
// | a frame not whole, a later one whole         | damage: refused, nothing written                                   |
//
// (V1) Nothing is served, and no block other than the slots written, before cut and epoch are flushed in both slots.
//      Power failing in between leaves either the old slot pair or one that ends the old epoch at the same place; the
//      next recovery finds the same state.
// (V2) The new epoch begins in the successor of the chunk that was cut. What was cut off stays where it is.
// (V3) A block that a replayed record puts to use must be free in the map, or freed by a replayed horizon before it
//      (invariant 7).

public import Device
public import Format
import Journal
import Memory
import Space
import Tree

extension Volume {
    /// Opens the filesystem on `device`. Read-write: recovers first if needed, and starts the volume's threads. Read-only, or at
    /// a past point: replays in memory and writes nothing.
    ///
    /// `clock` gives wall time, `random` unpredictable words (the next epoch's nonce). `mayMoveHorizon` is asked before
    /// history up to a sequence is given up.
    public static func open(
        _ device: any BlockDevice, options: OpenOptions, clock: @escaping @Sendable () -> Timestamp,
        random: @escaping @Sendable () -> UInt64,
        mayMoveHorizon: @escaping @Sendable (SequenceNumber) -> Bool = { _ in true },
        onEvent: @escaping @Sendable (VolumeEvent) -> Void
    ) throws(OpenError) -> Volume {
        let image = try Image(device)
        guard options.mode == .readWrite else {
            var point: Point?
            if case .at(let wanted) = options.mode { point = wanted }
            let (view, result) = try image.view(at: point, cacheBytes: options.cacheBytes)
            let volume = Volume(
                device: device, view: view, space: nil, journal: nil, superblock: image.superblock,
                newestSlot: image.newestSlot, olderCheckpoint: image.superblock.checkpoint.sequence,
                horizon: image.superblock.horizon, options: options, clock: clock, mayMoveHorizon: mayMoveHorizon,
                onEvent: onEvent)
            volume.recovery = result
            device.admitHostCache()
            return volume
        }
        guard !device.isReadOnly else { throw OpenError(.device, "\(device.name): opened read-only") }
        if image.superblock.readOnlyCompatible & ~Superblock.knownReadOnlyCompatible != 0 {
            throw OpenError(.unsupported, "\(device.name): has features that this version can only read")
        }
        if image.superblock.flags & Superblock.flagDamaged != 0 {
            throw OpenError(.damaged, "\(device.name): marked as damaged; run fsck.daybook")
        }
        let volume = try recover(
            image, options: options, clock: clock, random: random, mayMoveHorizon: mayMoveHorizon, onEvent: onEvent)
        device.admitHostCache()
        volume.start()
        return volume
    }

    private static func recover(
        _ image: Image, options: OpenOptions, clock: @escaping @Sendable () -> Timestamp, random: @Sendable () -> UInt64,
        mayMoveHorizon: @escaping @Sendable (SequenceNumber) -> Bool, onEvent: @escaping @Sendable (VolumeEvent) -> Void,
        relief: ReplayRelief? = nil
    ) throws(OpenError) -> Volume {
        let device = image.device
        var superblock = image.superblock
        let space: Space
        do throws(Space.Failure) {
            space = try Space.load(superblock, device: device)
            space.chunkBlocks = UInt64(superblock.chunkBlocks)
            // What is pending is needed by the other slot's space state alone. When that slot is gone, or names the same state (the
            // volume was opened and wrote no checkpoint before it crashed), records may have used those blocks again already.
            if image.olderSlot == nil || image.olderSlot!.spaceRoot == superblock.spaceRoot { try space.releasePending() }
        } catch { throw OpenError(error) }
        let view = View(
            checkpoint: superblock.checkpoint, superblock: superblock, device: device, cacheBytes: options.cacheBytes)
        var horizon = superblock.horizon
        let started = clock()
        let result = try replay(view, space, superblock.checkpoint, horizon: &horizon, relief)
        // The next frame may open it: nobody else's blocks. (A repair makes the map anew.)
        guard relief != nil || (0..<space.chunkBlocks).allSatisfy({ space.map.isUsed(result.successor + $0) }) else {
            throw OpenError(.damaged, "\(device.name): the journal's next chunk at \(result.successor) is not set aside for it")
        }
        var torn = false
        if case .torn = result.end { torn = true }
        let unclean = !superblock.isClean || result.frames > 0 || torn

        // V1.
        var newEpoch: (epoch: UInt64, nonce: UInt64)?
        superblock.flags &= ~Superblock.flagClean
        superblock.written = clock()
        let older = 1 - image.newestSlot
        var newest = older
        do throws(DeviceError) {
            if unclean {
                superblock.epoch += 1
                superblock.nonce = random()
                superblock.cut = result.position
                newEpoch = (superblock.epoch, superblock.nonce)
                for slot in [older, image.newestSlot] {
                    superblock.generation += 1
                    try writeSlot(superblock, slot: slot, device)
                }
                newest = image.newestSlot
            } else {
                // An epoch that a recovery announced and that no frame has begun yet is begun by the next.
                if result.position.epoch != superblock.epoch { newEpoch = (superblock.epoch, superblock.nonce) }
                superblock.generation += 1
                try writeSlot(superblock, slot: older, device)
            }
        } catch { throw OpenError(error) }
        // Both slots name the same checkpoint now, so nothing else names what was pending.
        do throws(Space.Failure) { try space.releasePending() } catch { throw OpenError(error) }

        view.recordsClaims = false
        let journal = JournalWriter(
            device: device, id: superblock.id, chunkBlocks: superblock.chunkBlocks, position: result.position,
            successor: result.successor, lastTime: result.lastTime, newEpoch: newEpoch)
        let volume = Volume(
            device: device, view: view, space: space, journal: journal, superblock: superblock, newestSlot: newest,
            olderCheckpoint: superblock.checkpoint.sequence, horizon: horizon, options: options, clock: clock,
            mayMoveHorizon: mayMoveHorizon, onEvent: onEvent)
        volume.recovery = result
        volume.recordsSinceCheckpoint = Int(result.records)
        do throws(Space.Failure) {
            try space.backWhatIsUsed(lock: volume.lock)
            try space.back(atLeast: volume.limits.reserve + backingAhead, lock: volume.lock)
        } catch { throw OpenError(error) }
        if unclean {
            let milliseconds = (clock().nanoseconds - started.nanoseconds) / 1_000_000
            volume.recoveryReport = result.report + ", in \(milliseconds) ms"
        }
        do throws(OperationError) { try volume.findOrphans() } catch {
            throw OpenError(.damaged, "\(device.name): \(error)")
        }
        return volume
    }

    /// Applies what follows the checkpoint, keeping the space map in step (V3).
    private static func replay(
        _ view: View, _ space: Space, _ checkpoint: CheckpointItem, horizon: inout SequenceNumber, _ relief: ReplayRelief?
    ) throws(OpenError) -> ReplayResult {
        view.recordsClaims = true
        let lock = Lock()
        var moved = horizon
        do throws(ReplayError) {
            let replay = try Replay(view, from: checkpoint)
            replay.onChunk = { (header) throws(ViewError) in
                try claim(space, BlockRun(start: header.successor, count: space.chunkBlocks), .journal)
                space.openedChunks[header.position.serial] = ChunkItem(
                    address: header.position.chunk, first: header.position.next, epoch: header.position.epoch)
            }
            replay.onRecord = { (record) throws(ViewError) in
                for run in view.claimed { try claim(space, BlockRun(start: run.start, count: run.count), .data) }
                view.claimed.removeAll(keepingCapacity: true)
                // One that the space state knows of already has nothing left to give up: fsck begins a replay at an older checkpoint.
                if record.type == .horizon, SequenceNumber(record.payload.u64(at: 0)) > moved {
                    moved = SequenceNumber(record.payload.u64(at: 0))
                    do throws(Space.Failure) { _ = try space.moveHorizon(to: moved, lock: lock) } catch {
                        throw .damaged("record \(record.sequence) (horizon): \(error)")
                    }
                }
            }
            for stop in relief?.stops ?? [] where stop > view.sequence {
                _ = try replay.run(limit: stop)
                guard view.sequence == stop else { break }
                do throws(ViewError) { try relief?.body(view) } catch { throw .view(error) }
            }
            let result = try replay.run()
            horizon = moved
            return result
        } catch { throw OpenError(error) }
    }

    private static func claim(_ space: Space, _ run: BlockRun, _ kind: SpaceClass) throws(ViewError) {
        do throws(SpaceError) { try space.map.claim(run, kind) } catch { throw .damaged(error.description) }
    }

    /// Collects inodes that a crash left without names, or half trimmed.
    private func findOrphans() throws(OperationError) {
        var found: [UInt64] = []
        view.tree.mayRead = true
        defer { view.tree.mayRead = false }
        do throws(ViewError) {
            try view.tree.scan(from: Key(.none, .orphan), mapping: ViewError.tree) { (key, _) throws(ViewError) -> Bool in
                guard key.isOf(.none, .orphan) else { return false }
                found.append(key.low)
                return true
            }
        } catch { throw error.operationError }
        orphans = Set(found)
        trimming = orphans
        reclaimable = found
    }

    private func start() {
        lock.withLock { refillChunks() }
        threads = [
            Thread(name: "writer") { [unowned self] in writerLoop() },
            Thread(name: "checkpointer") { [unowned self] in checkpointerLoop() },
        ]
    }

    /// Opens as `open` does for writing, but starts no threads: every write is then one that the caller's own calls make, in
    /// their order. For exploring crashes. `preparing`: with a chunk in store, so that operations can follow.
    package static func openAlone(
        _ device: any BlockDevice, options: OpenOptions, clock: @escaping @Sendable () -> Timestamp,
        random: @escaping @Sendable () -> UInt64, preparing: Bool, onEvent: @escaping @Sendable (VolumeEvent) -> Void,
        relief: ReplayRelief? = nil
    ) throws(OpenError) -> Volume {
        let volume = try recover(
            Image(device), options: options, clock: clock, random: random, mayMoveHorizon: { _ in true }, onEvent: onEvent,
            relief: relief)
        volume.isAlone = true
        if preparing { volume.lock.withLock { volume.refillChunks() } }
        return volume
    }

    /// The work of the threads, one piece at a time. Only without threads.
    package func checkpointAlone(clean: Bool) throws(OperationError) {
        try checkpoint(clean: clean)
        lock.withLock { if !clean { refillChunks() } }
    }
    package func reclaimAlone() throws(OperationError) {
        let batch = lock.withLock {
            defer { reclaimable = [] }
            return reclaimable
        }
        try reclaim(batch, onCheckpointer: true)
    }
    /// History up to the older slot's checkpoint is given up.
    package func moveHorizonAlone() {
        let target = lock.withLock { olderCheckpoint }
        if target > lock.withLock({ horizon }) { moveHorizon(to: target) }
    }

    /// Stops the threads and, read-write, writes a clean checkpoint. Operations must have ended.
    public func close() throws(OperationError) {
        guard journal != nil else { return }
        // References end with the mount. (A volume that has failed keeps what they held to the next one.) What they held goes while the threads that make room for it are still there.
        let rest = lock.withLock {
            references.removeAll()
            reclaimable.removeAll()
            return failureText == nil ? Array(orphans) : []
        }
        do throws(OperationError) { try reclaim(rest) } catch {
            // The next mount tries again.
            onEvent(.warning("reclaiming inodes: \(error)"))
        }
        lock.withLock {
            stopping = true
            lock.broadcast()
        }
        for thread in threads { thread.join() }
        threads = []
        if let failure { throw .io(failure) }
        try commit()
        try checkpoint(clean: true)
    }

    /// Writes a checkpoint now, on behalf of tests and tools that want one at a known place.
    public func checkpointNow() throws(OperationError) {
        guard journal != nil else { return }
        let target = lock.withLock { () -> SequenceNumber in
            checkpointForced = true
            lock.broadcast()
            return view.sequence
        }
        lock.lock()
        defer { lock.unlock() }
        while superblock.checkpoint.sequence < target {
            if let failureText { throw .io(failureText) }
            lock.wait()
        }
    }

    /// Ends all activity without writing anything more, as a crash would; for tests.
    public func abandon() {
        lock.withLock {
            stopping = true
            fail("abandoned")
            lock.broadcast()
        }
        for thread in threads { thread.join() }
        threads = []
    }
}

/// For a replay of more than a mount ever has to do (fsck, from an older checkpoint): at sequences at which a checkpoint was written,
/// and no block in memory is patched any further, dirty nodes and pages may be written out.
package struct ReplayRelief {
    let stops: [SequenceNumber]
    let body: (View) throws(ViewError) -> Void
    package init(stops: [SequenceNumber], body: @escaping (View) throws(ViewError) -> Void) {
        self.stops = stops
        self.body = body
    }
}

extension ReplayResult {
    /// What was replayed, for people.
    public var report: String {
        let what = records == 0
            ? "nothing to replay after sequence \(to)"
            : "replayed \(records) records in \(frames) frames, sequences \(from.next) to \(to)"
        return what + "; the journal ends there: \(end?.description ?? "as asked")"
    }
}
