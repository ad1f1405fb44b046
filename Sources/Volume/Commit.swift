// Commit: making everything up to now durable.
//
//   seal pending frame ─► write dirty data ─► write frame ─► flush ─► durable
//
// One thread commits at a time, for all who wait (group commit). If the power fails before the flush returns, the frame
// and the data it names may be there in part; replay then rejects the frame by its CRC or that of its data, and the state is
// that of the frame before. After a failed write or flush nothing is retried (invariant 2).

import Device
import Format
import Journal
import Memory

extension Volume {
    /// True when everything done so far is durable.
    public var isCommitted: Bool { lock.withLock { journal == nil || durable >= view.sequence } }

    /// Makes everything done so far durable. Calls from several threads share one write and flush.
    public func commit() throws(OperationError) {
        guard journal != nil else { return }
        lock.lock()
        defer { lock.unlock() }
        try commit(upTo: view.sequence)
    }

    /// With the lock held; drops it while writing.
    func commit(upTo target: SequenceNumber) throws(OperationError) {
        while durable < target {
            if let failureText { throw .io(failureText) }
            if committing {
                lock.wait()
                continue
            }
            committing = true
            if sealed.isEmpty { seal() }
            guard !sealed.isEmpty, failureText == nil else {
                committing = false
                lock.broadcast()
                throw .io(failureText ?? "nothing to commit up to \(target)")
            }
            let frame = sealed.removeFirst()
            let slots = view.pages.takeDirty()
            // Data that another thread took before the seal may be what this frame names.
            let writesBegun = dataWritesBegun
            lock.unlock()
            var failed: DeviceError?
            do throws(DeviceError) {
                try writeData(slots)
                try journal!.write(frame)
            } catch { failed = error }
            lock.lock()
            while dataWritesEnded < writesBegun && failureText == nil { lock.wait() }
            let stop = failed != nil || failureText != nil
            if !stop {
                unflushedBlocks = 0
                view.pages.beginRound()
                lock.unlock()
                do throws(DeviceError) { try device.flush() } catch { failed = error }
                lock.lock()
            }
            if let failed { fail(failed.description) }
            if failureText == nil {
                view.pages.flushed(slots)
                durable = frame.header.last
                journal!.recycle(frame)
            }
            committing = false
            lock.broadcast()
        }
    }

    /// Writes dirty pages to their homes, neighbours together. Without the lock: dirty pages do not change.
    func writeData(_ slots: [PageSlot]) throws(DeviceError) {
        guard !slots.isEmpty else { return }
        let cache = view.pages.cache
        let order = slots.map { (block: cache.block($0)!, slot: $0) }.sorted { $0.block < $1.block }
        var first = 0
        var pages: [RawBytes] = []
        while first < order.count {
            var end = first + 1
            while end < order.count, order[end].block == order[end - 1].block + 1, end - first < 1024 { end += 1 }
            pages.removeAll(keepingCapacity: true)
            for index in first..<end { pages.append(cache.page(order[index].slot)) }
            try device.write(BlockNumber(order[first].block), gathering: pages)
            first = end
        }
    }

    /// Writes dirty data back before a commit asks for it, so that commits have little left to do. With the lock held.
    func writeBack() {
        guard failureText == nil else { return }
        let slots = view.pages.takeDirty()
        guard !slots.isEmpty else { return }
        dataWritesBegun += 1
        unflushedBlocks += slots.count
        lock.unlock()
        var failed: DeviceError?
        do throws(DeviceError) { try writeData(slots) } catch { failed = error }
        lock.lock()
        dataWritesEnded += 1
        if let failed { fail(failed.description) } else { view.pages.written(slots) }
        lock.broadcast()
    }

    /// The `writer` thread: data write-back, and a commit when the timer or the amount asks for it.
    func writerLoop() {
        lock.lock()
        defer { lock.unlock() }
        let interval = UInt64(max(options.commitSeconds, 0.01) * 1e9)
        var deadline: Int64?
        while true {
            if view.pages.dirty.count >= 1024 || writeBackWanted {
                writeBackWanted = false
                writeBack()
            }
            // A frame should not name more unflushed data than recovery can verify quickly (64 MiB at most).
            // A deadline further off than the interval means that the clock was set back.
            let due = deadline.map { (deadline) in
                let now = now().nanoseconds
                return now >= deadline || now < deadline - Int64(interval)
            } ?? false
            if failureText == nil && durable < view.sequence && (commitWanted || due || unflushedBlocks >= 8192 || !sealed.isEmpty) {
                commitWanted = false
                try? commit(upTo: view.sequence)
                deadline = nil
                continue
            }
            commitWanted = false
            if stopping { return }
            if durable >= view.sequence || failureText != nil {
                deadline = nil
            } else if deadline == nil {
                deadline = now().nanoseconds + Int64(interval)
            }
            if view.pages.dirty.count < 1024 || failureText != nil {
                _ = lock.wait(nanoseconds: min(interval, 500_000_000))
            }
        }
    }
}
