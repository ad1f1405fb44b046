// Goal: P1 (prefix consistency), P2 (what was committed is there), P5 (past points open) under random operations.
// Method: a seeded workload on a simulated disk, mirrored in a model that knows nothing of the structures; power cuts at
// random moments, also during recovery; the state found must be the model's after some prefix of the operations, at least up
// to the last commit. A failure prints its seed; `DAYBOOK_TEST_SEED` runs one seed alone.

import Device
import Foundation
import Format
import Memory
import Testing
import Volume

/// A workload: random operations on a volume and its model together.
struct Workload {
    var random: SeededRandom
    var model = Model()
    /// The model after each operation, by the sequence then reached.
    var history: [(sequence: SequenceNumber, model: Model)] = [(SequenceNumber(0), Model())]
    var files = 0

    init(seed: UInt64) { random = SeededRandom(seed: seed) }

    private mutating func pick(_ accept: (Model, String) -> Bool) -> String? {
        let model = model
        return model.names.keys.filter { accept(model, $0) }.sorted().randomElement(using: &random)
    }
    private static func isRegular(_ model: Model, _ path: String) -> Bool {
        model.files[model.names[path]!]!.mode & 0o170000 == 0o100000
    }
    private static func isNoDirectory(_ model: Model, _ path: String) -> Bool { !model.isDirectory(path) }

    private mutating func freshPath() -> String {
        files += 1
        let parent = Bool.random(using: &random) ? "" : pick { $0.isDirectory($1) } ?? ""
        let name = "n\(files)" + String(repeating: "x", count: Int.random(in: 0..<30, using: &random))
        return parent.isEmpty ? name : parent + "/" + name
    }

    private mutating func bytes(_ limit: Int) -> [UInt8] {
        let count = Bool.random(using: &random) ? Int.random(in: 1..<600, using: &random) : Int.random(in: 1..<limit, using: &random)
        let seed = random.next()
        return pattern(count, seed)
    }

    /// One random operation on both.
    mutating func step(_ volume: Volume) throws {
        switch Int.random(in: 0..<20, using: &random) {
        case 0..<4:
            let path = freshPath()
            try volume.make(path)
            model.make(path, mode: 0o100644)
        case 4:
            let path = freshPath()
            try volume.makeDirectory(path)
            model.make(path, mode: 0o040755)
        case 5:
            let path = freshPath()
            let target = String(repeating: "t", count: Int.random(in: 1..<3000, using: &random))
            try volume.make(path, mode: 0o120777, target: target)
            model.make(path, mode: 0o120777, target: Array(target.utf8))
        case 6..<12:
            guard let path = pick(Self.isRegular) else { return }
            let old = model.files[model.names[path]!]!.bytes.count
            let offset = Int.random(in: 0...(old + 5000), using: &random) & (Bool.random(using: &random) ? ~4095 : ~0)
            let data = bytes(30_000)
            try volume.write(path, data, at: UInt64(offset))
            model.write(path, data, at: offset)
        case 12:
            guard let path = pick(Self.isRegular) else { return }
            let size = Int.random(in: 0..<40_000, using: &random)
            try volume.truncate(path, UInt64(size))
            model.truncate(path, size)
        case 13:
            guard let path = pick(Self.isRegular) else { return }
            let from = Int.random(in: 0..<30_000, using: &random)
            let length = Int.random(in: 1..<20_000, using: &random)
            let mode: Int32 = [0, 1, 3, 0x10, 0x11].randomElement(using: &random)!
            try volume.fallocate(try volume.find(path).inode, mode: mode, offset: UInt64(from), length: UInt64(length), testCaller)
            if mode & 1 == 0, model.files[model.names[path]!]!.bytes.count < from + length { model.truncate(path, from + length) }
            if mode & 0x12 != 0 { model.zero(path, from..<from + length) }
        case 14:
            guard let path = pick(Self.isNoDirectory) else { return }
            try volume.unlink(path)
            model.remove(path)
        case 15:
            guard let path = pick({ $0.isDirectory($1) && $0.children($1).isEmpty }) else { return }
            try volume.removeDirectory(path)
            model.remove(path)
        case 16:
            guard let path = pick({ _, _ in true }) else { return }
            let target = freshPath()
            guard !(target + "/").hasPrefix(path + "/") else { return }
            try volume.rename(path, target)
            model.rename(path, target)
        case 17:
            guard let path = pick(Self.isNoDirectory), let other = pick(Self.isNoDirectory) else { return }
            if Bool.random(using: &random) && path != other {
                try volume.rename(path, other, flags: RenameFlags.exchange)
                model.exchange(path, other)
            } else {
                try volume.rename(path, other)
                model.rename(path, other)
            }
        case 18:
            guard let path = pick(Self.isRegular) else { return }
            let target = freshPath()
            try volume.link(path, target)
            model.names[target] = model.names[path]
        default:
            guard let path = pick(Self.isRegular) else { return }
            let name = Array("user.a\(Int.random(in: 0..<4, using: &random))".utf8)
            let value = bytes(5000)
            let inode = try volume.find(path).inode
            try name.withRawBytes { (name) throws(OperationError) in
                try value.withRawBytes { (value) throws(OperationError) in
                    try volume.setXattr(inode, name, value, create: false, replace: false, testCaller)
                }
            }
            model.files[model.names[path]!]!.xattrs[name] = value
        }
        history.append((volume.sequence, model))
    }

    /// The model at a sequence: housekeeping records in between change nothing that can be seen.
    func model(at sequence: SequenceNumber) -> Model { history.last { $0.sequence <= sequence }!.model }

    /// The state that a crash left becomes the present.
    mutating func rewind(to sequence: SequenceNumber) {
        history.removeAll { $0.sequence > sequence }
        model = history.last!.model
    }
}

let seeds: [UInt64] = ProcessInfo.processInfo.environment["DAYBOOK_TEST_SEED"].flatMap { UInt64($0) }.map { [$0] }
    ?? Array(1...UInt64(ProcessInfo.processInfo.environment["DAYBOOK_TEST_SEEDS"] ?? "12")!)

@Suite struct CrashTests {
    @Test(arguments: seeds) func everyCrashLeavesAPrefix(seed: UInt64) throws {
        var work = Workload(seed: seed)
        var random = SeededRandom(seed: seed ^ 0xABCD)
        let clock = TestClock()
        var disk = try makeDisk()
        for round in 0..<6 {
            let events = EventLog()
            let volume = try openVolume(disk, clock: clock, events: events, seed: seed &* 31 &+ UInt64(round))
            var committed = volume.committedSequence
            for _ in 0..<Int.random(in: 1..<120, using: &random) {
                try work.step(volume)
                switch Int.random(in: 0..<25, using: &random) {
                case 0:
                    try volume.commit()
                    committed = volume.committedSequence
                case 1 where round % 2 == 1: try volume.checkpointNow()
                default: break
                }
            }
            #expect(events.failures == [], "seed \(seed) round \(round)")
            let live = try Model.of(volume)
            #expect(live.canonical == work.model.canonical, "seed \(seed) round \(round): live state")
            var after = disk.crash(&random)
            volume.abandon()
            // The power fails again while the first recovery runs, or just after it.
            if Bool.random(using: &random) {
                after.failsAfter = Int.random(in: 0..<6, using: &random)
                let second = try? openVolume(after, clock: clock, seed: seed &* 77)
                let third = after.crash(&random)
                second?.abandon()
                after = third
            }
            let recovered = try openVolume(after, clock: clock, seed: seed &* 13 &+ UInt64(round))
            let reached = recovered.recovery!.to
            #expect(reached >= committed, "seed \(seed) round \(round): \(recovered.recoveryReport ?? "clean")")
            let found = try Model.of(recovered)
            #expect(found.canonical == work.model(at: reached).canonical, "seed \(seed) round \(round): state at \(reached)")
            work.rewind(to: reached)
            try recovered.close()
            disk = after
        }
        // Any retained point opens, and is what it was.
        let image = try Image(disk)
        for _ in 0..<10 {
            let entry = work.history.filter { $0.sequence >= image.superblock.horizon }.randomElement(using: &random)!
            let past = try openVolume(disk, mode: .at(.sequence(entry.sequence)), clock: clock)
            let found = try Model.of(past)
            #expect(found.canonical == work.model(at: entry.sequence).canonical, "seed \(seed): view at \(entry.sequence)")
        }
    }
}
