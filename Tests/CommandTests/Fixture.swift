// Fixture: image files, changed through a volume in this process and looked at by the built command in another.

import Device
import Format
import Glibc
import Memory
import Volume

struct Finished {
    let status: Int32
    let output: String
    let errors: String
    var lines: [String] { output.split(separator: "\n").map(String.init) }
}

/// The command, next to the test program.
let command: String = {
    let program = ProcessFiles.link("/proc/self/exe")!
    return program[..<program.lastIndex(of: "/")!] + "/daybook"
}()

/// Runs `daybook`, or the same by another name.
func daybook(_ arguments: String..., as name: String? = nil) -> Finished {
    let words = arguments.map { "'" + $0.replacing("'", with: "'\\''") + "'" }.joined(separator: " ")
    let errors = temporaryPath("errors")
    defer { unlink(errors) }
    let program = name.map { "exec -a '\($0)' '\(command)'" } ?? "exec '\(command)'"
    let stream = popen("bash -c \"" + "\(program) \(words) 2>\(errors)".replacing("\"", with: "\\\"") + "\"", "r")!
    var output: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 65536)
    while true {
        let count = fread(&buffer, 1, buffer.count, stream)
        if count == 0 { break }
        output += buffer.prefix(count)
    }
    let status = pclose(stream)
    return Finished(
        status: (status >> 8) & 0xff, output: String(decoding: output, as: UTF8.self),
        errors: String(decoding: ProcessFiles.contents(errors) ?? [], as: UTF8.self))
}

private let counter = Lock()
nonisolated(unsafe) private var number = 0

func temporaryPath(_ name: String) -> String {
    counter.withLock {
        number += 1
        return "/tmp/daybook-test-\(getpid())-\(number)-\(name)"
    }
}

/// An image file that goes with its owner.
final class TestImage {
    let path = temporaryPath("image")
    var clock: Int64 = 1_700_000_000_000_000_000

    init(megabytes: Int = 128, label: String = "test") throws {
        let descriptor = open(path, O_RDWR | O_CREAT | O_EXCL, 0o600)
        precondition(descriptor >= 0 && ftruncate(descriptor, off_t(megabytes << 20)) == 0)
        close(descriptor)
        var options = FormatOptions(
            label: label, id: FilesystemID(high: 1, low: 2), seed: HashSeed(k0: 3, k1: 4), nonce: 5,
            created: Timestamp(nanoseconds: clock))
        options.uid = geteuid()
        options.gid = getegid()
        try Formatter.format(try FileDevice(path: path, access: .readWrite), options)
    }
    deinit { unlink(path) }

    /// Opens the volume, lets `body` work on it, and closes it; or leaves it as a crash would.
    func change(crash: Bool = false, _ body: (TestVolume) throws -> Void) throws {
        let device = try FileDevice(path: path, access: .readWrite)
        var options = OpenOptions()
        options.commitSeconds = 1000
        options.accessTimes = .never
        let ticks = Ticks(clock)
        let volume = try Volume.open(
            device, options: options, clock: { ticks.next() }, random: { 77 }, onEvent: { _ in })
        do { try body(TestVolume(volume)) } catch {
            // A volume may not go while its threads run.
            volume.abandon()
            throw error
        }
        clock = ticks.next().nanoseconds
        if crash { volume.abandon() } else { try volume.close() }
    }

    func overwrite(_ block: UInt64, at offset: Int = 100) {
        let descriptor = open(path, O_RDWR)
        defer { close(descriptor) }
        precondition(pwrite(descriptor, "damage", 6, off_t(block << 12) + off_t(offset)) == 6)
    }
}

private final class Ticks: @unchecked Sendable {
    private let lock = Lock()
    private var nanoseconds: Int64
    init(_ start: Int64) { nanoseconds = start }
    /// One second a call: times that tests can name.
    func next() -> Timestamp {
        lock.withLock {
            nanoseconds += 1_000_000_000
            return Timestamp(nanoseconds: nanoseconds)
        }
    }
}

/// Operations by path.
struct TestVolume {
    let volume: Volume
    let caller = Caller(uid: geteuid(), gid: getegid(), pid: 42)

    init(_ volume: Volume) { self.volume = volume }

    private func find(_ parts: some Collection<Substring>) throws -> InodeNumber {
        var at = InodeNumber.root
        for part in parts {
            let parent = at
            at = try Array(part.utf8).withRawBytes { (name) throws(OperationError) in try volume.lookup(parent, name) }.inode
            volume.forget(at, count: 1)
        }
        return at
    }
    private func split(_ path: String) throws -> (InodeNumber, [UInt8]) {
        let parts = path.split(separator: "/")
        return (try find(parts.dropLast()), Array(parts.last!.utf8))
    }
    func inode(_ path: String) throws -> InodeNumber { try find(path.split(separator: "/")) }

    func make(_ path: String, mode: UInt32 = 0o100644, target: String = "", device: UInt32 = 0) throws {
        let (parent, name) = try split(path)
        try make(parent, name, mode: mode, target: target, device: device)
    }
    func make(_ parent: InodeNumber = .root, _ name: [UInt8], mode: UInt32 = 0o100644, target: String = "", device: UInt32 = 0) throws {
        let made = try name.withRawBytes { (name) throws(OperationError) in
            try Array(target.utf8).withRawBytes { (target) throws(OperationError) in
                try volume.make(parent, name, mode: mode, device: device, target: target, caller)
            }
        }
        volume.forget(made.inode, count: 1)
    }
    func write(_ path: String, _ bytes: [UInt8], at offset: UInt64 = 0) throws {
        let inode = try inode(path)
        try bytes.withRawBytes { (data) throws(OperationError) in
            try volume.write(inode, at: offset, data, killPrivileges: false, caller)
        }
    }
    func truncate(_ path: String, _ size: UInt64) throws {
        var change = AttributeChange()
        change.size = size
        _ = try volume.setAttributes(try inode(path), change, caller)
    }
    func rename(_ path: String, _ newPath: String) throws {
        let (parent, name) = try split(path)
        let (newParent, newName) = try split(newPath)
        try name.withRawBytes { (name) throws(OperationError) in
            try newName.withRawBytes { (newName) throws(OperationError) in
                try volume.rename(parent, name, to: newParent, newName, flags: 0, caller)
            }
        }
    }
    func link(_ path: String, _ newPath: String) throws {
        let inode = try inode(path)
        let (parent, name) = try split(newPath)
        _ = try name.withRawBytes { (name) throws(OperationError) in try volume.link(inode, parent, name, caller) }
        volume.forget(inode, count: 1)
    }
    func unlink(_ path: String) throws {
        let (parent, name) = try split(path)
        try name.withRawBytes { (name) throws(OperationError) in try volume.unlink(parent, name, caller) }
    }
    func setXattr(_ path: String, _ name: String, _ value: [UInt8]) throws {
        let inode = try inode(path)
        try Array(name.utf8).withRawBytes { (name) throws(OperationError) in
            try value.withRawBytes { (value) throws(OperationError) in
                try volume.setXattr(inode, name, value, create: false, replace: false, caller)
            }
        }
    }
}
