// RequestLoop: how reader threads share the session's descriptor.
//
//             nothing pending                  request                     answered
//   reading ──────────────────► listening ───────────────► serving ───────────────────► reading
//      ▲         somebody listens │   ▲ spins, then sleeps    │
//      │                          ▼   │                       │ requests overlap, or this one will take long
//      └─────── woken ───────── parked ◄── wakes one ─────────┘
//
// A request wakes whoever sleeps on the descriptor, whether or not another thread would have taken it in the next
// microsecond. So at most one thread, the listener, waits there, and the others are parked where requests do not reach
// them. While one client sends one request at a time, one thread does everything, without a single wake-up of another.
//
// (Q1) At most one thread is listening; a parked thread costs the others nothing.
// (Q2) A thread that is about to be long away, or finds the next request waiting whenever it returns, wakes a parked one.
// (Q3) A parked thread looks every few milliseconds whether all others are stuck in one request each, and if so listens.
//      Only while the listener sleeps too does it stop looking, and the listener wakes it when that long sleep ends.
// (Q4) Serving allocates nothing: buffers are the thread's own, for its life.
// (Q5) A thread's turn begins before it looks for a request and ends when it has answered it, or turns to the device for a commit:
//      by then it has done what the request asks.

import CFuseShim
import Glibc
import Memory
import Synchronization

final class RequestLoop: @unchecked Sendable {
    private static let tick: Int64 = 5_000_000
    private static let overlapping = 24

    private let session: OpaquePointer
    let descriptor: Int32
    /// Written to when the loop is to end, so that the listener wakes.
    private let stopReader: Int32
    private let stopWriter: Int32

    private let turns: Turns
    private let listening = Atomic<Bool>(false)
    private let stopping = Atomic<Bool>(false)
    private let served = Atomic<Int>(0)
    /// How often the next request was found waiting of late: above zero when clients overlap.
    private let overlap = Atomic<Int>(0)
    /// Parked threads, and wake-ups granted to them and not yet taken. Futex words.
    private let parked = UnsafeMutablePointer<UInt32>.allocate(capacity: 1)
    private let granted = UnsafeMutablePointer<UInt32>.allocate(capacity: 1)

    // The listener's own.
    private var pace = Pace()
    private let wish: LatencyWish?
    private let spins: Bool

    /// `latency` nil: spin if the wish for quick wake-ups can be expressed.
    init(session: OpaquePointer, latency: Bool?, threads: Int) {
        self.session = session
        turns = Turns(threads: threads)
        descriptor = fuse_session_fd(session)
        var ends: [Int32] = [-1, -1]
        precondition(pipe(&ends) == 0, "pipe: \(String(cString: strerror(errno)))")
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        (stopReader, stopWriter) = (ends[0], ends[1])
        parked.initialize(to: 0)
        granted.initialize(to: 0)
        wish = latency == false ? nil : LatencyWish()
        spins = latency ?? (wish != nil)
    }

    deinit {
        close(stopReader)
        close(stopWriter)
        parked.deallocate()
        granted.deallocate()
    }

    // MARK: a reader thread

    /// Memory of one reader thread.
    private final class Buffers {
        /// Begins so that the payload of a WRITE begins on a page, ready for O_DIRECT without a copy.
        let request: UnsafeMutableRawPointer
        let requestSize: Int
        let state = UnsafeMutablePointer<daybook_fuse_thread>.allocate(capacity: 1)
        /// Thread that sent the last request, if one did.
        var lastSender: UInt32 = 0
        private let memory: AlignedBuffer
        private let reply: AlignedBuffer

        init(_ server: Server, turn: UnsafeMutablePointer<UInt64>) {
            let header = Int(DAYBOOK_FUSE_WRITE_HEADER)
            memory = AlignedBuffer(count: 4096 + Server.maximumTransfer + 4096, huge: true)
            reply = AlignedBuffer(count: Server.maximumTransfer, huge: true)
            request = memory.bytes.pointer + 4096 - header
            requestSize = header + Server.maximumTransfer + 4096
            state.initialize(
                to: daybook_fuse_thread(
                    server: Unmanaged.passUnretained(server).toOpaque(), reply: reply.bytes.pointer.assumingMemoryBound(to: CChar.self),
                    reply_size: reply.bytes.count, write_flags: 0, setxattr_flags: 0, offered: 0, turn: turn))
            daybook_fuse_set_thread(state)
        }

        deinit {
            daybook_fuse_end_turn(state.pointee.turn)
            state.deallocate()
        }
    }

    /// Serves INIT, without which nothing else can be. False when the connection ended instead.
    func serveFirst(_ server: Server) -> Bool {
        let buffers = Buffers(server, turn: turns.turn(of: 0))
        var ready = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        while true {
            let count = receive(buffers)
            if count > 0 {
                dispatch(server, buffers, count)
                return fuse_session_exited(session) == 0
            }
            guard count == 0, poll(&ready, 1, 10_000) > 0 else { return false }
        }
    }

    /// Serves until the connection ends or `stop` is called.
    func run(_ server: Server, thread: Int) {
        let buffers = Buffers(server, turn: turns.turn(of: thread))
        while !stopping.load(ordering: .relaxed) {
            var count = receive(buffers)
            noteOverlap(buffers, waiting: count > 0)
            if count == 0 {
                guard listening.compareExchange(expected: false, desired: true, ordering: .acquiringAndReleasing).exchanged else {
                    park()
                    continue
                }
                count = listen(buffers)
                listening.store(false, ordering: .releasing)
                if count == 0 { continue }
            }
            guard count > 0 else { break }
            if overlap.load(ordering: .relaxed) > Self.overlapping { wakeOne() }
            buffers.lastSender = daybook_fuse_sender(buffers.request)
            dispatch(server, buffers, count)
            served.wrappingAdd(1, ordering: .relaxed)
        }
        stop()
    }

    /// Ends the loop: threads return once they have answered what they have in hand.
    func stop() {
        guard stopping.compareExchange(expected: false, desired: true, ordering: .acquiringAndReleasing).exchanged else { return }
        var byte: UInt8 = 0
        _ = write(stopWriter, &byte, 1)
        while wakeParked() {}
    }

    /// Called by a thread that turns to the device for a commit.
    func leaveForLong(_ commits: GroupCommit) {
        daybook_fuse_end_turn(daybook_fuse_thread().pointee.turn)
        // A wake-up costs a few microseconds of a short commit: only worth it when others are there to be served.
        if overlap.load(ordering: .relaxed) > 0 || commits.averageNanoseconds > 1_000_000 { wakeOne() }
    }

    /// Called by a thread that has a request of many blocks in hand: the kernel reads ahead, so the next one is on its way.
    func leaveForTransfer() { wakeOne() }

    /// Called by a thread that has DRAIN in hand. Returns how many requests have been answered, modulo 2^31, once all that were
    /// read before have been.
    func drain() -> Int32 {
        // Before waiting: what is read meanwhile counts as read later, which at worst makes for one more round.
        let answered = Int32(served.load(ordering: .relaxed) & 0x7fff_ffff)
        turns.waitForOthers(daybook_fuse_thread().pointee.turn)
        return answered
    }

    /// A request that was waiting when the last one had been answered means that clients overlap, if somebody else sent it. The
    /// same client's may wait as well: it was woken by the answer, on this very processor, before we came to look.
    private func noteOverlap(_ buffers: Buffers, waiting: Bool) {
        var seen = overlap.load(ordering: .relaxed)
        let sender = waiting ? daybook_fuse_sender(buffers.request) : 0
        if sender != 0 && sender != buffers.lastSender {
            seen = min(seen + 4, 64)
        } else if seen > 0 {
            seen -= 1
        } else {
            return
        }
        overlap.store(seen, ordering: .relaxed)
    }

    private func dispatch(_ server: Server, _ buffers: Buffers, _ count: Int) {
        if !serveRaw(server, buffers.request) {
            daybook_fuse_process(session, buffers.state, buffers.request, count)
        }
        daybook_fuse_end_turn(buffers.state.pointee.turn)
    }

    /// Bytes of the next request; 0 when none is pending; negative when the connection has ended.
    private func receive(_ buffers: Buffers) -> Int {
        while true {
            daybook_fuse_begin_turn(buffers.state.pointee.turn)
            let count = read(descriptor, buffers.request, buffers.requestSize)
            if count > 0 { return count }
            let error = errno
            daybook_fuse_end_turn(buffers.state.pointee.turn)
            switch error {
            case EAGAIN: return 0
            // ENOENT: the request was interrupted before we had it.
            case EINTR, ENOENT: continue
            default: return -1
            }
        }
    }

    // MARK: listening

    private func listen(_ buffers: Buffers) -> Int {
        let began = daybook_fuse_now()
        if spins && pace.maySpin(at: began) {
            if pace.isFlowing { wish?.hold() }
            let count = spin(buffers, since: began)
            if count != 0 { return count }
        }
        var waits = (pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0), pollfd(fd: stopReader, events: Int16(POLLIN), revents: 0))
        while true {
            if pace.isFlowing { wish?.hold() }
            let held = wish?.isHeld ?? false
            let ready = withUnsafeMutablePointer(to: &waits) {
                $0.withMemoryRebound(to: pollfd.self, capacity: 2) {
                    poll($0, 2, held ? Int32(Pace.holdAfterLast / 1_000_000) : -1)
                }
            }
            if ready == 0 {
                pace.slept(.max)
                wish?.giveUp()
                continue
            }
            if waits.1.revents != 0 { return -1 }
            let count = receive(buffers)
            if count == 0 { continue }
            let waited = daybook_fuse_now() - began
            pace.slept(waited)
            if waited > UInt64(Self.tick) { _ = wakeParked() }
            return count
        }
    }

    private func spin(_ buffers: Buffers, since began: UInt64) -> Int {
        var last = began
        while true {
            // Looking takes a lock that the sender needs too.
            for _ in 0..<8 { daybook_fuse_pause() }
            let count = receive(buffers)
            let now = daybook_fuse_now()
            if now - last > Pace.preempted {
                pace.wasPreempted(at: now)
                return count
            }
            if count != 0 {
                pace.spunWell()
                return count
            }
            if now - began > Pace.spin {
                pace.spunInVain()
                return 0
            }
            last = now
        }
    }

    // MARK: parking

    /// Wakes a parked thread, unless somebody listens already.
    private func wakeOne() {
        if !listening.load(ordering: .relaxed) { _ = wakeParked() }
    }

    private func wakeParked() -> Bool {
        guard leaveParked() else { return false }
        _ = daybook_fuse_add(granted, 1)
        daybook_fuse_futex_wake_one(granted)
        return true
    }

    /// Takes one thread off the count of the parked.
    private func leaveParked() -> Bool {
        while true {
            let count = daybook_fuse_load(parked)
            if count == 0 { return false }
            if daybook_fuse_exchange(parked, count, count - 1) { return true }
        }
    }

    private func park() {
        var seen = served.load(ordering: .relaxed)
        var limit = Self.tick
        _ = daybook_fuse_add(parked, 1)
        while true {
            let grants = daybook_fuse_load(granted)
            if grants > 0 {
                if daybook_fuse_exchange(granted, grants, grants - 1) { return }
                continue
            }
            if stopping.load(ordering: .acquiring) && leaveParked() { return }
            if daybook_fuse_futex_wait(granted, 0, limit) { continue }
            let now = served.load(ordering: .relaxed)
            if now == seen {
                if listening.load(ordering: .relaxed) {
                    limit = -1
                } else if leaveParked() {
                    return  // (Q3)
                }
            }
            seen = now
        }
    }
}
