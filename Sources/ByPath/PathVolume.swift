// PathVolume: operations by path, for what works on a volume without a mount: crash exploration, the fuzzer's images, tests.
//
// Paths are names with slashes between them, from the root, whether they begin with a slash or not; the empty path is the root. No symbolic
// link is followed. References that look-ups take are given back at once, so an inode returned stays only while a name leads to it.

public import Format
public import Memory
public import Volume

public struct PathVolume: Sendable {
    public let volume: Volume
    public let caller: Caller

    public init(_ volume: Volume, caller: Caller) {
        self.volume = volume
        self.caller = caller
    }

    // MARK: finding

    public func attributes(_ path: String) throws(OperationError) -> Attributes {
        guard let found = try walk(path) else { return try volume.attributes(.root) }
        return found
    }

    public func find(_ path: String) throws(OperationError) -> InodeNumber { try walk(path)?.inode ?? .root }

    /// Nil: the root, which nothing was asked of.
    private func walk(_ path: String) throws(OperationError) -> Attributes? {
        var found: Attributes?
        for part in path.split(separator: "/") {
            let parent = found?.inode ?? .root
            let next = try Array(part.utf8).withRawBytes { (name) throws(OperationError) in try volume.lookup(parent, name) }
            volume.forget(next.inode, count: 1)
            found = next
        }
        return found
    }

    /// Gives the directory that a path leads into, and the last name, to `body`.
    public func at<R>(_ path: String, _ body: (InodeNumber, RawBytes) throws(OperationError) -> R) throws(OperationError) -> R {
        let parts = path.split(separator: "/")
        let parent = try find(parts.dropLast().joined(separator: "/"))
        return try Array((parts.last ?? "").utf8).withRawBytes { (name) throws(OperationError) in try body(parent, name) }
    }

    // MARK: names

    @discardableResult public func make(
        _ path: String, mode: UInt32 = 0o100644, target: String = "", device: UInt32 = 0
    ) throws(OperationError) -> InodeNumber {
        let made = try at(path) { parent, name throws(OperationError) in
            try Array(target.utf8).withRawBytes { (target) throws(OperationError) in
                try volume.make(parent, name, mode: mode, device: device, target: target, caller)
            }
        }
        volume.forget(made.inode, count: 1)
        return made.inode
    }

    public func link(_ path: String, _ newPath: String) throws(OperationError) {
        let inode = try find(path)
        let made = try at(newPath) { parent, name throws(OperationError) in try volume.link(inode, parent, name, caller) }
        volume.forget(made.inode, count: 1)
    }

    public func unlink(_ path: String) throws(OperationError) {
        try at(path) { parent, name throws(OperationError) in try volume.unlink(parent, name, caller) }
    }

    public func removeDirectory(_ path: String) throws(OperationError) {
        try at(path) { parent, name throws(OperationError) in try volume.removeDirectory(parent, name, caller) }
    }

    public func rename(_ path: String, _ newPath: String, flags: UInt32 = 0) throws(OperationError) {
        try at(newPath) { newParent, newName throws(OperationError) in
            try at(path) { parent, name throws(OperationError) in
                try volume.rename(parent, name, to: newParent, newName, flags: flags, caller)
            }
        }
    }

    // MARK: contents and attributes

    public func write(_ path: String, _ bytes: [UInt8], at offset: UInt64 = 0) throws(OperationError) {
        try write(try find(path), bytes, at: offset)
    }

    /// In pieces of at most 1 MiB, as the kernel does.
    public func write(_ inode: InodeNumber, _ bytes: [UInt8], at offset: UInt64) throws(OperationError) {
        try bytes.withRawBytes { (data) throws(OperationError) in
            var done = 0
            while done < data.count {
                let part = data.slice(done, min(1 << 20, data.count - done))
                try volume.write(inode, at: offset + UInt64(done), part, killPrivileges: false, caller)
                done += part.count
            }
        }
    }

    public func truncate(_ path: String, _ size: UInt64) throws(OperationError) {
        var change = AttributeChange()
        change.size = size
        _ = try volume.setAttributes(try find(path), change, caller)
    }

    public func setXattr(_ path: String, _ name: String, _ value: [UInt8]) throws(OperationError) {
        let inode = try find(path)
        try Array(name.utf8).withRawBytes { (name) throws(OperationError) in
            try value.withRawBytes { (value) throws(OperationError) in
                try volume.setXattr(inode, name, value, create: false, replace: false, caller)
            }
        }
    }

    public func removeXattr(_ path: String, _ name: String) throws(OperationError) {
        let inode = try find(path)
        try Array(name.utf8).withRawBytes { (name) throws(OperationError) in try volume.removeXattr(inode, name, caller) }
    }
}
