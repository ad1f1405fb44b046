// BaseImages: what mutants are made from. Made by production code without threads, with clock and random numbers injected: the same each
// time, so that a recipe, which names parts by their place in the map, means the same mutant wherever it is run.
//
//   fresh      nothing but what mkfs made
//   worked     files of every kind in a tree of two levels, attributes, shared blocks, history; closed
//   crashed    that, opened again and crashed; recovered, worked in and crashed once more: a cut, two epochs, records of every type to replay

import ByPath
import Device
import Format
import Memory
import Volume

public enum BaseImage: Int, CaseIterable, Sendable {
    case fresh, worked, crashed

    static let blockCount: UInt64 = 16384
    private static let time = Timestamp(nanoseconds: 1_700_000_000_000_000_000)

    public func make() throws -> MutantDisk {
        let disk = MutantDisk(blockCount: Self.blockCount)
        try Formatter.format(
            disk,
            FormatOptions(
                label: "fuzz", id: FilesystemID(high: 0x0123_4567_89ab_cdef, low: 0x1122_3344_5566_7788), seed: HashSeed(k0: 3, k1: 4),
                nonce: 5, created: Self.time))
        if self == .fresh { return disk }
        try Self.session(disk, 1) { session in
            try session.populate()
            try session.volume.checkpointAlone(clean: false)
            try session.change()
            try session.volume.checkpointAlone(clean: false)
            try session.change()
            try session.volume.checkpointAlone(clean: false)
            session.volume.moveHorizonAlone()
            try session.churn(1)
            try session.volume.reclaimAlone()
            try session.volume.checkpointAlone(clean: true)
        }
        if self == .worked { return disk }
        try Self.session(disk, 2) { session in
            try session.churn(2)
            try session.volume.commit()
        }
        try Self.session(disk, 3) { session in
            try session.churn(3)
            try session.volume.checkpointAlone(clean: false)
            try session.change()
            session.volume.moveHorizonAlone()
            try session.churn(4)
            try session.volume.commit()
            try session.churn(5)
            try session.volume.reclaimAlone()
            try session.volume.commit()
        }
        return disk
    }

    private static func session(_ disk: MutantDisk, _ number: Int64, _ body: (PathVolume) throws -> Void) throws {
        var options = OpenOptions()
        options.accessTimes = .always
        options.cacheBytes = 16 << 20
        let clock = StepClock(start: time.nanoseconds + number * 3_600_000_000_000, step: 1_000_000)
        let volume = try Volume.openAlone(
            disk, options: options, clock: { clock.next() }, random: { 99 &+ UInt64(number) }, preparing: true, onEvent: { _ in })
        try body(PathVolume(volume))
        // No close: what it leaves is what the last commit or checkpoint wrote.
    }
}

extension PathVolume {
    init(_ volume: Volume) { self.init(volume, caller: Caller(uid: 0, gid: 0, pid: 7)) }

    func write(_ inode: InodeNumber, _ count: Int, at offset: UInt64, seed: Int = 0) throws(OperationError) {
        try write(inode, (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8 &+ seed &* 31 &+ 1) }, at: offset)
    }

    func setXattr(_ path: String, _ name: String, _ count: Int) throws(OperationError) {
        try setXattr(path, name, [UInt8](repeating: 0x61, count: count))
    }

    func populate() throws(OperationError) {
        try make("dir", mode: 0o040755)
        try make("dir/sub", mode: 0o042770)
        for number in 0..<90 {
            let path = "dir/file-\(number)-" + String(repeating: "n", count: number % 40)
            try make(path)
            if number % 3 == 0 { try write(try find(path), 200 + number * 97, at: UInt64(number % 5) * 3000, seed: number) }
            if number % 10 == 0 { try setXattr(path, "user.a", 20 + number * 40) }
        }
        try make("big")
        let big = try find("big")
        for part in 0..<40 { try write(big, 9000, at: UInt64(part) * 16384, seed: part) }
        try make("long", mode: 0o120777, target: String(repeating: "t", count: 2500))
        try make("link", mode: 0o120777, target: "dir/sub")
        try make("null", mode: 0o020666, device: 0x103)
        try make("fifo", mode: 0o010600)
        for number in 0..<12 { try setXattr("dir/sub", "user.many\(number)", number * 70) }
        try volume.fallocate(big, mode: 1, offset: 1 << 20, length: 200_000, caller)
        for number in 0..<5 { try link("big", "dir/sub/hard\(number)") }
    }

    func change() throws(OperationError) {
        let big = try find("big")
        if (try? find("copy")) == nil { try make("copy") }
        _ = try volume.copyRange(from: big, at: 0, to: try find("copy"), at: 0, length: 300_000, caller)
        try write(big, 5000, at: 40_000, seed: 3)
        try write(big, 100, at: 70_001, seed: 4)
        try volume.fallocate(big, mode: 3, offset: 90_000, length: 30_000, caller)
        try truncate("copy", 100_000)
    }

    /// A bit of every operation, in names of its own.
    func churn(_ round: Int) throws(OperationError) {
        let base = "churn\(round)"
        try make(base, mode: 0o040755)
        for name in ["a", "b", "c", "d"] {
            try make("\(base)/\(name)")
            try write(try find("\(base)/\(name)"), 6000, at: 100, seed: round)
            try write(try find("\(base)/\(name)"), 50, at: 3, seed: round)
        }
        try rename("\(base)/a", "\(base)/e", flags: RenameFlags.whiteout)
        try rename("\(base)/b", "\(base)/c", flags: RenameFlags.exchange)
        try rename("\(base)/c", "\(base)/d")
        try setXattr("\(base)/d", "user.small", 100)
        try setXattr("\(base)/d", "user.large", 3000)
        try setXattr("\(base)/d", "user.large", 1500)
        let inode = try find("\(base)/d")
        try removeXattr("\(base)/d", "user.small")
        var change = AttributeChange()
        change.mode = 0o4711
        change.uid = 12
        _ = try volume.setAttributes(inode, change, caller)
        try make("\(base)/s", mode: 0o120777, target: "somewhere")
        try make("\(base)/n", mode: 0o020600, device: 0x501)
        let temporary = try volume.makeTemporary(.root, mode: 0o100600, caller)
        try write(temporary.inode, 5000, at: 0)
        if round % 2 == 0 { volume.forget(temporary.inode, count: 1) }
        try volume.fallocate(inode, mode: 0, offset: 20_000, length: 50_000, caller)
        _ = try volume.copyRange(from: try find("big"), at: 0, to: inode, at: 65_536, length: 65_536, caller)
        try truncate("\(base)/e", 10)
        try truncate("\(base)/d", 90_000)
        try make("\(base)/empty", mode: 0o040700)
        try removeDirectory("\(base)/empty")
        try unlink("\(base)/b")
        let buffer = AlignedBuffer(count: 8192)
        _ = try volume.read(inode, at: 0, into: buffer.bytes)
    }
}
