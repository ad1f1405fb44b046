// Fixture: a volume on a simulated disk, with an injected clock and random numbers, and operations by path.

public import Device
public import Format
import Glibc
import Memory
public import Volume

public final class TestClock: @unchecked Sendable {
    private let lock = Lock()
    private var nanoseconds: Int64 = 1_700_000_000_000_000_000
    /// How far each reading moves the clock. Zero where the number of readings, which depends on threads, must not show.
    private let step: Int64
    public init(step: Int64 = 1_000) { self.step = step }
    public func now() -> Timestamp {
        lock.withLock {
            nanoseconds += step
            return Timestamp(nanoseconds: nanoseconds)
        }
    }
}

public let testCaller = Caller(uid: 1000, gid: 100, pid: 42)

public func makeDisk(blocks: UInt64 = 32768) throws -> SimulatedDisk {
    let disk = SimulatedDisk(blockCount: blocks)
    try Formatter.format(
        disk,
        FormatOptions(
            label: "test", id: FilesystemID(high: 0x1111_2222_3333_4444, low: 0x5555_6666_7777_8888), seed: HashSeed(k0: 1, k1: 2),
            nonce: 77, created: Timestamp(nanoseconds: 1_600_000_000_000_000_000)))
    return disk
}

public final class EventLog: @unchecked Sendable {
    private let lock = Lock()
    private var list: [VolumeEvent] = []
    public init() {}
    public func add(_ event: VolumeEvent) { lock.withLock { list.append(event) } }
    public var failures: [String] { lock.withLock { list.compactMap { if case .failure(let text) = $0 { text } else { nil } } } }
    public var warnings: [String] { lock.withLock { list.compactMap { if case .warning(let text) = $0 { text } else { nil } } } }
}

public func openVolume(
    _ disk: any BlockDevice, mode: OpenOptions.Mode = .readWrite, clock: TestClock = TestClock(), events: EventLog = EventLog(),
    seed: UInt64 = 99, cacheBytes: Int = 32 << 20, commitSeconds: Double = 1000, accessTimes: AccessTimePolicy = .never
) throws -> Volume {
    var options = OpenOptions()
    options.mode = mode
    options.commitSeconds = commitSeconds
    options.cacheBytes = cacheBytes
    options.accessTimes = accessTimes
    let generator = Generator(seed: seed)
    return try Volume.open(
        disk, options: options, clock: { clock.now() }, random: { generator.next() }, onEvent: { events.add($0) })
}

/// Whether it comes true within some seconds: for what threads of the volume do in their own time.
public func waitFor(_ what: () -> Bool) -> Bool {
    for _ in 0..<500 {
        if what() { return true }
        usleep(10_000)
    }
    return what()
}

private final class Generator: @unchecked Sendable {
    private let lock = Lock()
    private var random: SeededRandom
    init(seed: UInt64) { random = SeededRandom(seed: seed) }
    func next() -> UInt64 { lock.withLock { random.next() } }
}

extension Volume {
    public func find(_ path: String) throws -> Attributes {
        var found = try attributes(.root)
        for part in path.split(separator: "/") {
            let parent = found.inode
            found = try Array(part.utf8).withRawBytes { (name) throws(OperationError) in try lookup(parent, name) }
            forget(found.inode, count: 1)
        }
        return found
    }

    private func split(_ path: String) throws -> (InodeNumber, [UInt8]) {
        let parts = path.split(separator: "/")
        return (try find(parts.dropLast().joined(separator: "/")).inode, Array(parts.last!.utf8))
    }

    @discardableResult public func make(_ path: String, mode: UInt32 = 0o100644, target: String = "") throws -> InodeNumber {
        let (parent, name) = try split(path)
        let made = try name.withRawBytes { (name) throws(OperationError) in
            try Array(target.utf8).withRawBytes { (target) throws(OperationError) in
                try make(parent, name, mode: mode, device: 0, target: target, testCaller)
            }
        }
        forget(made.inode, count: 1)
        return made.inode
    }

    public func makeDirectory(_ path: String) throws { try make(path, mode: 0o040755) }

    public func write(_ path: String, _ bytes: [UInt8], at offset: UInt64 = 0) throws {
        let inode = try find(path).inode
        var done = 0
        while done < bytes.count {
            let part = Array(bytes[done..<min(done + (1 << 20), bytes.count)])
            try part.withRawBytes { (data) throws(OperationError) in
                try write(inode, at: offset + UInt64(done), data, killPrivileges: false, testCaller)
            }
            done += part.count
        }
    }

    public func contents(_ path: String) throws -> [UInt8] {
        let found = try find(path)
        let buffer = AlignedBuffer(count: Int(found.item.length) + 4096)
        var done = 0
        while done < Int(found.item.length) {
            let want = min(1 << 20, buffer.bytes.count - done)
            let count = try read(found.inode, at: UInt64(done), into: buffer.bytes.slice(done, want))
            if count == 0 { break }
            done += count
        }
        return buffer.bytes.slice(0, done).array
    }

    public func unlink(_ path: String) throws {
        let (parent, name) = try split(path)
        try name.withRawBytes { (name) throws(OperationError) in try unlink(parent, name, testCaller) }
    }
    public func removeDirectory(_ path: String) throws {
        let (parent, name) = try split(path)
        try name.withRawBytes { (name) throws(OperationError) in try removeDirectory(parent, name, testCaller) }
    }
    public func rename(_ path: String, _ newPath: String, flags: UInt32 = 0) throws {
        let (parent, name) = try split(path)
        let (newParent, newName) = try split(newPath)
        try name.withRawBytes { (name) throws(OperationError) in
            try newName.withRawBytes { (newName) throws(OperationError) in
                try rename(parent, name, to: newParent, newName, flags: flags, testCaller)
            }
        }
    }
    public func link(_ path: String, _ newPath: String) throws {
        let inode = try find(path).inode
        let (parent, name) = try split(newPath)
        let made = try name.withRawBytes { (name) throws(OperationError) in try link(inode, parent, name, testCaller) }
        forget(made.inode, count: 1)
    }
    public func truncate(_ path: String, _ size: UInt64) throws {
        var change = AttributeChange()
        change.size = size
        _ = try setAttributes(try find(path).inode, change, testCaller)
    }
    public func names(_ path: String) throws -> [String] {
        var result: [String] = []
        try list(try find(path).inode, from: 2, attributes: false) { entry in
            result.append(entry.name.text)
            return true
        }
        return result.sorted()
    }
}
