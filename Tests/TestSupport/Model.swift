// Model: what a filesystem should hold, kept as plain values that know nothing of Daybook's structures, and the same taken from
// a volume by walking it.

import Device
import Format
import Memory
public import Volume

public struct ModelFile: Equatable {
    public var mode: UInt32
    public var bytes: [UInt8]
    public var target: [UInt8] = []
    public var xattrs: [[UInt8]: [UInt8]] = [:]
}

/// Paths to file numbers; directories have no contents. Equal when the trees look the same, hard links included.
public struct Model: Equatable {
    public var names: [String: Int] = [:]
    public var files: [Int: ModelFile] = [:]
    private var next = 0

    public init() {}

    /// The tree without the arbitrary numbers: each path with its file and the first path that shares it.
    public var canonical: [String: Canonical] {
        var first: [Int: String] = [:]
        var result: [String: Canonical] = [:]
        for path in names.keys.sorted() {
            let number = names[path]!
            if first[number] == nil { first[number] = path }
            result[path] = Canonical(file: files[number]!, sharedWith: first[number]!)
        }
        return result
    }

    public struct Canonical: Equatable {
        let file: ModelFile
        let sharedWith: String
    }

    public mutating func make(_ path: String, mode: UInt32, target: [UInt8] = []) {
        names[path] = next
        files[next] = ModelFile(mode: mode, bytes: [], target: target)
        next += 1
    }
    public func isDirectory(_ path: String) -> Bool { path.isEmpty || files[names[path] ?? -1].map { $0.mode & 0o170000 == 0o040000 } ?? false }
    public func children(_ path: String) -> [String] {
        let prefix = path.isEmpty ? "" : path + "/"
        return names.keys.filter { $0.hasPrefix(prefix) && $0 != path && !$0.dropFirst(prefix.count).contains("/") }
    }
    public mutating func write(_ path: String, _ bytes: [UInt8], at offset: Int) {
        let number = names[path]!
        var file = files[number]!
        if file.bytes.count < offset + bytes.count {
            file.bytes += [UInt8](repeating: 0, count: offset + bytes.count - file.bytes.count)
        }
        file.bytes.replaceSubrange(offset..<offset + bytes.count, with: bytes)
        files[number] = file
    }
    public mutating func truncate(_ path: String, _ size: Int) {
        let number = names[path]!
        let old = files[number]!.bytes
        files[number]!.bytes = Array(old.prefix(size)) + [UInt8](repeating: 0, count: max(0, size - old.count))
    }
    public mutating func zero(_ path: String, _ range: Range<Int>) {
        let number = names[path]!
        let end = min(range.upperBound, files[number]!.bytes.count)
        if range.lowerBound < end {
            files[number]!.bytes.replaceSubrange(range.lowerBound..<end, with: [UInt8](repeating: 0, count: end - range.lowerBound))
        }
    }
    public mutating func remove(_ path: String) {
        let number = names.removeValue(forKey: path)!
        if !names.values.contains(number) { files[number] = nil }
    }
    public mutating func rename(_ path: String, _ newPath: String) {
        if names[path] == names[newPath] { return }
        if names[newPath] != nil { remove(newPath) }
        for (old, number) in names where old == path || old.hasPrefix(path + "/") {
            names[old] = nil
            names[newPath + old.dropFirst(path.count)] = number
        }
    }
    public mutating func exchange(_ path: String, _ newPath: String) {
        var moved: [String: Int] = [:]
        for (old, number) in names {
            if old == path || old.hasPrefix(path + "/") {
                moved[newPath + old.dropFirst(path.count)] = number
                names[old] = nil
            } else if old == newPath || old.hasPrefix(newPath + "/") {
                moved[path + old.dropFirst(newPath.count)] = number
                names[old] = nil
            }
        }
        names.merge(moved) { $1 }
    }

    /// Takes the state of a volume by walking it.
    public static func of(_ volume: Volume) throws -> Model {
        var model = Model()
        var numbers: [InodeNumber: Int] = [:]
        var queue: [(String, InodeNumber)] = [("", .root)]
        while let (path, directory) = queue.popLast() {
            var found: [(String, InodeNumber)] = []
            try volume.list(directory, from: 2, attributes: false) { entry in
                found.append((path.isEmpty ? entry.name.text : path + "/" + entry.name.text, entry.inode))
                return true
            }
            for (name, inode) in found {
                let item = try volume.attributes(inode).item
                if let number = numbers[inode] {
                    model.names[name] = number
                    continue
                }
                model.make(name, mode: item.mode)
                let number = model.names[name]!
                numbers[inode] = number
                if item.isDirectory {
                    queue.append((name, inode))
                } else if item.kind == .symlink {
                    model.files[number]!.target = try volume.readLink(inode) { $0.array }
                } else {
                    model.files[number]!.bytes = try volume.contents(name)
                }
                for name in try volume.listXattrs(inode, .housekeeping).split(separator: 0) {
                    model.files[number]!.xattrs[Array(name)] = try Array(name).withRawBytes { (name) throws(OperationError) in
                        try volume.xattr(inode, name) { $0.array }
                    }
                }
            }
        }
        return model
    }
}
