// RecordDescription: what a record did, in the words of its operation: paths, and what else it says. One description, shown as
// a line of text, as JSON, or in full.
//
// Paths are those before the record was applied; the names that it makes or takes away are in the record itself.

import Format
import Memory
import Volume

struct RecordDescription {
    struct Detail {
        let name: String
        let value: Value
        init(_ name: String, _ value: Value) {
            self.name = name
            self.value = value
        }
    }
    indirect enum Value {
        case number(UInt64)
        case mode(UInt32)
        case time(Timestamp)
        case word(String)
        case bytes([UInt8])
        case list([[Detail]])
    }

    let header: RecordHeader
    /// What was changed: an existing file's path, or the one that is made or taken away. Nil when it has no name, or the tree
    /// could not be read.
    var path: [UInt8]?
    /// The second path of rename and link; of a symlink what it points to.
    var target: [UInt8]?
    /// The directory and the name in it, when the record has them: all that is known where `path` is not.
    var entry: (parent: InodeNumber, name: [UInt8])?
    /// The file concerned.
    var inode: InodeNumber?
    /// All files concerned, for filters.
    var concerned: [InodeNumber] = []
    /// The directories that its names are in.
    var directories: [InodeNumber] = []
    var details: [Detail] = []

    init(_ record: Record, _ view: View?) {
        header = record.header
        let paths = Paths(view: view)
        switch record.type {
        case .create, .mkdir, .mknod, .symlink, .tmpfile: describe(MakePayload(record.payload)!, paths)
        case .link, .unlink, .rmdir: describe(NamePayload(record.payload)!, paths)
        case .rename: describe(RenamePayload(record.payload)!, paths)
        case .setattr: describe(AttributesPayload(record.payload)!, paths)
        case .truncate, .write, .fallocate: describe(ContentPayload(record.payload)!, paths)
        case .setxattr, .removexattr: describe(XattrPayload(record.payload)!, paths)
        case .access:
            subject(InodeNumber(record.payload.u64(at: 0)), paths)
            details = [Detail("atime", .time(Timestamp(nanoseconds: record.payload.i64(at: 8))))]
        case .reclaim: describe(ReclaimPayload(record.payload)!, paths)
        case .horizon: details = [Detail("horizon", .number(record.payload.u64(at: 0)))]
        case .clone:
            let clone = ClonePayload(record.payload)!
            describe(clone.content, paths)
            details.append(Detail("source_inode", .number(clone.source.value)))
            details.append(Detail("source_offset", .number(clone.sourceOffset)))
            if let source = paths.path(clone.source) { details.append(Detail("source", .bytes(source))) }
        case .tag, .note, .rollback, .restore: break
        }
    }

    private mutating func subject(_ inode: InodeNumber, _ paths: Paths) {
        self.inode = inode
        concerned.append(inode)
        path = paths.path(inode)
    }

    private mutating func describe(_ make: MakePayload, _ paths: Paths) {
        inode = make.inode
        concerned = [make.inode]
        if make.name.count > 0 {
            entry = (make.parent, make.name.array)
            directories = [make.parent]
            path = paths.path(make.parent, make.name)
        }
        if header.type == .symlink { target = make.target.array }
        details = [
            Detail("mode", .mode(make.mode)), Detail("owner", .number(UInt64(make.uid))), Detail("group", .number(UInt64(make.gid))),
        ]
        let kind = FileKind(mode: make.mode)
        if kind == .characterDevice || kind == .blockDevice {
            details.append(Detail("major", .number(UInt64(make.device >> 8 & 0xfff))))
            details.append(Detail("minor", .number(UInt64(make.device & 0xff | make.device >> 12 & 0xfff00))))
        }
    }

    private mutating func describe(_ name: NamePayload, _ paths: Paths) {
        inode = name.inode
        concerned = [name.inode]
        entry = (name.parent, name.name.array)
        directories = [name.parent]
        let named = paths.path(name.parent, name.name)
        if header.type == .link { (path, target) = (paths.path(name.inode), named) } else { path = named }
    }

    private mutating func describe(_ rename: RenamePayload, _ paths: Paths) {
        inode = rename.inode
        concerned = [rename.inode]
        entry = (rename.parent, rename.name.array)
        directories = [rename.parent, rename.newParent]
        path = paths.path(rename.parent, rename.name)
        target = paths.path(rename.newParent, rename.newName)
        if rename.other != .none {
            let exchanged = rename.flags & RenamePayload.exchange != 0
            details.append(Detail(exchanged ? "exchanged_inode" : "replaced_inode", .number(rename.other.value)))
            concerned.append(rename.other)
        }
        if rename.flags & RenamePayload.whiteout != 0 { details.append(Detail("whiteout_inode", .number(rename.whiteoutInode.value))) }
        details.append(Detail("new_parent", .number(rename.newParent.value)))
        details.append(Detail("new_name", .bytes(rename.newName.array)))
    }

    private mutating func describe(_ change: AttributesPayload, _ paths: Paths) {
        subject(change.inode, paths)
        if change.mask & AttributesPayload.mode != 0 { details.append(Detail("mode", .mode(change.mode))) }
        if change.mask & AttributesPayload.uid != 0 { details.append(Detail("owner", .number(UInt64(change.uid)))) }
        if change.mask & AttributesPayload.gid != 0 { details.append(Detail("group", .number(UInt64(change.gid)))) }
        if change.mask & AttributesPayload.accessed != 0 { details.append(Detail("atime", .time(change.accessed))) }
        if change.mask & AttributesPayload.modified != 0 { details.append(Detail("mtime", .time(change.modified))) }
    }

    private mutating func describe(_ content: ContentPayload, _ paths: Paths) {
        subject(content.inode, paths)
        if header.type != .truncate {
            details.append(Detail("offset", .number(content.offset)))
            details.append(Detail("length", .number(content.length)))
        }
        details.append(Detail("size", .number(content.size)))
        if header.type == .fallocate {
            let names: [(UInt32, String)] = [
                (1, "keep-size"), (2, "punch-hole"), (8, "collapse-range"), (16, "zero-range"), (32, "insert-range"),
                (64, "unshare-range"),
            ]
            let set = names.filter { content.fallocateMode & $0.0 != 0 }.map(\.1)
            details.append(Detail("fallocate", .word(set.isEmpty ? "allocate" : set.joined(separator: "+"))))
        }
    }

    private mutating func describe(_ xattr: XattrPayload, _ paths: Paths) {
        subject(xattr.inode, paths)
        details.append(Detail("name", .bytes(xattr.name.array)))
        if header.type == .setxattr { details.append(Detail("length", .number(UInt64(xattr.value.count)))) }
    }

    private mutating func describe(_ reclaim: ReclaimPayload, _ paths: Paths) {
        var list: [[Detail]] = []
        for index in 0..<reclaim.count {
            guard let item = reclaim.entry(index) else { continue }
            concerned.append(item.inode)
            list.append([
                Detail("inode", .number(item.inode.value)), Detail("from_block", .number(item.fromBlock)),
                Detail("outcome", .word("\(item.outcome)")),
            ])
        }
        inode = concerned.first
        path = concerned.count == 1 ? paths.path(concerned[0]) : nil
        details.append(Detail("inodes", .list(list)))
    }
}

/// Paths in a view that may be missing or damaged: then there are none.
private struct Paths {
    let view: View?

    func path(_ inode: InodeNumber) -> [UInt8]? { (try? view?.path(inode)) ?? nil }

    func path(_ parent: InodeNumber, _ name: RawBytes) -> [UInt8]? {
        guard let base = path(parent) else { return nil }
        return (base.count == 1 ? base : base + [UInt8(ascii: "/")]) + name.array
    }
}

// MARK: showing

extension RecordDescription {
    /// What stands for the path where there is none.
    var pathText: String {
        if let path { return shown(path) }
        if let entry { return "(directory \(entry.parent))/" + shown(entry.name) }
        if case .list(let items)? = details.first?.value, items.count > 1 { return "(\(items.count) files without names)" }
        return inode.map { "(inode \($0))" } ?? "-"
    }

    /// One line, in columns.
    func line(sequenceWidth: Int) -> String {
        var text = leftPadded(String(header.sequence.value), sequenceWidth) + "  " + header.time.local + "  "
        text += leftPadded(String(header.uid), 5) + " " + leftPadded(String(header.pid), 7) + "  "
        text += rightPadded(header.type.name, 11) + "  " + pathText
        if let target { text += " -> " + shown(target) } else if header.type == .link || header.type == .rename { text += " -> ?" }
        for detail in details where !isKnown(detail) {
            if let value = Self.text(detail.value) { text += "  " + detail.name + " " + value }
        }
        return text
    }

    /// Whether the rest of the line says it already.
    private func isKnown(_ detail: Detail) -> Bool {
        switch (detail.name, detail.value) {
        case ("new_parent", _), ("new_name", _), ("replaced_inode", _), ("exchanged_inode", _), ("whiteout_inode", _): true
        // A new file usually belongs to whoever made it.
        case ("owner", .number(let owner)): header.type != .setattr && owner == UInt64(header.uid)
        case ("group", .number(let group)): header.type != .setattr && group == UInt64(header.gid)
        default: false
        }
    }

    /// A detail as text; nil for lists.
    static func text(_ value: Value) -> String? {
        switch value {
        case .number(let number): String(number)
        // The operation tells the type.
        case .mode(let mode): octal(mode & 0o7777)
        case .time(let time): time.local
        case .word(let word): word
        case .bytes(let bytes): shown(bytes)
        case .list: nil
        }
    }

    var json: String {
        var object = JSONObject()
        object.add("sequence", header.sequence.value)
        object.add("time", header.time.rfc3339)
        object.add("operation", header.type.name)
        if let path { object.add("path", bytes: path) } else { object.addNull("path") }
        if let target {
            object.add("target", bytes: target)
        } else if header.type == .link || header.type == .rename {
            object.addNull("target")
        }
        if let inode { object.add("inode", inode.value) } else { object.addNull("inode") }
        object.add("uid", UInt64(header.uid))
        object.add("gid", UInt64(header.gid))
        object.add("pid", UInt64(header.pid))
        if let entry {
            object.add("parent", entry.parent.value)
            object.add("entry", bytes: entry.name)
        }
        Self.add(details, to: &object)
        return object.closed
    }

    private static func add(_ details: [Detail], to object: inout JSONObject) {
        for detail in details {
            let name = detail.name
            switch detail.value {
            case .number(let number): object.add(name, number)
            case .mode(let mode): object.add(name, octal(mode))
            case .time(let time): object.add(name, time.rfc3339)
            case .word(let word): object.add(name, word)
            case .bytes(let bytes): object.add(name, bytes: bytes)
            case .list(let items):
                object.add(name, items.map { item in
                    var inner = JSONObject()
                    add(item, to: &inner)
                    return inner
                })
            }
        }
    }
}
