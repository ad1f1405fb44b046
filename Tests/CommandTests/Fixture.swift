// Fixture: image files, changed through a volume in this process and looked at by the built command in another.

import ByPath
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
    func change(crash: Bool = false, _ body: (PathVolume) throws -> Void) throws {
        let device = try FileDevice(path: path, access: .readWrite)
        var options = OpenOptions()
        options.commitSeconds = 1000
        options.accessTimes = .never
        // One second a call: times that tests can name.
        let ticks = StepClock(start: clock, step: 1_000_000_000)
        let volume = try Volume.open(
            device, options: options, clock: { ticks.next() }, random: { 77 }, onEvent: { _ in })
        do { try body(PathVolume(volume)) } catch {
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

extension PathVolume {
    init(_ volume: Volume) { self.init(volume, caller: Caller(uid: geteuid(), gid: getegid(), pid: 42)) }

    /// A name of any bytes.
    func make(_ parent: InodeNumber = .root, _ name: [UInt8]) throws {
        let made = try name.withRawBytes { (name) throws(OperationError) in
            try [UInt8]().withRawBytes { (target) throws(OperationError) in
                try volume.make(parent, name, mode: 0o100644, device: 0, target: target, caller)
            }
        }
        volume.forget(made.inode, count: 1)
    }
}
