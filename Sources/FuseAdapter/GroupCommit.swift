// GroupCommit: who answers fsync, and when.
//
//   idle ──ask──► the asker leads: ┌─► take all waiting ──► commit ──► answer those taken ─┐
//                                  └────────────── while others asked meanwhile ◄──────────┘──► idle
//
// A thread that asks while another leads leaves its request behind and goes on serving: no thread but the leader waits
// for the device, and everyone who asked during a commit shares the next one.
//
// (G1) A request is answered by a commit that began after it was asked: it is taken before the commit, under the lock.
// (G2) Leading ends only under the lock and with nothing waiting, so that no request is left behind.
// (G3) A failed commit fails everyone it was for; nobody is answered by a later one that happens to succeed.

import CFuseShim
import Memory
import Volume

/// Who waits for a commit: a request of libfuse's, or one that only the raw protocol knows.
struct CommitWaiter {
    var request: fuse_req_t?
    var unique: UInt64
}

final class GroupCommit: @unchecked Sendable {
    private let lock = Lock()
    private var leading = false
    /// Both keep their memory: after the first few rounds asking allocates nothing.
    private var waiting: [CommitWaiter] = []
    private var taken: [CommitWaiter] = []
    private let volume: Volume
    private let descriptor: Int32
    /// Average time of a commit, for the request loop to judge how long the leader will be gone.
    private(set) var averageNanoseconds: UInt64 = 0

    init(_ volume: Volume, descriptor: Int32) {
        self.volume = volume
        self.descriptor = descriptor
        waiting.reserveCapacity(256)
        taken.reserveCapacity(256)
    }

    /// Answers `waiter` once everything done so far is durable; now, later by another thread, or after leading.
    /// `willLead` is called before this thread turns to the device.
    func ask(_ waiter: CommitWaiter, willLead: () -> Void) {
        lock.lock()
        waiting.append(waiter)
        if leading {
            lock.unlock()
            return
        }
        leading = true
        lock.unlock()
        willLead()
        lead()
    }

    private func lead() {
        lock.lock()
        while !waiting.isEmpty {
            swap(&waiting, &taken)
            lock.unlock()
            let began = daybook_fuse_now()
            var error: Int32 = 0
            do { try volume.commit() } catch let failure { error = failure.errno }
            averageNanoseconds = (averageNanoseconds * 7 + (daybook_fuse_now() - began)) / 8
            for waiter in taken { answer(waiter, error) }
            taken.removeAll(keepingCapacity: true)
            lock.lock()
        }
        leading = false
        lock.unlock()
    }

    func answer(_ waiter: CommitWaiter, _ error: Int32) {
        if let request = waiter.request {
            fuse_reply_err(request, error)
        } else {
            _ = daybook_fuse_reply_raw(descriptor, waiter.unique, error)
        }
    }
}
