// Workload: random operations on a volume, mirrored in a model that knows nothing of the structures.

public import Device
import Foundation
public import Format
import Memory
public import Volume

/// A workload: random operations on a volume and its model together.
public struct Workload {
    public var random: SeededRandom
    public var model = Model()
    /// The model after each operation, by the sequence then reached.
    public var history: [(sequence: SequenceNumber, model: Model)] = [(SequenceNumber(0), Model())]
    var files = 0

    public init(seed: UInt64) { random = SeededRandom(seed: seed) }

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
    public mutating func step(_ volume: Volume) throws {
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
    public func model(at sequence: SequenceNumber) -> Model { history.last { $0.sequence <= sequence }!.model }

    /// The state that a crash left becomes the present.
    public mutating func rewind(to sequence: SequenceNumber) {
        history.removeAll { $0.sequence > sequence }
        model = history.last!.model
    }
}

/// The seeds of random tests: `DAYBOOK_TEST_SEED` runs one alone, `DAYBOOK_TEST_SEEDS` so many.
public let seeds: [UInt64] = ProcessInfo.processInfo.environment["DAYBOOK_TEST_SEED"].flatMap { UInt64($0) }.map { [$0] }
    ?? Array(1...UInt64(ProcessInfo.processInfo.environment["DAYBOOK_TEST_SEEDS"] ?? "12")!)


/// Bytes that tell their seed.
public func pattern(_ count: Int, _ seed: UInt64) -> [UInt8] {
    var random = SeededRandom(seed: seed)
    let buffer = AlignedBuffer(count: count + 8)
    // A word at a time: byte by byte takes seconds in a debug build.
    for offset in stride(from: 0, to: count, by: 8) { buffer.bytes.set(u64: random.next(), at: offset) }
    return buffer.bytes.slice(0, count).array
}
