// WritebackGuard: what the kernel accepts into its cache must fit when it is handed over.
//
// With the writeback cache write(2) ends in memory, and the filesystem is asked later: too late to say that it is full. So the cache
// is used while there is far more room than it can hold, and before that ends the mount turns synchronous, as by mount(8) -o sync:
// write(2) then ends when its data has been handed over, and a refusal is its own.
//
//             room < low, or a request that would take it there
//   relaxed ────────────────────────────────────────────────────► flushing ──flag set, flushed again──► synchronous
//      ▲                                                                                                     │
//      └───────────────────────────────── room ≥ high, the flag taken away ──────────────────────────────────┘
//
// (W1) At no time the kernel holds more than `bound`: what vm.dirty_ratio or vm.dirty_bytes lets all filesystems together hold. (A
//      limit of one mount's own is not kept when a program writes to another filesystem in turns.)
// (W2) `low` is four bounds and slack. While the mount turns synchronous the room has to do for what is held at first, for what is
//      accepted while that is flushed, and for what is held when the flag is set: three. The slack is for what takes room without
//      being looked at: between two looks, a second of other requests.
// (W3) One request that could take the room from above `low` to far below it waits until the mount is synchronous: it is parked, and
//      carried out by the guard's thread. It would otherwise keep a reader thread from serving what has to be flushed.
// (W4) The kernel flushes before it sets the flag. What it accepts between is flushed by asking for the same again, after which
//      nothing is held that a write(2) has not waited for.
// (W5) Where the flag cannot be set (a mount by an ordinary user) there is no writeback cache.
//
// Power failing, or the daemon, loses what fsync has not covered, whatever the state: that is the bargain of the option.

import CFuseShim
import Device
import Glibc
import Logging
import Memory
import Synchronization
import Volume

/// Whether the kernel may keep written data for a while before it hands it over.
public enum Writeback: Sendable, Equatable {
    case never
    /// While there is several times the room that its cache could ever take.
    case automatic
    /// While this many bytes are free. The kernel is asked to hold no more than an eighth.
    case whileFree(UInt64)
}

final class WritebackGuard: @unchecked Sendable {
    private let volume: Volume
    private let mountpoint: String
    private let device: DeviceNumber
    private let log: Logger
    let low: UInt64
    let high: UInt64
    private let isRelaxed = Atomic<Bool>(true)

    private let lock = Lock()
    /// There is a reason to turn synchronous.
    private var isPressing = false
    private var hasEnded = false
    /// The flag was set by somebody else: it is not ours to take away.
    private var isForeign = false
    private var parked: [() -> Void] = []
    private var thread: Thread?

    // The thread's own: seconds since it last asked for room, and those that it lets pass before it does so again.
    private var ticks = 0
    private var patience = 1

    /// A reason against it, if there is one; otherwise the guard, still to be started.
    static func make(_ volume: Volume, at mountpoint: String, _ options: MountOptions, log: Logger) -> Result<WritebackGuard, ServeError> {
        let low: UInt64
        switch options.writeback {
        case .never: return .failure(ServeError(description: "not asked for"))
        case .automatic: low = 4 * dirtyBound() + 1 << 30
        case .whileFree(let bytes): low = bytes
        }
        if options.kernelOptions.contains("sync") { return .failure(ServeError(description: "the mount is synchronous")) }
        guard let number = MountedFilesystem.at(mountpoint).flatMap({ DeviceNumber($0.device) }) else {
            return .failure(ServeError(description: "the mount is not in the mount table"))
        }
        let error = daybook_fuse_can_reconfigure(mountpoint, number.major, number.minor)
        guard error == 0 else {
            return .failure(ServeError(description: "the mount could not be made synchronous when little is free: \(String(cString: strerror(error)))"))
        }
        let available = volume.statistics().available << 12
        guard available >= 2 * low else {
            return .failure(ServeError(description: "it takes \(2 * low >> 20) MiB of free space, and there are \(available >> 20)"))
        }
        return .success(WritebackGuard(volume, mountpoint, number, low: low, log))
    }

    private init(_ volume: Volume, _ mountpoint: String, _ device: DeviceNumber, low: UInt64, _ log: Logger) {
        self.volume = volume
        self.mountpoint = mountpoint
        self.device = device
        self.log = log
        self.low = low
        high = low + low / 4
        volume.keepFree(low + low / 2)
    }

    /// (W1) Bytes of dirty memory at which the kernel makes all writers wait.
    private static func dirtyBound() -> UInt64 {
        func number(_ path: String) -> UInt64 {
            let text = String(decoding: ProcessFiles.contents(path) ?? [], as: UTF8.self)
            return text.split(whereSeparator: { !$0.isNumber }).first.flatMap { UInt64($0) } ?? 0
        }
        let bytes = number("/proc/sys/vm/dirty_bytes")
        // MemTotal, in KiB, comes first.
        return bytes > 0 ? bytes : (number("/proc/meminfo") << 10) / 100 * number("/proc/sys/vm/dirty_ratio")
    }

    // MARK: reader threads

    /// To be called after a request that may have taken room.
    @inline(__always) func look() {
        if isRelaxed.load(ordering: .relaxed) && volume.room() < low { press() }
    }

    /// Parks `request`, which may take as many as `bytes`, if it must wait (W3). False if it need not.
    func park(_ bytes: UInt64, _ request: @escaping () -> Void) -> Bool {
        guard isRelaxed.load(ordering: .relaxed), volume.room() < low &+ bytes || bytes > UInt64.max - low else { return false }
        let isParked = lock.withLock {
            guard !hasEnded else { return false }
            parked.append(request)
            isPressing = true
            lock.broadcast()
            return true
        }
        return isParked
    }

    private func press() {
        lock.withLock {
            guard !isPressing else { return }
            isPressing = true
            lock.broadcast()
        }
    }

    /// The mount table says that the flags have changed.
    func follow(isSynchronous: Bool) {
        lock.withLock {
            if isRelaxed.load(ordering: .relaxed) {
                isForeign = isSynchronous
            } else if !isSynchronous {
                // Taken away while we need it.
                isForeign = false
                isRelaxed.store(true, ordering: .relaxed)
                isPressing = true
                lock.broadcast()
            }
        }
    }

    // MARK: the guard's own thread

    func start(_ server: Server) {
        let server = Unmanaged.passUnretained(server)
        thread = Thread(name: "daybook-room") { [self] in
            var state = daybook_fuse_thread(
                server: server.toOpaque(), reply: UnsafeMutablePointer<CChar>.allocate(capacity: 1), reply_size: 0, write_flags: 0,
                setxattr_flags: 0, offered: 0)
            // Parked requests find the server by it; it lives as long as they may run.
            withUnsafeMutablePointer(to: &state) {
                daybook_fuse_set_thread($0)
                run()
            }
            state.reply.deallocate()
        }
    }

    /// Waits for the thread's end. Reader threads have to be there still: it may be waiting for what they serve.
    func end() {
        lock.withLock {
            hasEnded = true
            lock.broadcast()
        }
        thread?.join()
        thread = nil
    }

    private func run() {
        while true {
            let (pressing, ended) = lock.withLock {
                if !isPressing && !hasEnded { _ = lock.wait(nanoseconds: 1_000_000_000) }
                defer { isPressing = false }
                return (isPressing, hasEnded)
            }
            let room = volume.room()
            // Ended: nothing more is accepted.
            if !ended {
                if isRelaxed.load(ordering: .relaxed) {
                    if pressing || room < low { tighten(room) }
                } else if !pressing {
                    if room >= high { relax() } else { prod() }
                }
            }
            let requests = lock.withLock {
                defer { parked = [] }
                return parked
            }
            for request in requests { request() }
            if ended && requests.isEmpty { return }
        }
    }

    private func tighten(_ room: UInt64) {
        var error = setFlag(true)
        if error == 0 { error = setFlag(true) }  // (W4)
        if error == 0 {
            isRelaxed.store(false, ordering: .relaxed)
            log.notice("\(mountpoint): \(room >> 20) MiB are left: the mount is synchronous until there is more")
        } else if error != ENODEV && error != ENOTCONN {
            log.warning("\(mountpoint): \(room >> 20) MiB are left, and the mount cannot be made synchronous: \(String(cString: strerror(error)))")
        }
    }

    /// What is deleted is history at first, which gives way when room is needed: by us, from time to time, ever more rarely in vain.
    private func prod() {
        ticks += 1
        guard ticks >= patience, volume.statistics().available << 12 >= high else { return }
        ticks = 0
        patience = min(patience * 2, 64)
        volume.makeRoomIfLow()
    }

    private func relax() {
        patience = 1
        // First, so that no request goes by unseen once the kernel caches again.
        isRelaxed.store(true, ordering: .relaxed)
        guard lock.withLock({ !isForeign }) else { return }
        let error = setFlag(false)
        guard error == 0 else {
            isRelaxed.store(false, ordering: .relaxed)
            return
        }
        log.notice("\(mountpoint): the mount is no longer synchronous")
    }

    private func setFlag(_ on: Bool) -> Int32 { daybook_fuse_set_synchronous(mountpoint, device.major, device.minor, on) }
}

/// Of a filesystem, as stat(2) and the mount table show it.
struct DeviceNumber: Equatable {
    let major: UInt32
    let minor: UInt32

    /// From "major:minor".
    init?(_ text: String) {
        let parts = text.split(separator: ":").compactMap { UInt32($0) }
        guard parts.count == 2 else { return nil }
        (major, minor) = (parts[0], parts[1])
    }
}
