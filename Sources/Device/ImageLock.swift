// ImageLock: who may do what with an image, kept by the kernel as locks on bytes far behind the image's end. They belong
// to the open file, so they end with the process whatever becomes of it, and nothing has to be cleaned up.
//
//   0        image's end      2^61          2^62                2^62 + horizon             2^62 + sequence
//   ├────────────┤ …           ├writer┤ …    ├─ the writer's, exclusively ─┤  …    ├pin┤  …
//
// (K1) One writer: the byte at 2^61, exclusively. It is taken before the image is read for writing.
// (K2) A reader that needs the state at S and what follows takes byte 2^62 + S, shared, and then reads the superblock again: if
//      its horizon is still no later than S, nothing that S needs is given up while the lock is held.
// (K3) The writer holds [2^62, 2^62 + horizon), exclusively, and takes the bytes up to a new horizon before it acts on it:
//      where a reader is in the way, history stays.
//
// (K4) A file and a loop device that shows it are the same image, but locked apart. A file behind a loop device has no writer;
//      the device has none while the file has.
//
// The bytes lie behind the largest possible image (2^60 bytes). A block device is locked by the inode of its node.

public import Format
import CSupport
import Glibc

public struct LockError: Error, Sendable, CustomStringConvertible {
    public enum Reason: Sendable {
        /// Another process writes to the image.
        case inUse
        /// The sequence lies before the horizon that the writer has moved to.
        case givenUp
        /// The host's filesystem cannot lock, or the descriptor was opened for reading only.
        case system
    }
    public let reason: Reason
    public let description: String
}

public final class ImageLock: @unchecked Sendable {
    static let writerByte: Int64 = 1 << 61
    static let firstSequenceByte: Int64 = 1 << 62

    private let descriptor: Int32
    private let start: Int64
    private let length: Int64

    private init(descriptor: Int32, start: Int64, length: Int64) {
        self.descriptor = descriptor
        self.start = start
        self.length = length
    }

    /// Lets go. Closing the descriptor, or the end of the process, does so too.
    public func release() { _ = daybook_ofd_lock(descriptor, Int32(F_UNLCK), start, length) }

    // MARK: the writer

    /// Becomes the image's one writer, or says who is. `descriptor` must be open for writing; `path` is for finding and naming
    /// the holder.
    public static func acquireWriter(descriptor: Int32, path: String) throws(LockError) -> ImageLock {
        let error = daybook_ofd_lock(descriptor, Int32(F_WRLCK), writerByte, 1)
        guard error != 0 else {
            let lock = ImageLock(descriptor: descriptor, start: writerByte, length: 0)
            do throws(LockError) { try refuseOtherName(path) } catch {
                lock.release()
                throw error
            }
            return lock
        }
        guard isHeld(error) else { throw failure(path, error) }
        throw LockError(reason: .inUse, description: "\(path) is in use" + holder(of: path))
    }

    /// (K4) Called with the lock held, so that of two who do so at once at least one is refused.
    private static func refuseOtherName(_ path: String) throws(LockError) {
        let real = ProcessFiles.resolved(path) ?? path
        if let loop = LoopDevices.over(real) {
            throw LockError(reason: .inUse, description: "\(path) is in use: it is behind \(loop)")
        }
        try refuseWriterUnderOtherName(path)
    }

    /// (K4) For readers, whose locks a writer under the image's other name does not see.
    public static func refuseWriterUnderOtherName(_ path: String) throws(LockError) {
        func isWritten(_ other: String) -> Bool {
            let descriptor = open(other, O_RDONLY | O_CLOEXEC)
            guard descriptor >= 0 else { return false }
            defer { close(descriptor) }
            return hasWriter(descriptor: descriptor)
        }
        let real = ProcessFiles.resolved(path) ?? path
        if let file = LoopDevices.file(behind: real), isWritten(file) {
            throw LockError(reason: .inUse, description: "\(path) is in use: it shows \(file), which is in use" + holder(of: file))
        }
        if let loop = LoopDevices.over(real), isWritten(loop) {
            throw LockError(reason: .inUse, description: "\(path) is in use: it is behind \(loop), which is in use" + holder(of: loop))
        }
    }

    /// Keeps writers out without becoming one, or says who is. Several processes may do so at once; reading is enough.
    public static func excludeWriters(descriptor: Int32, path: String) throws(LockError) -> ImageLock {
        let error = daybook_ofd_lock(descriptor, Int32(F_RDLCK), writerByte, 1)
        guard error != 0 else {
            let lock = ImageLock(descriptor: descriptor, start: writerByte, length: 1)
            do throws(LockError) { try refuseWriterUnderOtherName(path) } catch {
                lock.release()
                throw error
            }
            return lock
        }
        guard isHeld(error) else { throw failure(path, error) }
        throw LockError(reason: .inUse, description: "\(path) is in use" + holder(of: path))
    }

    /// umount(8) returns before the daemon has written its clean checkpoint: a daemon that has no mount to show any more is waited
    /// for, for some seconds. A holder that cannot be found has mostly just gone: then another attempt tells.
    public static func afterUnmount(path: String, _ acquire: () throws(LockError) -> ImageLock) throws(LockError) -> ImageLock {
        let real = ProcessFiles.resolved(path) ?? path
        var found = 0
        var notFound = 0
        while true {
            do throws(LockError) { return try acquire() } catch {
                let process = lockingProcess(real)
                if process == nil { notFound += 1 } else { found += 1 }
                guard error.reason == .inUse, found < 500, notFound < 50, process.map({ $0.command == "daybook" }) ?? true,
                    LoopDevices.over(real) == nil, !MountedFilesystem.all().contains(where: { $0.isDaybook && $0.source == real })
                else { throw error }
                usleep(20_000)
            }
        }
    }

    /// Takes the bytes of all sequences before `horizon`; false when a reader holds one of them (or locking fails). Only grows.
    public func extendHorizon(to horizon: SequenceNumber) -> Bool {
        precondition(start == Self.writerByte, "a reader has no horizon")
        let count = Int64(clamping: min(horizon.value, UInt64(Int64.max - Self.firstSequenceByte)))
        guard count > 0 else { return true }
        return daybook_ofd_lock(descriptor, Int32(F_WRLCK), Self.firstSequenceByte, count) == 0
    }

    /// Takes the bytes of all sequences there could be; false when somebody reads the image.
    public func excludeReaders() -> Bool {
        daybook_ofd_lock(descriptor, Int32(F_WRLCK), Self.firstSequenceByte, 0) == 0
    }

    /// Whether some other process is the image's writer now.
    public static func hasWriter(descriptor: Int32) -> Bool {
        let error = daybook_ofd_lock(descriptor, Int32(F_RDLCK), writerByte, 1)
        if error == 0 { _ = daybook_ofd_lock(descriptor, Int32(F_UNLCK), writerByte, 1) }
        return isHeld(error)
    }

    // MARK: readers

    /// Holds back the horizon at `sequence` (K2). A host that cannot lock cannot have a writer either: the pin then holds nothing.
    public static func pin(descriptor: Int32, sequence: SequenceNumber) throws(LockError) -> ImageLock {
        let lock = ImageLock(
            descriptor: descriptor,
            start: firstSequenceByte + Int64(clamping: min(sequence.value, UInt64(Int64.max - firstSequenceByte))), length: 1)
        let error = daybook_ofd_lock(descriptor, Int32(F_RDLCK), lock.start, 1)
        guard isHeld(error) else { return lock }
        throw LockError(reason: .givenUp, description: "the history from sequence \(sequence) on is just being given up")
    }

    // MARK: refusals

    private static func isHeld(_ error: Int32) -> Bool { error == EAGAIN || error == EACCES }

    private static func failure(_ path: String, _ error: Int32) -> LockError {
        LockError(reason: .system, description: "\(path): cannot be locked: \(String(cString: strerror(error)))")
    }

    /// As far as this process may know: ": mounted on /mnt by daybook (pid 123)", " by daybook fsck (pid 123)", or that it is.
    static func holder(of path: String) -> String {
        let real = ProcessFiles.resolved(path) ?? path
        let mount = MountedFilesystem.all().last { $0.isDaybook && $0.source == real }
        let process = lockingProcess(real)
        switch (mount, process) {
        case (let mount?, let process?): return ": mounted on \(mount.mountpoint) by \(process.command) (pid \(process.id))"
        case (let mount?, nil): return ": mounted on \(mount.mountpoint)"
        case (nil, let process?): return " by \(process.command) (pid \(process.id))"
        case (nil, nil): return " by another process"
        }
    }

    /// The process that has `path` open with an exclusive lock on it.
    private static func lockingProcess(_ path: String) -> (id: String, command: String)? {
        for id in ProcessFiles.names("/proc") where id.allSatisfy({ $0.isASCII && $0.isNumber }) {
            for number in ProcessFiles.names("/proc/\(id)/fd") {
                // Only links are read: a stat could hang on somebody's dead network or user filesystem.
                guard ProcessFiles.link("/proc/\(id)/fd/\(number)") == path,
                    let facts = ProcessFiles.contents("/proc/\(id)/fdinfo/\(number)").map({ String(decoding: $0, as: UTF8.self) }),
                    facts.split(separator: "\n").contains(where: isWriterLock)
                else { continue }
                return (id, command(id))
            }
        }
        return nil
    }

    // lock:	1: OFDLCK  ADVISORY  WRITE -1 fe:00:131 2305843009213693952 2305843009213693952
    private static func isWriterLock(_ line: Substring) -> Bool {
        guard line.hasPrefix("lock:") else { return false }
        let words = line.split(whereSeparator: { $0 == " " || $0 == "\t" })
        return words.contains("OFDLCK") && words.contains("WRITE") && words.dropLast().last == "\(writerByte)"
    }

    private static func command(_ id: String) -> String {
        let line = ProcessFiles.contents("/proc/\(id)/cmdline") ?? []
        let words = line.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
        guard let first = words.first else { return "a process" }
        let name = first.split(separator: "/").last.map(String.init) ?? first
        // "daybook mount" is told by the mount itself.
        guard name == "daybook", words.count > 1, words[1] != "mount", words[1].allSatisfy({ $0.isLetter || $0 == "-" }) else {
            return name
        }
        return "\(name) \(words[1])"
    }
}
