// ViewSource: the tree of a view, for the digest. A hostile image cannot lead it in circles: a directory counts only where
// its own parent field says it belongs.

import Device
public import Format
public import Memory
public import Volume

public final class ViewSource: DigestSource {
    public typealias File = InodeNumber

    private let view: View
    private let start: InodeNumber
    private let plan = ReadPlan()
    private let buffer = AlignedBuffer(count: 1 << 20)

    /// The tree below the directory `start`.
    public init(_ view: View, from start: InodeNumber = .root) {
        self.view = view
        self.start = start
    }

    private func attempt<R>(_ body: () throws(ViewError) -> R) throws(DigestError) -> R {
        do throws(ViewError) { return try body() } catch { throw DigestError(error.text) }
    }

    public func root() throws(DigestError) -> (node: DigestNode, file: InodeNumber) {
        (node(try attempt { () throws(ViewError) in try view.attributes(start) }), start)
    }

    public func names(_ directory: InodeNumber) throws(DigestError) -> NameList {
        var names = NameList()
        var failure: DigestError?
        try attempt { () throws(ViewError) in
            // From offset 2 on: without `.` and `..`.
            try view.list(directory, from: 2, attributes: false) { entry in
                do throws(DigestError) { try names.append(entry.name, token: entry.inode.value) } catch { failure = error }
                return failure == nil
            }
        }
        view.trim()
        if let failure { throw failure }
        return names
    }

    public func child(
        _ directory: InodeNumber, _ name: [UInt8], token: UInt64
    ) throws(DigestError) -> (node: DigestNode, file: InodeNumber) {
        let inode = InodeNumber(token)
        defer { view.trim() }
        guard let item = try attempt({ () throws(ViewError) in try view.item(inode) }) else {
            throw DigestError("directory \(directory): an entry leads to inode \(inode), which does not exist")
        }
        guard !item.isDirectory || item.parent == directory && inode != .root else {
            throw DigestError("directory \(inode) is entered in directory \(directory), but belongs to \(item.parent)")
        }
        return (node(Attributes(inode: inode, item: item)), inode)
    }

    private func node(_ attributes: Attributes) -> DigestNode {
        let item = attributes.item
        var node = DigestNode(
            kind: item.kind, mode: item.mode, uid: item.uid, gid: item.gid, size: item.length,
            identity: FileIdentity(filesystem: 0, inode: attributes.inode.value), isShared: item.links > 1)
        if item.kind == .characterDevice || item.kind == .blockDevice {
            node.major = (item.device >> 8) & 0xfff
            node.minor = (item.device & 0xff) | (item.device >> 12) & 0xfff00
        }
        return node
    }

    public func xattrs(_ file: InodeNumber) throws(DigestError) -> [(name: [UInt8], value: [UInt8])] {
        try attempt { () throws(ViewError) in
            var result: [(name: [UInt8], value: [UInt8])] = []
            for name in try view.xattrNames(file).split(separator: 0) {
                let name = Array(name)
                result.append((name, try name.withRawBytes { (bytes) throws(ViewError) in try view.xattrValue(file, bytes) }))
            }
            return result
        }
    }

    public func target(_ symlink: InodeNumber) throws(DigestError) -> [UInt8] {
        try attempt { () throws(ViewError) in try view.target(symlink) }
    }

    public func contents(_ file: InodeNumber, size: UInt64, _ body: (UInt64, RawBytes) -> Void) throws(DigestError) {
        var at: UInt64 = 0
        while at < size {
            do throws(ViewError) { at = try view.seek(file, from: at, to: .data) } catch {
                if case .refused(.noSuchOffset) = error { return }
                throw DigestError(error.text)
            }
            at &= ~UInt64(blockSize - 1)
            let count = try attempt { () throws(ViewError) in try view.read(file, at: at, into: buffer.bytes, plan) }
            guard count > 0 else { return }
            body(at, buffer.bytes.slice(0, count))
            at += UInt64(count)
        }
    }
}
