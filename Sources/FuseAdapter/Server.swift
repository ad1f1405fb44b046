// Server: a volume, mounted.
//
//   mount ──► INIT ──► reader threads ──► ready ─ ─ ─ serving ─ ─ ─► connection ended ──► close the volume ──► done
//                                           SIGTERM: unmount ──┤ not busy          ▲
//                                                              └ busy: flush what the kernel holds, stop
//
// (S1) The volume is closed (its clean checkpoint written) after the last request was answered, and before the descriptor
//      is: while it is open, programs wait instead of failing.
// (S2) A busy mount is never detached while it still works: a program that has files open on it must not go on
//      writing to something that nobody can see. Once stopped, the dead mount is detached, so that nothing trips over it.

import CFuseShim
import Device
import Glibc
public import Logging
import Memory
import Synchronization
public import Volume

public struct MountOptions: Sendable {
    /// What the mount table shows as the source.
    public var source = ""
    /// The source is a block device and the mount the kernel's own to make (root): then it is of type fuseblk, whose sync(2) and
    /// syncfs(2) the kernel passes on, and whose unmounting waits for the clean checkpoint.
    public var isBlockDevice = false
    /// As mount(2) and libfuse know them: ro, nosuid, allow_other, …
    public var kernelOptions: [String] = []
    /// Reading after an open moves the access time, even if the kernel has the contents.
    public var strictAccessTimes = false
    /// Trade power for latency while requests flow; nil: if the kernel lets us.
    public var latency: Bool?
    public static let maximumThreads = 16
    public var threads = 2
    public init() {}
}

public struct ServeError: Error, Sendable, CustomStringConvertible {
    public let description: String
}

/// What reader threads work with.
final class Server: @unchecked Sendable {
    /// Bytes of the largest READ and WRITE.
    static let maximumTransfer = 1 << 20

    let volume: Unmanaged<Volume>
    let options: MountOptions
    let log: Logger
    // Set once, before the first request.
    private(set) var commits: GroupCommit!
    private(set) var loop: RequestLoop!
    private(set) var session: OpaquePointer!
    private let closed = Atomic<Bool>(false)
    private(set) var closeError: OperationError?

    init(_ volume: Volume, _ options: MountOptions, _ log: Logger) {
        self.volume = .passRetained(volume)
        self.options = options
        self.log = log
    }

    deinit { volume.release() }

    func attach(_ session: OpaquePointer) {
        self.session = session
        loop = RequestLoop(session: session, latency: options.latency, threads: max(options.threads, 1))
        commits = GroupCommit(volume.takeUnretainedValue(), descriptor: fuse_session_fd(session))
    }

    /// mount(8) -o remount speaks to the kernel alone; the mount table says what came of it.
    func followMountFlags(_ mountpoint: String) {
        guard let mount = MountedFilesystem.at(mountpoint), mount.isDaybook, mount.source == options.source else { return }
        volume.takeUnretainedValue().pauseAccessTimes(mount.flags.contains("ro") || mount.flags.contains("noatime"))
    }

    func closeVolume() {
        guard closed.compareExchange(expected: false, desired: true, ordering: .acquiringAndReleasing).exchanged else { return }
        do throws(OperationError) { try volume.takeUnretainedValue().close() } catch {
            closeError = error
        }
    }
}

/// To be called first, before any thread is started: signals that end the mount are taken in `serve`, and the process is
/// marked as part of writing back, so that its memory allocations never wait for its own mount.
public func prepareProcess() {
    // Started as /proc/self/exe, it would show as "exe".
    daybook_fuse_name_process("daybook")
    daybook_fuse_block_signals()
    _ = daybook_fuse_become_io_flusher()
}

/// Mounts `volume` on `mountpoint` (an absolute path without symbolic links) and serves it until it is unmounted or
/// the process is told to end; then closes it. `ready` is called when the mount can be used.
public func serve(
    _ volume: Volume, at mountpoint: String, _ options: MountOptions, log: Logger, ready: () -> Void
) throws(ServeError) {
    let server = Server(volume, options, log)
    volume.keepsSetGroup = keepsSetGroup
    defer { server.closeVolume() }
    libraryLog.withLock { $0 = LibraryLog(log: log) }
    daybook_fuse_set_log { level, message in libraryLog.withLock { $0.take(level, String(cString: message)) } }

    var operations = makeOperations()
    let list = ["fsname=" + escaped(options.source), "subtype=daybook", "default_permissions"] + options.kernelOptions
        + (options.isBlockDevice ? ["blkdev", "blksize=4096"] : [])
    guard let session = daybook_fuse_session_new(
        list.joined(separator: ","), &operations, Unmanaged.passUnretained(server).toOpaque())
    else { throw ServeError(description: libraryMessage() ?? "cannot create a FUSE session") }
    guard fuse_session_mount(session, mountpoint) == 0 else {
        fuse_session_destroy(session)
        throw ServeError(description: libraryMessage() ?? "cannot mount on \(mountpoint)")
    }
    defer {
        server.closeVolume()  // (S1)
        // libfuse unmounts by path: whatever was mounted over ours must not be hit.
        if isOnTop(options, mountpoint) { fuse_session_unmount(session) }
        fuse_session_destroy(session)
    }
    let descriptor = fuse_session_fd(session)
    guard daybook_fuse_set_nonblocking(descriptor) == 0, daybook_fuse_install_io(session) == 0 else {
        throw ServeError(description: libraryMessage() ?? "cannot set up the FUSE session")
    }
    server.attach(session)
    guard server.loop.serveFirst(server) else {
        throw ServeError(description: libraryMessage() ?? "the kernel refused the FUSE session")
    }
    tune(mountpoint)

    libraryLog.withLock { $0.isServing = true }
    let ending = Ending()
    let threads = (0..<max(options.threads, 1)).map { index in
        Thread(name: "daybook-fuse-\(index)") {
            server.loop.run(server, thread: index)
            ending.announce()
        }
    }
    ready()
    ending.wait(onSignal: { end(server, mountpoint, $0) }, onMounts: { server.followMountFlags(mountpoint) })
    for thread in threads { thread.join() }
    server.closeVolume()
    if let error = server.closeError { throw ServeError(description: "the volume was not closed cleanly: \(error)") }
}

// MARK: the end

/// Where the main thread waits: for signals, for changes of the mount table, and for the reader threads to be done.
private final class Ending: @unchecked Sendable {
    private let signals = daybook_fuse_signal_descriptor()
    private let mounts = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC)
    private var ends: [Int32] = [-1, -1]

    init() {
        precondition(signals >= 0 && pipe(&ends) == 0, "cannot wait for signals: \(String(cString: strerror(errno)))")
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
    }

    deinit { for descriptor in ends + [signals, mounts] { close(descriptor) } }

    /// Called by a reader thread that has left the loop: then all will.
    func announce() {
        var byte: UInt8 = 0
        _ = write(ends[1], &byte, 1)
    }

    func wait(onSignal: (Int32) -> Void, onMounts: () -> Void) {
        var waits = [pollfd(fd: ends[0], events: Int16(POLLIN), revents: 0), pollfd(fd: signals, events: Int16(POLLIN), revents: 0)]
        waits.append(pollfd(fd: mounts, events: Int16(POLLPRI), revents: 0))
        while true {
            guard poll(&waits, nfds_t(waits.count), -1) > 0 else { continue }
            if waits[0].revents != 0 { return }
            if waits[2].revents != 0 { onMounts() }
            let signal = daybook_fuse_take_signal(signals)
            if signal != 0 { onSignal(signal) }
        }
    }
}

/// Unmounts because a signal asks for it; the reader threads go on serving meanwhile (S2).
private func end(_ server: Server, _ mountpoint: String, _ signal: Int32) {
    server.log.notice("signal \(signal): unmounting \(mountpoint)")
    if isOnTop(server.options, mountpoint) && unmount(mountpoint) { return }
    server.log.warning("\(mountpoint) is in use; ending all the same: programs that use it will get errors")
    // What the kernel still holds (shared mappings) would be lost with the connection.
    let directory = daybook_fuse_open_directory(mountpoint)
    if directory >= 0 {
        _ = synchronize(directory)
        close(directory)
    }
    server.loop.stop()
}

/// Whether what is seen at `mountpoint` is our mount, and not one that covers it.
private func isOnTop(_ options: MountOptions, _ mountpoint: String) -> Bool {
    guard let mount = MountedFilesystem.at(mountpoint) else { return false }
    return mount.type.hasPrefix("fuse") && mount.source == options.source
}

/// False if the mount is busy, or is not ours to unmount.
private func unmount(_ mountpoint: String) -> Bool {
    if umount2(mountpoint, Int32(UMOUNT_NOFOLLOW)) == 0 { return true }
    guard errno == EPERM else { return false }
    let arguments = ["fusermount3", "-u", "-q", "--", mountpoint]
    var pointers: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
    defer { for pointer in pointers { free(pointer) } }
    var child = pid_t()
    guard posix_spawnp(&child, arguments[0], nil, nil, &pointers, environ) == 0 else { return false }
    var status: Int32 = 0
    while waitpid(child, &status, 0) < 0 && errno == EINTR {}
    return status == 0
}

// MARK: the kernel's settings

/// Larger read-ahead, and a fair share of memory for dirty pages (a FUSE mount gets one per cent). Root only: quietly
/// left as it is otherwise.
private func tune(_ mountpoint: String) {
    guard let mount = MountedFilesystem.at(mountpoint) else { return }
    tell("/sys/class/bdi/\(mount.device)/read_ahead_kb", "4096")
    tell("/sys/class/bdi/\(mount.device)/max_ratio", "40")
}

/// Commas separate libfuse's options; a backslash takes their meaning away.
private func escaped(_ value: String) -> String {
    value.reduce(into: "") { result, character in
        if character == "," || character == "\\" { result.append("\\") }
        result.append(character)
    }
}

// MARK: libfuse's messages

/// While mounting, the last message is the reason for a failure; later they go to the log.
private struct LibraryLog {
    var log: Logger?
    var isServing = false
    var last: String?

    mutating func take(_ level: Int32, _ message: String) {
        if isServing {
            log?.log(level: level <= 3 ? .error : level <= 5 ? .notice : .debug, "\(message)")
        } else {
            last = message
        }
    }
}

private let libraryLog = Mutex(LibraryLog())

private func libraryMessage() -> String? {
    libraryLog.withLock { state in
        let message = state.last
        return message.map { $0.hasPrefix("fuse: ") ? String($0.dropFirst(6)) : $0 }
    }
}
