// Fixture: a volume on a simulated disk, with an injected clock and random numbers, and operations by path.

import ByPath
public import Device
public import Format
import Glibc
import Memory
public import Volume

public final class TestClock: Sendable {
    private let clock: StepClock
    public init(step: Int64 = 1_000) { clock = StepClock(start: 1_700_000_000_000_000_000, step: step) }
    public func now() -> Timestamp { clock.next() }
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
    private var paths: PathVolume { PathVolume(self, caller: testCaller) }

    public func find(_ path: String) throws -> Attributes { try paths.attributes(path) }
    @discardableResult public func make(_ path: String, mode: UInt32 = 0o100644, target: String = "") throws -> InodeNumber {
        try paths.make(path, mode: mode, target: target)
    }
    public func makeDirectory(_ path: String) throws { try paths.make(path, mode: 0o040755) }
    public func write(_ path: String, _ bytes: [UInt8], at offset: UInt64 = 0) throws { try paths.write(path, bytes, at: offset) }
    public func unlink(_ path: String) throws { try paths.unlink(path) }
    public func removeDirectory(_ path: String) throws { try paths.removeDirectory(path) }
    public func rename(_ path: String, _ newPath: String, flags: UInt32 = 0) throws { try paths.rename(path, newPath, flags: flags) }
    public func link(_ path: String, _ newPath: String) throws { try paths.link(path, newPath) }
    public func truncate(_ path: String, _ size: UInt64) throws { try paths.truncate(path, size) }

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

    public func names(_ path: String) throws -> [String] {
        var result: [String] = []
        try list(try find(path).inode, from: 2, attributes: false) { entry in
            result.append(entry.name.text)
            return true
        }
        return result.sorted()
    }
}
