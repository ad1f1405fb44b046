// TreeDigest: one SHA-256 for a whole tree, the same for the same content wherever it lies and however it is read
// (Docs/FORMAT.md, "Digest", has every byte).
//
//   root ─ F                          every name once, parents before children, siblings in the order of their bytes
//    ├ a ─ F  directory  ─┐
//    │  ├ b ─ F  regular  │
//    │  └ c ─ L  (the file first met as b)
//    │  E ────────────────┘           the end of directory a
//    └ z ─ F  symlink
//    E
//
// Counted: names, types, permissions, owners, device numbers, extended attributes, symlink targets, which names are the same
// file, sizes and contents. Not counted: inode numbers, times, link counts, places on disk, holes (they are zeros).
//
// (H1) Memory is bounded by the names on the way from the root, and by the number of files with several names.
// (H2) A tree of any depth is walked without recursion.

import Format
import Memory

/// A directory on the way from the root.
private struct Level<File> {
    let directory: File
    let names: NameList
    var next = 0
    let pathLength: Int

    init(directory: File, names: NameList, pathLength: Int) {
        self.directory = directory
        self.names = names
        self.pathLength = pathLength
    }
}

public final class TreeDigest {
    private let hash = SHA256()
    private let content = SHA256()
    private let zeros = [UInt8](repeating: 0, count: blockSize)

    /// Called with one line for each name, for whoever looks for the difference between two trees.
    public var onEntry: ((DigestLine) throws(DigestError) -> Void)?
    /// Whether the root's own mode, owner and extended attributes count.
    public var countsRoot = true

    public init() {}

    /// The digest of everything below the source's root, 32 bytes.
    public func digest<Source: DigestSource>(_ source: Source) throws(DigestError) -> [UInt8] {
        hash.update(Array("daybook digest 1".utf8))
        var met: [FileIdentity: UInt64] = [:]
        var count: UInt64 = 0
        var path: [UInt8] = []
        var levels: [Level<Source.File>] = []

        func meet(_ name: [UInt8], _ node: DigestNode, _ file: Source.File) throws(DigestError) {
            if node.kind != .directory, node.isShared {
                if let first = met[node.identity] {
                    hash.update(u8: UInt8(ascii: "L"))
                    update(name: name)
                    hash.update(u64: first)
                    try onEntry?(DigestLine(path: path, node: node, xattrs: [], detail: .link(first)))
                    return
                }
                met[node.identity] = count
            }
            try updateFile(source, name, node, file, path, isRoot: levels.isEmpty)
            count += 1
            if node.kind == .directory {
                var names = try source.names(file)
                names.sort()
                levels.append(Level(directory: file, names: names, pathLength: path.count))
            }
        }

        let root = try source.root()
        guard root.node.kind == .directory else { throw DigestError("the root is not a directory") }
        try meet([], root.node, root.file)
        while let level = levels.last {
            guard level.next < level.names.count else {
                hash.update(u8: UInt8(ascii: "E"))
                levels.removeLast()
                continue
            }
            levels[levels.count - 1].next += 1
            let (name, token) = level.names[level.next]
            path.removeSubrange(level.pathLength...)
            if !path.isEmpty { path.append(UInt8(ascii: "/")) }
            path += name
            let child = try source.child(level.directory, name, token: token)
            try meet(name, child.node, child.file)
        }
        return hash.finish()
    }

    private func update(name: [UInt8]) {
        hash.update(u16: UInt16(name.count))
        hash.update(name)
    }

    private func updateFile<Source: DigestSource>(
        _ source: Source, _ name: [UInt8], _ node: DigestNode, _ file: Source.File, _ path: [UInt8], isRoot: Bool
    ) throws(DigestError) {
        let counted = !isRoot || countsRoot
        hash.update(u8: UInt8(ascii: "F"))
        update(name: name)
        // A symlink's permissions mean nothing, and systems differ in what they say of them.
        let bare = node.kind == .symlink || !counted
        hash.update(u32: bare ? node.mode & 0o170000 : node.mode & 0o177777)
        hash.update(u32: counted ? node.uid : 0)
        hash.update(u32: counted ? node.gid : 0)
        hash.update(u32: node.major)
        hash.update(u32: node.minor)
        let xattrs = counted ? try source.xattrs(file).sorted { $0.name.lexicographicallyPrecedes($1.name) } : []
        hash.update(u32: UInt32(xattrs.count))
        for xattr in xattrs {
            update(name: xattr.name)
            hash.update(u32: UInt32(xattr.value.count))
            hash.update(xattr.value)
        }
        var detail = DigestLine.Detail.none
        switch node.kind {
        case .regular:
            try source.contents(file, size: node.size, updateContent)
            let sum = content.finish()
            hash.update(u64: node.size)
            hash.update(sum)
            detail = .content(node.size, sum)
        case .symlink:
            let target = try source.target(file)
            hash.update(u32: UInt32(target.count))
            hash.update(target)
            detail = .target(target)
        case .characterDevice, .blockDevice: detail = .device(node.major, node.minor)
        case .directory, .fifo, .socket: break
        }
        if counted { try onEntry?(DigestLine(path: path, node: node, xattrs: xattrs, detail: detail)) }
    }

    /// Blocks of zeros do not count, so that it makes no difference whether they are stored.
    private func updateContent(_ offset: UInt64, _ bytes: RawBytes) {
        precondition(offset % UInt64(blockSize) == 0)
        var at = 0
        while at < bytes.count {
            let block = bytes.slice(at, min(blockSize, bytes.count - at))
            if !zeros.withRawBytes({ $0.slice(0, block.count).equals(block) }) {
                content.update(u64: (offset + UInt64(at)) >> UInt64(blockShift))
                content.update(block)
            }
            at += block.count
        }
    }
}

/// One name and what counted of it.
public struct DigestLine {
    public enum Detail {
        case none
        case content(UInt64, [UInt8])
        case target([UInt8])
        case device(UInt32, UInt32)
        /// The number of the entry that was this file's first name.
        case link(UInt64)
    }
    /// From the root, without a leading slash; empty for the root.
    public let path: [UInt8]
    public let node: DigestNode
    public let xattrs: [(name: [UInt8], value: [UInt8])]
    public let detail: Detail
}
