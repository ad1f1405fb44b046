// Step: what workloads are made of: operations over a small name space, and what makes them durable.

import ByPath
import Format
import Volume

public enum Step: Hashable, Sendable, CustomStringConvertible {
    case create(String), makeDirectory(String), symlink(String), temporary
    case link(String, String), unlink(String), removeDirectory(String)
    case rename(String, String), exchange(String, String)
    case write(String, at: Int, count: Int)
    case truncate(String, Int)
    case fallocate(String, mode: Int32, at: Int, count: Int)
    case copy(String, String)
    case setMode(String, UInt32)
    case setXattr(String, Int), removeXattr(String)

    // What only moves the moment that a crash goes back to.
    case commit
    case checkpoint
    case moveHorizon
    case reclaim

    public var description: String {
        switch self {
        case .create(let path): "create \(path)"
        case .makeDirectory(let path): "mkdir \(path)"
        case .symlink(let path): "symlink \(path)"
        case .temporary: "tmpfile"
        case .link(let path, let new): "link \(path) \(new)"
        case .unlink(let path): "unlink \(path)"
        case .removeDirectory(let path): "rmdir \(path)"
        case .rename(let path, let new): "rename \(path) \(new)"
        case .exchange(let path, let new): "exchange \(path) \(new)"
        case .write(let path, let at, let count): "write \(path) \(at)+\(count)"
        case .truncate(let path, let size): "truncate \(path) \(size)"
        case .fallocate(let path, let mode, let at, let count): "fallocate(\(mode)) \(path) \(at)+\(count)"
        case .copy(let path, let new): "copy \(path) \(new)"
        case .setMode(let path, let mode): "chmod \(path) \(String(mode, radix: 8))"
        case .setXattr(let path, let count): "setxattr \(path) \(count)"
        case .removeXattr(let path): "removexattr \(path)"
        case .commit: "fsync"
        case .checkpoint: "checkpoint"
        case .moveHorizon: "horizon"
        case .reclaim: "reclaim"
        }
    }

    /// All operations of the exhaustive enumeration. What cannot be done in a state is left out there.
    public static let operations: [Step] = {
        let files = ["foo", "bar", "A/foo"]
        var steps: [Step] = files.map { .create($0) } + [.makeDirectory("A"), .makeDirectory("B"), .symlink("bar"), .temporary]
        for path in files {
            steps += [
                .unlink(path), .write(path, at: 0, count: 100), .write(path, at: 4000, count: 200), .write(path, at: 0, count: 5000),
                .write(path, at: 12_288, count: 4096), .truncate(path, 0), .truncate(path, 50), .truncate(path, 9000),
            ]
        }
        steps += [
            .link("foo", "bar"), .link("foo", "A/foo"), .removeDirectory("A"), .removeDirectory("B"), .rename("foo", "bar"),
            .rename("foo", "A/foo"), .rename("A/foo", "foo"), .rename("A", "B"), .rename("B", "A"), .exchange("foo", "bar"),
            .exchange("foo", "A"), .fallocate("foo", mode: 0, at: 0, count: 8192), .fallocate("foo", mode: 1, at: 4096, count: 8192),
            .fallocate("foo", mode: 3, at: 0, count: 4096), .fallocate("foo", mode: 0x10, at: 100, count: 6000), .copy("foo", "bar"),
            .copy("foo", "A/foo"), .copy("bar", "foo"), .setMode("foo", 0o600), .setMode("A", 0o700), .setXattr("foo", 10),
            .setXattr("foo", 3000), .setXattr("A", 10), .removeXattr("foo"),
        ]
        return steps
    }()

    /// What may come between two operations.
    public static let persistence: [Step?] = [nil, .commit, .checkpoint]
}

extension Step {
    /// Bytes that differ from write to write.
    static func bytes(_ count: Int, _ number: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ $0 >> 8 &+ number &* 31 &+ 1) }
    }

    /// Does it to the model. `number`: how many steps came before.
    func change(_ model: inout ReferenceModel, _ number: Int = 0) throws {
        switch self {
        case .create(let path): try model.make(path, mode: 0o100644)
        case .makeDirectory(let path): try model.make(path, mode: 0o040755)
        case .symlink(let path): try model.make(path, mode: 0o120777, target: "somewhere")
        case .link(let path, let new): try model.link(path, new)
        case .unlink(let path): try model.unlink(path)
        case .removeDirectory(let path): try model.removeDirectory(path)
        case .rename(let path, let new): try model.rename(path, new, exchange: false)
        case .exchange(let path, let new): try model.rename(path, new, exchange: true)
        case .write(let path, let at, let count): try model.write(path, Self.bytes(count, number), at: at)
        case .truncate(let path, let size): try model.truncate(path, size)
        case .fallocate(let path, let mode, let at, let count): try model.fallocate(path, mode: mode, at, count)
        case .copy(let path, let new): try model.copy(path, new)
        case .setMode(let path, let mode): try model.setMode(path, mode)
        case .setXattr(let path, let count): try model.setXattr(path, "user.x", Self.bytes(count, number))
        case .removeXattr(let path): try model.removeXattr(path, "user.x")
        case .temporary, .commit, .checkpoint, .moveHorizon, .reclaim: break
        }
    }
}

/// A volume without threads, and the model of what it should hold.
final class Subject {
    let volume: Volume
    private(set) var model: ReferenceModel
    private var writes = 0

    init(_ volume: Volume, _ model: ReferenceModel) {
        self.volume = volume
        self.model = model
    }

    fileprivate let caller = Caller(uid: 0, gid: 0, pid: 1)
    private var paths: PathVolume { PathVolume(volume, caller: caller) }

    /// Does the step on both. False, and nothing done, when the model refuses it.
    func perform(_ step: Step) throws -> Bool {
        var changed = model
        do { try step.change(&changed, writes) } catch is ReferenceModel.Refusal { return false }
        copied = 0
        do {
            try apply(step)
            model = changed
        } catch OperationError.noSpace {
            // Refused, so nothing has happened; but a copy may have come some way.
            if case .copy(let path, let new) = step, copied > 0 { try model.copy(path, new, count: copied) }
            refusals += 1
        }
        writes += 1
        return true
    }
    /// Steps for which there was no room.
    private(set) var refusals = 0
    private var copied = 0

    private func bytes(_ count: Int) -> [UInt8] { Step.bytes(count, writes) }

    private func apply(_ step: Step) throws {
        switch step {
        case .create(let path): try paths.make(path)
        case .makeDirectory(let path): try paths.make(path, mode: 0o040755)
        case .symlink(let path): try paths.make(path, mode: 0o120777, target: "somewhere")
        case .temporary:
            let made = try volume.makeTemporary(.root, mode: 0o100600, caller)
            try paths.write(made.inode, bytes(5000), at: 0)
            volume.forget(made.inode, count: 1)
        case .link(let path, let new): try paths.link(path, new)
        case .unlink(let path): try paths.unlink(path)
        case .removeDirectory(let path): try paths.removeDirectory(path)
        case .rename(let path, let new): try paths.rename(path, new)
        case .exchange(let path, let new): try paths.rename(path, new, flags: RenameFlags.exchange)
        case .write(let path, let at, let count): try paths.write(path, bytes(count), at: UInt64(at))
        case .truncate(let path, let size): try paths.truncate(path, UInt64(size))
        case .fallocate(let path, let mode, let at, let count):
            try volume.fallocate(try paths.find(path), mode: mode, offset: UInt64(at), length: UInt64(count), caller)
        case .copy(let path, let new):
            let (source, destination) = (try paths.find(path), try paths.find(new))
            var done: UInt64 = 0
            while true {
                let count = try volume.copyRange(from: source, at: done, to: destination, at: done, length: 1 << 20, caller)
                if count == 0 { break }
                done += count
                copied = Int(done)
            }
        case .setMode(let path, let mode):
            var change = AttributeChange()
            change.mode = mode
            _ = try volume.setAttributes(try paths.find(path), change, caller)
        case .setXattr(let path, let count): try paths.setXattr(path, "user.x", bytes(count))
        case .removeXattr(let path): try paths.removeXattr(path, "user.x")
        case .commit: try volume.commit()
        case .checkpoint: try volume.checkpointAlone(clean: false)
        case .moveHorizon: volume.moveHorizonAlone()
        case .reclaim: try volume.reclaimAlone()
        }
    }
}

extension Subject {
    /// Sets nearly all room aside for one empty file: what is left is the reserve, and a few blocks that operations may have.
    func fill() throws {
        guard try perform(.create("fill")) else { return }
        let inode = try paths.find("fill")
        var offset: UInt64 = 0
        while true {
            let room = volume.statistics().available
            guard room > 10 else { break }
            let blocks = min(room - 8, 1024)
            do throws(OperationError) {
                try volume.fallocate(inode, mode: 1, offset: offset, length: blocks << UInt64(blockShift), caller)
            } catch {
                guard error == .noSpace else { throw error }
                break
            }
            offset += blocks << UInt64(blockShift)
        }
        try volume.checkpointAlone(clean: false)
    }
}
