// Drain: making durable what the kernel has not handed over yet: stores to shared mappings.
//
//   syncfs ──► DRAIN ──► DRAIN ──► … until little else came between two of them ──► fsync ──► durable
//
// For a server that is not mounted from a block device syncfs(2) ends once every dirty page has been made a request, not when those
// have been answered. Requests that the kernel makes of its own accord (writeback, read-ahead, RELEASE) wait in a queue of their
// own, first in first out, from which at most `max_background` are sent on before the first of them is answered; those of
// programs, fsync among them, pass by that queue. DRAIN is an ioctl on a directory, so a request of a program.
//
// (D1) DRAIN is answered after every request that was read before it. All that were sent before it were read before it, as the
//      kernel hands out what it has sent in that order.
// (D2) So each DRAIN takes `max_background` requests off the queue, or all there are: a queue of writeback that another program
//      keeps refilling ends for us after as many rounds as it had such lots when we came.
// (D3) A queue with something in it has `max_background` sent and not answered. So if fewer requests were read between one DRAIN
//      and the next, it was empty when the second was sent, and what had left it was answered before that one was (D1).
// (D4) For mounts made by ordinary users the kernel lowers `max_background` to max_user_bgreq. It is taken for the lower of both, for
//      all mounts; that only makes for more rounds.
//
// Power may fail at any moment before the fsync has returned: nothing was promised. After that, what the drained requests have
// written is in the journal as any other write before an fsync.
// Not covered: stores to a file that another process truncates or syncs at this very moment. The kernel holds those back in the inode
// until that call is done; they are that call's to wait for.

import CFuseShim
import Device
import Glibc
import Memory

/// Requests that the kernel is asked to send of its own accord, at most, before the first is answered. More, and programs wait for
/// longer behind them.
let backgroundRequests = 64

/// Makes everything durable that was done in the mounted Daybook filesystem of an open directory. Returns 0 or the errno.
public func synchronize(_ directory: Int32) -> Int32 {
    guard daybook_fuse_syncfs(directory) == 0 else { return errno }
    // (D2) Counted are pages under writeback, of all filesystems; 65,536 is for other requests and for what the count lags behind.
    let lot = backgroundRequestsAtLeast()
    var rounds = (pagesUnderWriteback() + 65_536) / lot
    var before: Int32?
    while rounds > 0 {
        let answered = daybook_fuse_drain(directory)
        guard answered >= 0 else { return errno }
        // (D3) Those that threads have in hand are not among the answered.
        if let before, Int(answered &- before) & 0x7fff_ffff < lot - MountOptions.maximumThreads { break }
        before = answered
        rounds -= 1
    }
    return fsync(directory) == 0 ? 0 : errno
}

/// (D4)
private func backgroundRequestsAtLeast() -> Int {
    guard let text = ProcessFiles.contents("/sys/module/fuse/parameters/max_user_bgreq"),
        let limit = Int(String(decoding: text.prefix { $0 > 32 }, as: UTF8.self)), limit > 0
    else { return backgroundRequests }
    return min(limit, backgroundRequests)
}

private func pagesUnderWriteback() -> Int {
    guard let text = ProcessFiles.contents("/proc/meminfo") else { return 0 }
    let kibibytes = String(decoding: text, as: UTF8.self).split(separator: "\n").reduce(0) { sum, line in
        let fields = line.split(separator: " ")
        guard fields.count >= 2, fields[0] == "Writeback:" || fields[0] == "WritebackTmp:" else { return sum }
        return sum + (Int(fields[1]) ?? 0)
    }
    return kibibytes / 4
}

/// What each reader thread has in hand, for others to wait for.
final class Turns: @unchecked Sendable {
    /// Words; a cache line and the one that is fetched with it.
    private static let stride = 16
    private let words: UnsafeMutablePointer<UInt64>
    private let count: Int

    init(threads: Int) {
        count = threads
        words = .allocate(capacity: threads * Self.stride)
        words.initialize(repeating: 0, count: threads * Self.stride)
    }

    deinit { words.deallocate() }

    func turn(of thread: Int) -> UnsafeMutablePointer<UInt64> { words + thread * Self.stride }

    /// Ends `own` turn, so that nobody waits for who waits here, and returns once no thread has in hand what it had when
    /// this was called.
    func waitForOthers(_ own: UnsafeMutablePointer<UInt64>) {
        daybook_fuse_end_turn(own)
        for thread in 0..<count {
            let turn = turn(of: thread)
            let seen = daybook_fuse_load_turn(turn)
            while seen & 1 != 0 && daybook_fuse_load_turn(turn) == seen { usleep(20) }
        }
    }
}
