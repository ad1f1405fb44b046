// daybook mount: makes an image a directory.
//
//   daybook mount ──► checks that change nothing ──► starts itself again in a session of its own ──► waits for one byte
//                                                      │                                                 ▲
//                                                      └► opens and locks the image, recovers, mounts ───┘ serves, …
//
// The daemon is started anew, not forked: the Swift runtime does not survive a fork. Until it is ready it shares standard
// error with whoever called mount, so that a message is seen where the command was given; then it lets go of it.
//
// Exit statuses are those of mount(8).

import ArgumentParser
import CSupport
import Device
import Format
import FuseAdapter
import Glibc
import Logging
import Volume

enum MountStatus {
    static let usage: Int32 = 1
    static let system: Int32 = 2
    static let `internal`: Int32 = 4
    static let failure: Int32 = 32
}

struct MountError: Error {
    let message: String
    let status: Int32
    init(_ message: String, _ status: Int32 = MountStatus.failure) {
        self.message = message
        self.status = status
    }
    /// A path that leads nowhere.
    static func missing(_ path: String, _ what: String) -> MountError {
        let number = errno
        guard isUnreadable(path) else { return .system(what + path, number) }
        return MountError("\(what)\(path): names that are not UTF-8 are not supported here", MountStatus.usage)
    }
    /// The reason is in `errno`.
    static func system(_ what: String, _ number: Int32 = errno) -> MountError {
        let denied = number == EACCES || number == EPERM
        return MountError("\(what): \(String(cString: strerror(number)))", denied ? MountStatus.usage : MountStatus.failure)
    }
}

struct MountCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "mount", abstract: "Mount an image or a device on a directory.",
        discussion: """
            Options (-o), separated by commas:
              ro, rw                 read only; read and write (default)
              at=SEQUENCE|TIME       the state at that point, read only; TIME is 2026-01-31[ 12:00[:00]], RFC 3339 or @SECONDS
              commit=SECONDS         longest time that a change waits to be durable (default 5)
              cache=SIZE             memory for the cache, at least 16M
              noatime, relatime, strictatime
                                     never keep access times; keep them roughly (default); at the first read after each open,
                                     and at every one that the kernel's cache does not answer
              acl, noacl             POSIX access control lists decide too who may do what (default); or do not exist
              writeback              has no effect: write(2) always asks whether there is room
              latency=0|1            spend power on quick answers while requests flow (default 1 for root)
              threads=N              how many threads serve requests (default 2)
              allow_other            let other users in (default for root)
              errors=remount-ro      after a device error (the only choice)
              remount                of what is mounted, change ro, rw, suid, dev, exec, sync, dirsync and their opposites
              suid, dev, exec, sync, dirsync and their opposites, and what fstab(5) knows, are as usual
            """)

    @Option(name: [.customShort("o")], help: ArgumentHelp("Mount options.", valueName: "options"))
    var options: [String] = []
    @Flag(name: .shortAndLong, help: "Stay in the foreground; messages go to standard error.")
    var foreground = false
    @Argument(help: ArgumentHelp("Image file or block device.", valueName: "image"))
    var image: String
    @Argument(help: ArgumentHelp("Directory to mount it on.", valueName: "dir"))
    var directory: String

    /// Where to say that the mount is ready, when started by another `daybook mount`.
    @Option(name: .customLong("status-descriptor"), help: .hidden)
    var statusDescriptor: Int32?
    /// mount(8) -s and -f: ignore unknown options; do everything but mount.
    @Flag(help: .hidden) var sloppy = false
    @Flag(help: .hidden) var fake = false

    func run() throws {
        do {
            let settings: MountSettings
            do { settings = try MountSettings(options, isRoot: geteuid() == 0, sloppy: sloppy) } catch {
                throw MountError(error.description, MountStatus.usage)
            }
            if let statusDescriptor { _ = fcntl(statusDescriptor, F_SETFD, FD_CLOEXEC) }
            for option in settings.ignored where statusDescriptor == nil {
                printError("daybook mount: '\(option)' has no effect: write(2) always asks whether there is room")
            }
            if settings.remount { return try remount(settings) }
            let target = try MountTarget(image: image, directory: directory)
            if fake { return }
            if foreground || statusDescriptor != nil {
                try serveImage(target, settings)
            } else {
                try serveInBackground(target)
            }
        } catch let error as MountError {
            if !error.message.isEmpty { printError("daybook mount: \(error.message)") }
            throw ExitCode(error.status)
        }
    }
}

// MARK: checks

/// What is mounted where, found to be there.
struct MountTarget {
    /// Absolute, without symbolic links: the daemon leaves the current directory.
    let image: String
    let directory: String

    init(image: String, directory: String) throws(MountError) {
        guard let image = resolve(image) else { throw MountError.missing(image, "") }
        guard let directory = resolve(directory) else { throw MountError.missing(directory, "mount point ") }
        var status = stat()
        guard stat(directory, &status) == 0 else {
            if errno == ENOTCONN {
                throw MountError("mount point \(directory): its filesystem's daemon is gone; unmount it first (umount \(directory))")
            }
            throw .system("mount point \(directory)")
        }
        guard status.st_mode & S_IFMT == S_IFDIR else { throw MountError("mount point \(directory): not a directory") }
        if let mounted = MountedFilesystem.at(directory), mounted.isDaybook, mounted.source == image {
            throw MountError("\(image) is already mounted on \(directory)")
        }
        let fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC)
        guard fuse >= 0 else {
            let number = errno
            let hint = number == ENOENT || number == ENODEV || number == ENXIO ? " (is the fuse module loaded?)" : ""
            let error = MountError.system("/dev/fuse", number)
            throw MountError(error.message + hint, error.status)
        }
        close(fuse)
        self.image = image
        self.directory = directory
    }
}

private func resolve(_ path: String) -> String? {
    guard let resolved = realpath(path, nil) else { return nil }
    defer { free(resolved) }
    return String(cString: resolved)
}

// MARK: remounting

extension MountCommand {
    /// Changes the flags that the kernel keeps. What the daemon was told when it was started stays.
    private func remount(_ settings: MountSettings) throws(MountError) {
        guard let image = resolve(image) else { throw MountError.missing(image, "") }
        guard let directory = resolve(directory) else { throw MountError.missing(directory, "mount point ") }
        guard let mounted = MountedFilesystem.at(directory), mounted.isDaybook, mounted.source == image else {
            throw MountError("\(image) is not mounted on \(directory)")
        }
        for option in settings.daemonOptions {
            printError("daybook mount: '\(option)' stays as it is until \(directory) is unmounted and mounted again")
        }
        if fake { return }
        try setFlags(settings.remountFlags, directory)
        if settings.readOnly {
            // Whoever stops writing wants what was written to be safe.
            let descriptor = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
            defer { close(descriptor) }
            guard descriptor >= 0, fsync(descriptor) == 0 else { throw .system(directory) }
        } else if daybook_remove_xattr(directory, "user.daybook.none") != 0, errno == EROFS {
            // Only the daemon knows whether it can write: it cannot if it was started read-only, or its device has failed.
            try setFlags(settings.remountFlags | UInt(MS_RDONLY), directory)
            throw MountError("\(directory) was mounted read-only, or has become so after an error: unmount and mount it again")
        }
    }

    private func setFlags(_ flags: UInt, _ directory: String) throws(MountError) {
        guard Glibc.mount(nil, directory, nil, flags, nil) == 0 else { throw .system("remounting \(directory)") }
    }
}

// MARK: the calling side

extension MountCommand {
    /// Starts the daemon and waits until the mount can be used, or has failed.
    private func serveInBackground(_ target: MountTarget) throws(MountError) {
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else { throw .system("pipe") }
        defer { close(ends[0]) }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }

        let statusDescriptor: Int32 = 3
        var arguments = ["daybook", "mount", "--status-descriptor", String(statusDescriptor)]
        for list in options { arguments += ["-o", list] }
        if sloppy { arguments.append("--sloppy") }
        arguments += ["--", target.image, target.directory]

        let child: Int32
        do throws(ServeError) { child = try startDaemon(arguments, writer: ends[1], as: statusDescriptor) } catch {
            throw MountError(error.description, MountStatus.system)
        }
        close(ends[1])

        var byte: UInt8 = 0
        var count: Int
        repeat { count = read(ends[0], &byte, 1) } while count < 0 && errno == EINTR
        if count == 1 && byte == 0 { return }

        var status: Int32 = 0
        while waitpid(child, &status, 0) < 0 && errno == EINTR {}
        if status & 0x7f != 0 {
            throw MountError("the daemon was ended by signal \(status & 0x7f) before the mount was ready", MountStatus.internal)
        }
        // It has said why.
        throw MountError.silent(status >> 8 & 0xff)
    }
}

// MARK: the serving side

extension MountCommand {
    private func serveImage(_ target: MountTarget, _ settings: MountSettings) throws(MountError) {
        prepareProcess()
        // The daemon must not keep the directory it was started from busy.
        if statusDescriptor != nil { chdir("/") }
        let log = daemonLogger(image: target.image, foreground: statusDescriptor == nil)

        let (device, lock) = try openImage(target, settings)
        let volume: Volume
        do {
            volume = try Volume.open(
                device, options: settings.volume, clock: wallClock, random: systemRandom,
                mayMoveHorizon: { lock?.extendHorizon(to: $0) ?? false }, onEvent: { report($0, to: log) })
        } catch {
            let text = "\(error)"
            throw MountError(text.hasPrefix(target.image) ? text : "\(target.image): \(text)")
        }
        if let recovery = volume.recoveryReport { log.notice("\(recovery)") }

        var options = MountOptions()
        options.source = target.image
        options.isBlockDevice = device.isBlockDevice && geteuid() == 0
        options.kernelOptions = settings.kernelOptions
        options.strictAccessTimes = settings.volume.accessTimes == .always
        options.latency = settings.latency
        options.threads = settings.threads
        do throws(ServeError) {
            try serve(volume, at: target.directory, options, log: log) {
                log.info("mounted on \(target.directory)")
                announceReady()
            }
        } catch {
            // Once the mount was ready, nobody reads our standard error any more.
            if statusDescriptor != nil { log.error("\(error)") }
            throw MountError(error.description)
        }
        log.info("unmounted from \(target.directory)")
        withExtendedLifetime((device, lock)) {}
    }

    /// Opens the image, and for writing locks it. umount(8) returns before the daemon has written its clean checkpoint, so
    /// a lock whose holder has no mount to show is waited for.
    private func openImage(_ target: MountTarget, _ settings: MountSettings) throws(MountError) -> (FileDevice, ImageLock?) {
        let device: FileDevice
        do throws(DeviceError) {
            device = try FileDevice(path: target.image, access: settings.readOnly ? .readOnly : .readWrite)
        } catch {
            let denied = error.errno == EACCES || error.errno == EPERM || error.errno == EROFS
            let readable = denied && !settings.readOnly && (try? FileDevice(path: target.image, access: .readOnly)) != nil
            throw MountError(
                error.description + (readable ? " for writing (it can be mounted read-only: -o ro)" : ""),
                denied ? MountStatus.usage : MountStatus.failure)
        }
        if settings.readOnly { return (device, try pin(device, settings)) }
        var attempts = 500
        while true {
            do throws(LockError) { return (device, try ImageLock.acquireWriter(descriptor: device.descriptor, path: target.image)) } catch {
                attempts -= 1
                if let mount = MountedFilesystem.all().first(where: { $0.isDaybook && $0.source == target.image }) {
                    throw MountError("\(target.image) is already mounted on \(mount.mountpoint)")
                }
                guard attempts > 0 else { throw MountError(error.description) }
                usleep(20_000)
            }
        }
    }

    /// Holds back the horizon at the checkpoint that the view starts from, for as long as the mount lives: a writer on the same
    /// image keeps what the view needs (ImageLock, K2).
    private func pin(_ device: FileDevice, _ settings: MountSettings) throws(MountError) -> ImageLock {
        do throws(LockError) { try ImageLock.refuseWriterUnderOtherName(device.name) } catch { throw MountError(error.description) }
        do throws(OpenError) {
            var reason = ""
            for _ in 0..<8 {
                let image = try Image(device)
                let start = try settings.point.map { (point) throws(OpenError) in
                    try image.checkpoint(for: point).sequence
                } ?? image.superblock.checkpoint.sequence
                let lock: ImageLock
                do throws(LockError) { lock = try ImageLock.pin(descriptor: device.descriptor, sequence: start) } catch {
                    reason = error.description
                    continue
                }
                if try Image(device).superblock.horizon <= start { return lock }
                lock.release()
            }
            throw OpenError(.noSuchPoint, "\(device.name): \(reason.isEmpty ? "its history is being given up" : reason)")
        } catch { throw MountError(error.description) }
    }

    /// Tells the caller that the mount can be used, and lets go of its standard error.
    private func announceReady() {
        guard let statusDescriptor else { return }
        let null = open("/dev/null", O_RDWR | O_CLOEXEC)
        if null >= 0 {
            dup2(null, 2)
            close(null)
        }
        var ready: UInt8 = 0
        _ = write(statusDescriptor, &ready, 1)
        close(statusDescriptor)
    }
}

extension MountError {
    /// Nothing more to say.
    static func silent(_ status: Int32) -> MountError { MountError("", status == 0 ? MountStatus.internal : status) }
}

@Sendable private func report(_ event: VolumeEvent, to log: Logger) {
    switch event {
    case .notice(let text): log.notice("\(text)")
    case .warning(let text): log.warning("\(text)")
    case .failure(let text): log.critical("\(text)")
    }
}

@Sendable private func wallClock() -> Timestamp {
    var now = timespec()
    clock_gettime(CLOCK_REALTIME, &now)
    return Timestamp(nanoseconds: Int64(now.tv_sec) * 1_000_000_000 + Int64(now.tv_nsec))
}

@Sendable private func systemRandom() -> UInt64 {
    var generator = SystemRandomNumberGenerator()
    return generator.next()
}

// MARK: mount(8)

/// Whether a program called by this name is the helper that mount(8) looks for.
func isMountHelper(_ program: String) -> Bool {
    let name = program.split(separator: "/").last.map(String.init) ?? program
    return name == "mount.daybook" || name == "mount.fuse.daybook"
}

/// From `IMAGE DIR [-sfnvrw] [-N namespace] [-t type] [-o options]`, as mount(8) calls its helpers, to the arguments of `daybook`.
/// The options may stand anywhere, and single letters together. `arguments` is without the program's name.
func mountHelperArguments(_ arguments: [String]) -> [String] {
    var result = ["mount"]
    var operands: [String] = []
    var rest = arguments[...]
    while let argument = rest.popFirst() {
        guard argument.hasPrefix("-"), argument.count > 1 else {
            operands.append(argument)
            continue
        }
        if argument == "--" {
            operands += rest
            break
        }
        if argument.hasPrefix("--") {
            result.append(argument)
            continue
        }
        var letters = argument.dropFirst()
        while let letter = letters.popFirst() {
            switch letter {
            case "n", "v": break  // There is no mtab to leave out, and nothing to add.
            case "s": result.append("--sloppy")
            case "f": result.append("--fake")
            case "r": result += ["-o", "ro"]
            case "w": result += ["-o", "rw"]
            case "o", "t", "N":
                let value = letters.isEmpty ? rest.popFirst() : String(letters)
                letters = ""
                // The type is known. A namespace has been entered by mount(8) itself.
                if letter == "o", let value { result += ["-o", value] }
            default: result.append("-\(letter)")
            }
        }
    }
    return result + ["--"] + operands
}
