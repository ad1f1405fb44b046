// ContentOperations: read, write, truncate, fallocate.
//
// A write becomes
//   runs     whole blocks, given homes side by side and kept in memory until write-back (DataPages: dirty)
//   patches  a few bytes of a block, carried in the record (DataPages: unposted)
// and a block that is written in part is made whole when that costs less than carrying the bytes: when nothing is there yet,
// or when many bytes change.

import Device
public import Format
import Glibc
import Journal
public import Memory
import Space
import Tree

/// What one write, truncation or fallocate is about to do; reused, so that writing allocates nothing.
final class WritePlan {
    struct Patch {
        var fileBlock: UInt64
        var home: BlockNumber
        var offset: Int
        var bytes: RawBytes
        /// The home was taken for this patch.
        var isNew: Bool
    }
    struct Run {
        var fileBlock: UInt64
        var home: BlockNumber
        var count: Int
        /// Of its first page in `slots`.
        var first: Int
        /// The blocks were taken for this run (else the file had set them aside).
        var isNew: Bool
    }
    /// Pages of the whole blocks, in file order from `firstBlock` on.
    var slots: [PageSlot] = []
    var crcs: [UInt32] = []
    var firstBlock: UInt64 = 0
    /// What was staged outside the lock; edges made whole are added around it.
    var stagedFirst: UInt64 = 0
    var stagedCount = 0
    var runs: [Run] = []
    var patches: [Patch] = []

    func reset() {
        slots.removeAll(keepingCapacity: true)
        crcs.removeAll(keepingCapacity: true)
        runs.removeAll(keepingCapacity: true)
        patches.removeAll(keepingCapacity: true)
    }
}

/// Bytes from which on a partly written block is written whole.
private let wholeBlockThreshold = 1024

extension Volume {
    // MARK: reading

    /// Reads up to `buffer.count` bytes; fewer only at the end of the file. Returns how many.
    public func read(_ inode: InodeNumber, at offset: UInt64, into buffer: RawBytes) throws(OperationError) -> Int {
        let plan = lock.withLock { readPlans.popLast() } ?? ReadPlan()
        defer { lock.withLock { readPlans.append(plan) } }
        for attempt in 0... {
            try operate { () throws(ViewError) in
                try view.plan(plan, inode, at: offset, into: buffer)
                try touchAccessTime(inode)
            }
            do throws(ViewError) {
                try view.fetch(plan, into: buffer)
                return plan.count
            } catch {
                // The block may have been given up and used again since it was planned; a fresh plan tells.
                if attempt == 0, case .damaged = error { continue }
                throw lock.withLock { report(error, inode) }
            }
        }
        return 0
    }

    /// relatime: the access time moves when it is not after the last change, or a day old; strictatime: whenever we are asked.
    func touchAccessTime(_ inode: InodeNumber) throws(ViewError) {
        guard options.accessTimes != .never, !accessTimesPaused, journal != nil, failureText == nil else { return }
        let item = try view.attributes(inode).item
        let time = now()
        guard options.accessTimes == .always || item.accessed <= item.modified || item.accessed <= item.changed
            || time.nanoseconds &- item.accessed.nanoseconds > 86_400_000_000_000
        else { return }
        // Never worth waiting for.
        guard view.tree.dirtyCount < 2 * limits.dirtyNodes, sealed.count <= 4, spareChunks.count > 1,
            space!.map.backedFree > limits.reserve + spokenFor
        else { return }
        try perform(.access, payload: 16, .housekeeping, time: time) { bytes in
            bytes.set(u64: inode.value, at: 0)
            bytes.set(i64: time.nanoseconds, at: 8)
        }
    }

    public func seek(_ inode: InodeNumber, from offset: UInt64, to target: SeekTarget) throws(OperationError) -> UInt64 {
        try operate { () throws(ViewError) in try view.seek(inode, from: offset, to: target) }
    }

    // MARK: writing

    /// Writes all of `data`, at most 1 MiB. `killPrivileges`: suid and sgid go, as the kernel asks.
    public func write(
        _ inode: InodeNumber, at offset: UInt64, _ data: RawBytes, killPrivileges: Bool, _ caller: Caller
    ) throws(OperationError) {
        guard data.count > 0 else { return }
        guard data.count <= 1 << 20 else { throw .invalid }
        guard offset <= Limit.fileSize - UInt64(data.count) else { throw .tooLarge }
        guard journal != nil else { throw .readOnly }
        try finishTrim(inode)
        let plan = lock.withLock { () -> WritePlan in
            let plan = writePlans.popLast() ?? WritePlan()
            plan.reset()
            return plan
        }
        stage(plan, offset, data)
        plan.stagedFirst = plan.firstBlock
        plan.stagedCount = plan.slots.count
        var done = false
        defer {
            lock.withLock {
                if !done { for slot in plan.slots { view.pages.cache.release(slot) } }
                writePlans.append(plan)
            }
        }
        try mutate(blocks: (data.count >> blockShift) + 8) { () throws(ViewError) in
            let item = try view.attributes(inode).item
            guard item.isRegular else { throw .refused(item.isDirectory ? .isDirectory : .invalid) }
            try finishTrimNow(inode)
            dropEdges(plan)
            plan.runs.removeAll(keepingCapacity: true)
            plan.patches.removeAll(keepingCapacity: true)
            try planEdges(plan, inode, item, offset, data)
            try view.bringInExtents(
                inode, from: offset >> UInt64(blockShift), to: (offset + UInt64(data.count) + UInt64(blockSize) - 1) >> UInt64(blockShift))
            try placeRuns(plan, inode)
            let size = max(item.length, offset + UInt64(data.count))
            let mode = killPrivileges ? withoutPrivileges(item.mode, item, caller) : item.mode
            try performContent(
                .write, plan, inode, offset: offset, length: UInt64(data.count), size: size, mode: mode, caller)
            done = true
        }
    }

    /// Copies the whole blocks of `data` into pages of their own and sums them, outside the lock.
    private func stage(_ plan: WritePlan, _ offset: UInt64, _ data: RawBytes) {
        let first = (offset + UInt64(blockSize) - 1) >> UInt64(blockShift)
        let end = (offset + UInt64(data.count)) >> UInt64(blockShift)
        plan.firstBlock = first
        guard first < end else { return }
        let cache = view.pages.cache
        lock.withLock { for _ in first..<end { plan.slots.append(cache.allocate()) } }
        var at = Int(first << UInt64(blockShift) - offset)
        for slot in plan.slots {
            let page = cache.page(slot)
            page.copy(data.slice(at, blockSize))
            plan.crcs.append(page.crc32c())
            at += blockSize
        }
    }

    /// The blocks that the write touches in part: made whole, or patched. May throw for something to be read; changes nothing else
    /// than the plan before that.
    private func planEdges(
        _ plan: WritePlan, _ inode: InodeNumber, _ item: InodeItem, _ offset: UInt64, _ data: RawBytes
    ) throws(ViewError) {
        let end = offset + UInt64(data.count)
        let head = Int(offset & UInt64(blockSize - 1))
        let tail = Int(end & UInt64(blockSize - 1))
        let firstBlock = offset >> UInt64(blockShift)
        let lastBlock = end >> UInt64(blockShift)
        if head != 0 {
            let length = min(blockSize - head, data.count)
            try planPart(plan, inode, firstBlock, head, data.slice(0, length))
        }
        if tail != 0 && (head == 0 || lastBlock != firstBlock) {
            let from = max(0, data.count - tail)
            try planPart(plan, inode, lastBlock, 0, data.slice(from, data.count - from))
        }
    }

    /// Starting over: edges that were made whole are made again, for the file may have changed.
    private func dropEdges(_ plan: WritePlan) {
        guard plan.slots.count > plan.stagedCount else { return }
        func drop(_ index: Int) {
            view.pages.cache.release(plan.slots.remove(at: index))
            plan.crcs.remove(at: index)
        }
        if plan.stagedCount > 0 && plan.firstBlock < plan.stagedFirst { drop(0) }
        while plan.slots.count > plan.stagedCount { drop(plan.slots.count - 1) }
        plan.firstBlock = plan.stagedFirst
    }

    /// Part of one block.
    func planPart(
        _ plan: WritePlan, _ inode: InodeNumber, _ fileBlock: UInt64, _ offset: Int, _ bytes: RawBytes
    ) throws(ViewError) {
        if plan.firstBlock <= fileBlock, fileBlock < plan.firstBlock + UInt64(plan.slots.count) { return }
        let found = try view.extent(inode, at: fileBlock)
        var base: RawBytes?
        var open = false
        var home = BlockNumber(0)
        if let (extent, value) = found {
            home = extent.home(fileBlock)
            if !extent.item.isUnwritten {
                let slot = view.pages.cache.lookup(home.value)
                open = !slot.isNone && view.pages.isOpen(slot)
                base = try view.block(
                    home, crc: ExtentItem.crc(value, Int(fileBlock - extent.fileBlock)), inode, fileBlock)
            }
        }
        let isSet = found?.extent.item.isUnwritten == true
        if bytes.count >= wholeBlockThreshold && !open {
            // Whole: the page goes to the end of the plan it touches, which keeps files in one piece on disk.
            let cache = view.pages.cache
            let slot = cache.allocate()
            let page = cache.page(slot)
            if let base { page.copy(base) } else { page.zero() }
            page.copy(bytes, to: offset)
            let crc = page.crc32c()
            if plan.slots.isEmpty {
                plan.firstBlock = fileBlock
                plan.slots.append(slot)
                plan.crcs.append(crc)
            } else if fileBlock == plan.firstBlock + UInt64(plan.slots.count) {
                plan.slots.append(slot)
                plan.crcs.append(crc)
            } else {
                precondition(fileBlock + 1 == plan.firstBlock)
                plan.firstBlock = fileBlock
                plan.slots.insert(slot, at: 0)
                plan.crcs.insert(crc, at: 0)
            }
            return
        }
        plan.patches.append(
            WritePlan.Patch(
                fileBlock: fileBlock, home: open || isSet ? home : BlockNumber(0), offset: offset, bytes: bytes,
                isNew: !(open || isSet)))
    }

    /// Gives homes to all runs and patches. Nothing may have to be read after this.
    func placeRuns(_ plan: WritePlan, _ inode: InodeNumber) throws(ViewError) {
        var at = plan.firstBlock
        let end = plan.firstBlock + UInt64(plan.slots.count)
        // Blocks that fallocate set aside are used as they are.
        var found = at < end ? try view.extent(inode, from: at) : nil
        var pieces: [(from: UInt64, to: UInt64, home: BlockNumber?)] = []
        while at < end {
            while let (extent, _) = found, extent.end <= at || !extent.item.isUnwritten, extent.fileBlock < end {
                found = try view.extent(inode, from: extent.end)
            }
            if let (extent, _) = found, extent.fileBlock < end, extent.item.isUnwritten {
                if extent.fileBlock > at { pieces.append((at, extent.fileBlock, nil)) }
                let from = max(at, extent.fileBlock)
                let to = min(end, extent.end)
                pieces.append((from, to, extent.home(from)))
                at = to
            } else {
                pieces.append((at, end, nil))
                at = end
            }
        }
        do throws(ViewError) {
            for piece in pieces {
                var from = piece.from
                while from < piece.to {
                    let first = Int(from - plan.firstBlock)
                    if let home = piece.home {
                        plan.runs.append(
                            WritePlan.Run(
                                fileBlock: from, home: home, count: Int(piece.to - from), first: first, isNew: false))
                        from = piece.to
                    } else {
                        let run = try takeData(piece.to - from)
                        plan.runs.append(
                            WritePlan.Run(
                                fileBlock: from, home: run.start, count: Int(run.count), first: first, isNew: true))
                        from += run.count
                    }
                }
            }
            for index in plan.patches.indices where plan.patches[index].isNew && plan.patches[index].home.value == 0 {
                plan.patches[index].home = try takeData(1).start
            }
        } catch {
            giveBack(plan)
            throw error
        }
    }

    private func takeData(_ wanted: UInt64) throws(ViewError) -> BlockRun {
        guard let run = space!.map.allocate(.data, wanted: wanted) else { throw .refused(.noSpace) }
        for block in run.start.value..<run.end where !view.pages.mayTake(BlockNumber(block)) {
            let why = "block \(block) is free in the map, and somebody's data is still to be written to it"
            fail(why)
            throw .damaged(why)
        }
        return run
    }

    private func giveBack(_ plan: WritePlan) {
        for run in plan.runs where run.isNew {
            try? space!.map.release(BlockRun(start: run.home, count: UInt64(run.count)))
        }
        for patch in plan.patches where patch.isNew && patch.home.value != 0 {
            try? space!.map.release(BlockRun(start: patch.home, count: 1))
        }
        plan.runs.removeAll(keepingCapacity: true)
        plan.patches.removeAll(keepingCapacity: true)
    }

    /// Appends and applies the record of a plan, and makes its pages dirty. `extra` segments (holes, blocks set aside) come first.
    /// `room`: bytes of other records of the same operation, which follow (O3).
    func performContent(
        _ type: RecordType, _ plan: WritePlan, _ inode: InodeNumber, offset: UInt64, length: UInt64, size: UInt64, mode: UInt32,
        _ caller: Caller, flags: UInt16 = 0, fallocateMode: UInt32 = 0,
        extra: [(kind: Segment.Kind, fileBlock: UInt64, home: BlockNumber, blocks: Int)] = [], room: Int = 0
    ) throws(ViewError) {
        var payload = ContentPayload.fixed + extra.count * Segment.fixed
        for run in plan.runs { payload += Segment.size(run: run.count) }
        for patch in plan.patches { payload += Segment.size(patch: patch.bytes.count) }
        if room > 0 { try makeRoom(Record.size(payload: payload) + room) }
        try perform(type, payload: payload, caller, time: now(), flags: flags) { bytes in
            ContentPayload.store(
                bytes, inode: inode, offset: offset, length: length, size: size, mode: mode,
                segments: extra.count + plan.runs.count + plan.patches.count, fallocateMode: fallocateMode)
            var at = ContentPayload.firstSegment
            for part in extra {
                Segment.storePlain(
                    bytes.from(at), kind: part.kind, fileBlock: part.fileBlock, home: part.home, blocks: part.blocks)
                at += Segment.fixed
            }
            for run in plan.runs {
                let segment = bytes.from(at)
                Segment.storeRun(segment, fileBlock: run.fileBlock, home: run.home, blocks: run.count)
                for index in 0..<run.count { Segment.setRunCRC(segment, index, plan.crcs[run.first + index]) }
                at += Segment.size(run: run.count)
            }
            for patch in plan.patches {
                Segment.storePatch(
                    bytes.from(at), fileBlock: patch.fileBlock, home: patch.home, offset: patch.offset, data: patch.bytes)
                at += Segment.size(patch: patch.bytes.count)
            }
        }
        for run in plan.runs {
            for index in 0..<run.count {
                view.pages.addDirty(
                    plan.slots[run.first + index], home: run.home + UInt64(index), crc: plan.crcs[run.first + index])
            }
        }
        if view.pages.dirty.count >= 1024 { lock.broadcast() }
    }

    // MARK: truncating

    /// Sets the length, and the other attributes in `change`. Blocks beyond a shorter one are freed at once if they are few, else in
    /// bounded records after it.
    func truncate(
        _ inode: InodeNumber, to size: UInt64, _ change: AttributeChange, _ caller: Caller
    ) throws(OperationError) {
        guard size <= Limit.fileSize else { throw .tooLarge }
        guard try cutOff(inode, at: size, change, caller) else { return }
        do throws(OperationError) { try reclaim([inode.value]) } catch {
            // The file has its new length; the rest can wait for room.
            guard error == .noSpace else { throw error }
            lock.withLock { reclaimable.append(inode.value) }
        }
    }

    /// The record of a truncation, and with it (O3) those of the other attributes in `change`. True when blocks beyond the new end
    /// are left to be freed.
    func cutOff(
        _ inode: InodeNumber, at size: UInt64, _ change: AttributeChange, _ caller: Caller
    ) throws(OperationError) -> Bool {
        let zeros = lock.withLock { zeroPage }
        try finishTrim(inode)
        return try mutate(blocks: 4, deletes: true) { () throws(ViewError) -> Bool in
            var item = try view.attributes(inode).item
            guard item.isRegular else { throw .refused(item.isDirectory ? .isDirectory : .invalid) }
            try finishTrimNow(inode)
            if change.killPrivileges { item.mode = withoutPrivileges(item.mode, item, caller) }
            let attributes = try self.plan(inode, item, change, caller)
            let plan = WritePlan()
            var done = false
            // Something may have to be read, or refused, after a block was made whole.
            defer { if !done { for slot in plan.slots { view.pages.cache.release(slot) } } }
            var extra: [(kind: Segment.Kind, fileBlock: UInt64, home: BlockNumber, blocks: Int)] = []
            var trim = false
            if size < item.length {
                let within = Int(size & UInt64(blockSize - 1))
                let floor = (size + UInt64(blockSize) - 1) >> UInt64(blockShift)
                if within != 0, let (extent, _) = try view.extent(inode, at: size >> UInt64(blockShift)), !extent.item.isUnwritten {
                    try planPart(plan, inode, size >> UInt64(blockShift), within, zeros.bytes.from(within))
                }
                trim = try !planHole(&extra, inode, from: floor)
                if trim { try view.bringInOrphan(inode) }
                try view.bringInExtents(inode, from: size >> UInt64(blockShift), to: floor)
            }
            try placeRuns(plan, inode)
            try performContent(
                .truncate, plan, inode, offset: size, length: 0, size: size, mode: item.mode, caller,
                flags: trim ? RecordHeader.flagTrim : 0, extra: extra, room: attributes.room)
            done = true
            if trim {
                orphans.insert(inode.value)
                trimming.insert(inode.value)
            }
            try perform(attributes, inode, caller)
            return trim
        }
    }

    /// Plans a hole from `floor` to the file's last block; false when that would free too many extents for one record.
    private func planHole(
        _ extra: inout [(kind: Segment.Kind, fileBlock: UInt64, home: BlockNumber, blocks: Int)], _ inode: InodeNumber,
        from floor: UInt64
    ) throws(ViewError) -> Bool {
        guard let last = try view.lastExtent(inode), last.end > floor else { return true }
        var count = 0
        var at = UInt64.max
        while let extent = try view.lastExtent(inode, before: at), extent.end > floor {
            count += 1
            guard count <= ReclaimPayload.maximumExtents / 4, extent.end - max(floor, extent.fileBlock) <= UInt64(UInt32.max) else {
                return false
            }
            extra.append((.hole, max(floor, extent.fileBlock), BlockNumber(0), Int(extent.end - max(floor, extent.fileBlock))))
            at = extent.fileBlock
            if at <= floor { break }
        }
        return true
    }

    // MARK: fallocate

    /// fallocate(2): sets blocks aside (mode 0, KEEP_SIZE), punches holes, zeroes ranges. Long ranges are several records.
    public func fallocate(
        _ inode: InodeNumber, mode: Int32, offset: UInt64, length: UInt64, _ caller: Caller
    ) throws(OperationError) {
        let keepSize = mode & 1 != 0
        let punch = mode & 2 != 0
        let zero = mode & 0x10 != 0
        guard mode & ~0x13 == 0, !(punch && zero), !punch || keepSize else { throw .notSupported }
        guard length > 0, offset <= Limit.fileSize else { throw .invalid }
        guard length <= Limit.fileSize - offset else { throw .tooLarge }
        try finishTrim(inode)
        var step: UInt64 = 128 << 20
        var at = offset
        while at < offset + length {
            let count = min(offset + length - at, step - at % step)
            guard try fallocateStep(inode, mode: mode, at, count, grow: !keepSize, punch: punch, zero: zero, caller) else {
                step /= 2
                continue
            }
            at += count
        }
    }

    /// Segments of one fallocate record, at most (invariant 12).
    private static let maximumSegments = 512

    /// One record for a range; false, and nothing done, when the file or the free space there is too scattered for that.
    private func fallocateStep(
        _ inode: InodeNumber, mode: Int32, _ offset: UInt64, _ length: UInt64, grow: Bool, punch: Bool, zero: Bool,
        _ caller: Caller
    ) throws(OperationError) -> Bool {
        let zeros = lock.withLock { zeroPage }
        let end = offset + length
        let allocates = !punch
        return try mutate(blocks: allocates ? Int(length >> UInt64(blockShift)) + 8 : 8, deletes: punch) {
            () throws(ViewError) -> Bool in
            let item = try view.attributes(inode).item
            guard item.isRegular else { throw .refused(item.isDirectory ? .isDirectory : .notSupported) }
            try finishTrimNow(inode)
            let plan = WritePlan()
            var extra: [(kind: Segment.Kind, fileBlock: UInt64, home: BlockNumber, blocks: Int)] = []
            var taken: [BlockRun] = []
            let size = grow ? max(item.length, end) : item.length
            let mask = UInt64(blockSize - 1)
            if punch || zero {
                // Edges are zeroed in place where they hold data; whole blocks go.
                for (at, to) in [(offset, min(end, (offset | mask) + 1)), (max(offset, end & ~mask), end)]
                where at < to && (at & mask != 0 || to & mask != 0) {
                    let block = at >> UInt64(blockShift)
                    guard !plan.patches.contains(where: { $0.fileBlock == block }),
                        let (extent, _) = try view.extent(inode, at: block), !extent.item.isUnwritten
                    else { continue }
                    // As a patch, whatever its length: runs of this plan must stay side by side.
                    let within = Int(at & mask)
                    try planZeroPatch(plan, inode, block, within, zeros.bytes.slice(within, Int(to - at)))
                }
            }
            let first = punch || zero ? (offset + mask) >> UInt64(blockShift) : offset >> UInt64(blockShift)
            let last = punch || zero ? end >> UInt64(blockShift) : (end + mask) >> UInt64(blockShift)
            try view.bringInExtents(
                inode, from: offset >> UInt64(blockShift), to: (end + mask) >> UInt64(blockShift), unwritten: true)
            func tooScattered() -> Bool {
                giveBack(plan)
                for run in taken { try? space!.map.release(run) }
                return false
            }
            do throws(ViewError) {
                try placeRuns(plan, inode)
                var at = first
                while at < last {
                    guard extra.count < Self.maximumSegments else { return tooScattered() }
                    let found = try view.extent(inode, from: at)
                    let next = min(last, max(at, found?.extent.fileBlock ?? last))
                    if allocates && next > at {
                        guard try setAside(&extra, &taken, from: at, to: next) else { return tooScattered() }
                    }
                    guard let (extent, _) = found, extent.fileBlock < last else { break }
                    let from = max(at, extent.fileBlock)
                    let to = min(last, extent.end)
                    if punch {
                        extra.append((.hole, from, BlockNumber(0), Int(to - from)))
                    } else if zero && !extent.item.isUnwritten {
                        guard try setAside(&extra, &taken, from: from, to: to) else { return tooScattered() }
                    }
                    at = to
                }
                try performContent(
                    .fallocate, plan, inode, offset: offset, length: length, size: size,
                    mode: item.mode, caller, fallocateMode: UInt32(bitPattern: mode), extra: extra)
                return true
            } catch {
                if failureText == nil {
                    giveBack(plan)
                    for run in taken { try? space!.map.release(run) }
                }
                throw error
            }
        }
    }

    private func planZeroPatch(
        _ plan: WritePlan, _ inode: InodeNumber, _ block: UInt64, _ offset: Int, _ bytes: RawBytes
    ) throws(ViewError) {
        guard let (extent, value) = try view.extent(inode, at: block) else { return }
        let home = extent.home(block)
        _ = try view.block(home, crc: ExtentItem.crc(value, Int(block - extent.fileBlock)), inode, block)
        let slot = view.pages.cache.lookup(home.value)
        let open = !slot.isNone && view.pages.isOpen(slot)
        plan.patches.append(
            WritePlan.Patch(
                fileBlock: block, home: open ? home : BlockNumber(0), offset: offset, bytes: bytes, isNew: !open))
    }

    /// False when the free space is too scattered for one record.
    private func setAside(
        _ extra: inout [(kind: Segment.Kind, fileBlock: UInt64, home: BlockNumber, blocks: Int)], _ taken: inout [BlockRun],
        from: UInt64, to: UInt64
    ) throws(ViewError) -> Bool {
        var at = from
        while at < to {
            guard extra.count < Self.maximumSegments else { return false }
            let run = try takeData(to - at)
            taken.append(run)
            extra.append((.unwritten, at, run.start, Int(run.count)))
            at += run.count
        }
        return true
    }
}
