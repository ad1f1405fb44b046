// ReferenceModel: what a filesystem should hold after some operations. Plain values; it knows nothing of Daybook's structures.
// A state is told by its digest: paths, types, permissions, contents, targets, attributes, and which paths are one file.

import Format
import Memory
import Volume

public struct ReferenceModel {
    struct File {
        var mode: UInt32
        var bytes: [UInt8] = []
        var target = ""
        var xattrs: [String: [UInt8]] = [:]
    }
    private(set) var names: [String: Int] = [:]
    private var files: [Int: File] = [:]
    private var next = 0

    public init() {}

    enum Refusal: Error { case refused }

    // MARK: looking

    func isDirectory(_ path: String) -> Bool { path.isEmpty || names[path].map { files[$0]!.mode & 0o170000 == 0o040000 } ?? false }
    private func file(_ path: String) throws -> Int {
        guard let number = names[path] else { throw Refusal.refused }
        return number
    }
    private func regular(_ path: String) throws -> Int {
        let number = try file(path)
        guard files[number]!.mode & 0o170000 == 0o100000 else { throw Refusal.refused }
        return number
    }
    private static func parent(_ path: String) -> String {
        path.lastIndex(of: "/").map { String(path[..<$0]) } ?? ""
    }
    private func isEmpty(_ path: String) -> Bool { !names.keys.contains { $0.hasPrefix(path + "/") } }

    // MARK: changing

    mutating func make(_ path: String, mode: UInt32, target: String = "") throws {
        guard names[path] == nil, isDirectory(Self.parent(path)) else { throw Refusal.refused }
        names[path] = next
        files[next] = File(mode: mode, target: target)
        next += 1
    }

    mutating func link(_ path: String, _ newPath: String) throws {
        guard let number = names[path], !isDirectory(path), names[newPath] == nil, isDirectory(Self.parent(newPath)) else {
            throw Refusal.refused
        }
        names[newPath] = number
    }

    mutating func unlink(_ path: String) throws {
        guard names[path] != nil, !isDirectory(path) else { throw Refusal.refused }
        drop(path)
    }

    mutating func removeDirectory(_ path: String) throws {
        guard names[path] != nil, isDirectory(path), isEmpty(path) else { throw Refusal.refused }
        drop(path)
    }

    private mutating func drop(_ path: String) {
        let number = names.removeValue(forKey: path)!
        if !names.values.contains(number) { files[number] = nil }
    }

    mutating func rename(_ path: String, _ newPath: String, exchange: Bool) throws {
        guard names[path] != nil, isDirectory(Self.parent(newPath)), !newPath.hasPrefix(path + "/") else { throw Refusal.refused }
        if exchange {
            guard names[newPath] != nil, !path.hasPrefix(newPath + "/") else { throw Refusal.refused }
            swapTrees(path, newPath)
            return
        }
        if path == newPath { return }
        if let other = names[newPath] {
            if names[path] == other { return }
            guard isDirectory(path) == isDirectory(newPath), !isDirectory(newPath) || isEmpty(newPath) else { throw Refusal.refused }
            drop(newPath)
        }
        for (old, number) in names where old == path || old.hasPrefix(path + "/") {
            names[old] = nil
            names[newPath + old.dropFirst(path.count)] = number
        }
    }

    private mutating func swapTrees(_ path: String, _ newPath: String) {
        guard path != newPath else { return }
        var moved: [String: Int] = [:]
        for (old, number) in names {
            for (from, to) in [(path, newPath), (newPath, path)] where old == from || old.hasPrefix(from + "/") {
                moved[to + old.dropFirst(from.count)] = number
                names[old] = nil
            }
        }
        names.merge(moved) { $1 }
    }

    mutating func write(_ path: String, _ bytes: [UInt8], at offset: Int) throws {
        let number = try regular(path)
        if files[number]!.bytes.count < offset + bytes.count { resize(number, offset + bytes.count) }
        files[number]!.bytes.replaceSubrange(offset..<offset + bytes.count, with: bytes)
    }

    mutating func truncate(_ path: String, _ size: Int) throws { resize(try regular(path), size) }

    private mutating func resize(_ number: Int, _ size: Int) {
        let old = files[number]!.bytes
        files[number]!.bytes = old.count >= size ? Array(old.prefix(size)) : old + [UInt8](repeating: 0, count: size - old.count)
    }

    mutating func fallocate(_ path: String, mode: Int32, _ offset: Int, _ length: Int) throws {
        let number = try regular(path)
        if mode & 1 == 0 && files[number]!.bytes.count < offset + length { resize(number, offset + length) }
        guard mode & 0x12 != 0 else { return }
        let end = min(offset + length, files[number]!.bytes.count)
        if offset < end { files[number]!.bytes.replaceSubrange(offset..<end, with: [UInt8](repeating: 0, count: end - offset)) }
    }

    /// Copies the first `count` bytes, or all.
    mutating func copy(_ path: String, _ newPath: String, count: Int = .max) throws {
        let (source, destination) = (try regular(path), try regular(newPath))
        guard source != destination else { throw Refusal.refused }
        let bytes = Array(files[source]!.bytes.prefix(count))
        if files[destination]!.bytes.count < bytes.count { resize(destination, bytes.count) }
        files[destination]!.bytes.replaceSubrange(0..<bytes.count, with: bytes)
    }

    mutating func setMode(_ path: String, _ mode: UInt32) throws {
        let number = try file(path)
        files[number]!.mode = files[number]!.mode & 0o170000 | mode
    }

    mutating func setXattr(_ path: String, _ name: String, _ value: [UInt8]) throws {
        files[try file(path)]!.xattrs[name] = value
    }
    mutating func removeXattr(_ path: String, _ name: String) throws {
        guard files[try file(path)]!.xattrs.removeValue(forKey: name) != nil else { throw Refusal.refused }
    }

    // MARK: digests

    public var digest: Int {
        var hasher = Hasher()
        var first: [Int: Int] = [:]
        for (position, path) in names.keys.sorted().enumerated() {
            let number = names[path]!
            let file = files[number]!
            let same = first[number] ?? position
            first[number] = same
            Self.combine(&hasher, path, same, file)
        }
        return hasher.finalize()
    }

    private static func combine(_ hasher: inout Hasher, _ path: String, _ same: Int, _ file: File) {
        hasher.combine(path)
        hasher.combine(same)
        hasher.combine(file.mode)
        hasher.combine(file.bytes)
        hasher.combine(file.target)
        for name in file.xattrs.keys.sorted() {
            hasher.combine(name)
            hasher.combine(file.xattrs[name]!)
        }
    }

    /// The digest of what a volume holds, found by walking it.
    static func digest(of volume: Volume) throws -> Int {
        var found: [String: (inode: InodeNumber, kind: FileKind)] = [:]
        var queue: [(String, InodeNumber)] = [("", .root)]
        while let (path, directory) = queue.popLast() {
            try volume.list(directory, from: 2, attributes: false) { entry in
                let name = path.isEmpty ? entry.name.text : path + "/" + entry.name.text
                let kind = FileKind(rawValue: entry.kind)!
                found[name] = (entry.inode, kind)
                if kind == .directory { queue.append((name, entry.inode)) }
                return true
            }
        }
        var hasher = Hasher()
        var first: [InodeNumber: Int] = [:]
        for (position, path) in found.keys.sorted().enumerated() {
            let inode = found[path]!.inode
            let item = try volume.attributes(inode).item
            let same = first[inode] ?? position
            first[inode] = same
            var file = File(mode: item.mode)
            switch item.kind {
            case .regular: file.bytes = try contents(volume, inode, Int(item.length))
            case .symlink: file.target = String(decoding: try volume.readLink(inode) { $0.array }, as: UTF8.self)
            default: break
            }
            for name in item.xattrs > 0 ? try volume.listXattrs(inode, .housekeeping).split(separator: 0) : [] {
                file.xattrs[String(decoding: name, as: UTF8.self)] = try Array(name).withRawBytes { (name) throws(OperationError) in
                    try volume.xattr(inode, name) { $0.array }
                }
            }
            combine(&hasher, path, same, file)
        }
        return hasher.finalize()
    }

    private static func contents(_ volume: Volume, _ inode: InodeNumber, _ length: Int) throws -> [UInt8] {
        guard length > 0 else { return [] }
        let buffer = AlignedBuffer(count: min((length + 4095) & ~4095, 1 << 20))
        defer { withExtendedLifetime(buffer) {} }
        var result: [UInt8] = []
        while result.count < length {
            let count = try volume.read(inode, at: UInt64(result.count), into: buffer.bytes)
            guard count > 0 else { break }
            result += buffer.bytes.slice(0, count).array
        }
        return result
    }
}
