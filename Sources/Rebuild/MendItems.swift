// MendItems: steps 1 and 2 of Mend: one inode after the other, and the large values that attributes and symbolic links name.

import Check
import Format
import Memory
import Tree

extension Mend {
    func takeItems() throws {
        try tree.scan(from: Key.first, mapping: { RepairFailure(.damaged, "\($0)") }) { (key, value) throws(RepairFailure) -> Bool in
            if isCancelled() { throw RepairFailure(.cancelled, "cancelled") }
            take(key, value)
            return true
        }
        close()
        if index(of: 1) == nil {
            say("the root directory's attributes are lost: it is made anew, mode 0755, owner root", 1, isLoss: true)
            var root = Node(number: 1, kind: FileKind.directory.rawValue, links: 0, length: 0, parent: 1, parentEntry: 0)
            root.isNew = true
            nodes.insert(root, at: 0)
        }
    }

    func take(_ key: Key, _ value: RawBytes) {
        let inode = key.high >> 8
        if inode != number {
            close()
            begin(inode)
        }
        switch ItemType(rawValue: key.type) {
        case .orphan where inode == 0 && value.count == 0: orphans.insert(key.low)
        case .inode where inode != 0 && key.low == 0: takeInode(inode, value)
        case .xattr where inode != 0: takeXattr(inode, key, value)
        case .entry where inode != 0 && (item == nil || item!.isDirectory): takeEntry(inode, key, value)
        case .extent where inode != 0 && (item == nil || item!.isRegular): takeExtent(inode, key, value)
        case .piece where inode != 0: pieces.take(key.low, value.count)
        case .entry where inode != 0 && item != nil:
            let name = EntryItem(value).map { "the name '\($0.name.text)' (inode \($0.inode))" } ?? "a malformed name"
            say("\(name) in what is no directory is removed", inode, isLoss: true)
            removals.append(key)
        case .extent where inode != 0 && item != nil:
            let count = value.count >= ExtentItem.header ? UInt64(ExtentItem(value).blocks) : 0
            say("\(count) blocks at offset \(key.low << UInt64(blockShift)) of what is no regular file are removed", inode, isLoss: true)
            removals.append(key)
        default:
            say("an item of type \(key.type) and \(value.count) bytes that belongs to nothing is removed", inode, isLoss: true)
            removals.append(key)
        }
    }

    func begin(_ inode: UInt64) {
        number = inode
        item = nil
        (entries, xattrs, extents, blocks, extentEnd, dataEnd) = (0, 0, 0, 0, 0, 0)
        pieces = PieceRun()
        isBad = false
        resetHash()
        xattrPieces = []
    }

    func resetHash() {
        hashBase = 0
        hashNames = []
    }

    func takeInode(_ inode: UInt64, _ value: RawBytes) {
        highest = max(highest, inode)
        guard (try? InodeItem.validate(value, inode: InodeNumber(inode))) != nil else {
            isBad = true
            return
        }
        let found = InodeItem(value)
        guard found.mode & ~0o177777 == 0, found.flags == 0, !found.isRegular || found.length <= Limit.fileSize, inode != 1 || found.isDirectory
        else {
            isBad = true
            return
        }
        item = found
    }

    func close() {
        guard let inode = number, inode != 0 else { return }
        number = nil
        if isBad {
            say("its attributes are malformed: they are made anew from what else there is of it", inode, isLoss: true)
            removals.append(Key(InodeNumber(inode), .inode))
            item = nil
        }
        if let item { closeKnown(inode, item) } else { closeUnknown(inode) }
    }

    func closeKnown(_ inode: UInt64, _ item: InodeItem) {
        if item.kind == .symlink {
            guard pieces.isSound, UInt64(pieces.bytes) == item.length, item.length > 0, item.length <= UInt64(Limit.symlinkTarget) else {
                say("a symbolic link whose target is lost (\(pieces.bytes) of \(item.length) bytes are there) is removed", inode, isLoss: true)
                doomed += [inode] + xattrPieces
                for number in xattrPieces { values[number] = nil }
                return
            }
        } else if pieces.count > 0 {
            say("\(pieces.bytes) bytes that belong to nothing are removed", inode, isLoss: true)
            dropped.append((inode, .piece))
        }
        nodes.append(Node(
            number: inode, kind: item.kind.rawValue, links: item.links, length: item.length, parent: item.parent.value,
            parentEntry: item.parentEntry, entries: entries))
        if item.isRegular {
            if item.blocks != blocks {
                let blocks = blocks
                if blocks < item.blocks { sayLostData(inode, item.blocks - blocks) }
                update(inode) { $0.blocks = blocks }
            }
            let end = (item.length + UInt64(blockSize) - 1) >> UInt64(blockShift)
            if dataEnd > end && !orphans.contains(inode) {
                say("data behind its end, \(item.length) bytes, is cut off", inode, isLoss: true)
                newOrphans.append(inode)
            }
            dataBlocks += blocks
        } else if item.blocks != 0 {
            update(inode) { $0.blocks = 0 }
        }
        let xattrs = UInt32(clamping: xattrs)
        if item.xattrs != xattrs {
            if xattrs < item.xattrs { say("\(item.xattrs - xattrs) of its \(item.xattrs) extended attributes are lost", inode, isLoss: true) }
            update(inode) { $0.xattrs = xattrs }
        }
    }

    func sayLostData(_ inode: UInt64, _ count: UInt64) {
        let low = Key(InodeNumber(inode), .extent)
        var places: [String] = []
        for range in lost where range.lower.high <= low.high && (range.upper == nil || range.upper! > low) {
            let from = range.lower.high == low.high ? range.lower.low : 0
            let to = range.upper.flatMap { $0.high == low.high ? $0.low << UInt64(blockShift) : nil }
            places.append(to.map { "offset \(from << UInt64(blockShift)) to \($0 - 1)" } ?? "offset \(from << UInt64(blockShift)) on")
        }
        let place = places.isEmpty ? "" : ", somewhere from " + places.joined(separator: ", ")
        say("\(count) blocks of its data are lost\(place): they read as zeros", inode, isLoss: true)
    }

    func closeUnknown(_ inode: UInt64) {
        if entries == 0 && extents == 0 && xattrs == 0 {
            if pieces.count > 0 { loose[inode] = pieces }
            highest = max(highest, inode)
            return
        }
        highest = max(highest, inode)
        let kind: FileKind = entries > 0 ? .directory : .regular
        if kind == .directory && extents > 0 { dropped.append((inode, .extent)) }
        if pieces.count > 0 { dropped.append((inode, .piece)) }
        revive(inode, kind, length: kind == .directory ? entries : extentEnd << UInt64(blockShift), blocks: kind == .directory ? 0 : blocks)
        nodes[nodes.count - 1].entries = entries
        if kind == .regular { dataBlocks += blocks }
    }

    /// An inode whose attributes are lost (M3).
    func revive(_ inode: UInt64, _ kind: FileKind, length: UInt64, blocks: UInt64) {
        let unit = kind == .directory ? "names" : "bytes"
        say("its attributes are lost: it comes back as a \(kind) of owner root and \(length) \(unit)", inode, isLoss: true)
        var node = Node(number: inode, kind: kind.rawValue, links: 0, length: 0, parent: 0, parentEntry: 0)
        node.isNew = true
        nodes.append(node)
        let xattrs = UInt32(clamping: xattrs)
        update(inode) {
            $0.length = length
            $0.blocks = blocks
            $0.xattrs = xattrs
        }
    }

    func update(_ inode: UInt64, _ change: @escaping (inout InodeItem) -> Void) { updates[inode, default: []].append(change) }

    /// Whether a name lies where it belongs and is not there twice, in the order of keys.
    func belongs(_ offset: UInt64, _ name: RawBytes) -> Bool {
        let base = NameHash.offset(name, seed: superblock.seed)
        if base != hashBase {
            hashBase = base
            hashNames = []
        }
        guard offset >= base, offset - base < NameHash.ordinals else { return false }
        let bytes = name.array
        guard !hashNames.contains(bytes) else { return false }
        hashNames.append(bytes)
        return true
    }

    func takeXattr(_ inode: UInt64, _ key: Key, _ value: RawBytes) {
        guard let xattr = XattrItem(value), value.u8(at: 13) == 0, value.u16(at: 14) == 0, value.u64(at: 16) == 0,
            belongs(key.low, xattr.name), (xattr.pieces == .none) == (xattr.valueLength <= XattrItem.inlineValue),
            xattr.pieces == .none || values[xattr.pieces.value] == nil
        else {
            say("a malformed extended attribute is removed", inode, isLoss: true)
            removals.append(key)
            return
        }
        if xattr.pieces == .none, !StoredAccessControlList.isValid(xattr.name, xattr.inline, isDirectory: item?.isDirectory ?? true) {
            say("the malformed access control list '\(xattr.name.text)' is removed: its mode alone counts", inode, isLoss: true)
            removals.append(key)
            return
        }
        xattrs += 1
        if xattr.pieces != .none {
            highest = max(highest, xattr.pieces.value)
            xattrPieces.append(xattr.pieces.value)
            values[xattr.pieces.value] = (xattr.valueLength, inode, key, xattr.name.text)
        }
    }

    func takeEntry(_ inode: UInt64, _ key: Key, _ value: RawBytes) {
        if entries == 0 { resetHash() }
        guard let entry = EntryItem(value), value.slice(10, 6).isZero, entry.inode.value < Limit.inode, Self.isPossible(entry.name),
            belongs(key.low, entry.name)
        else {
            say("a malformed or misplaced name in it is removed", inode, isLoss: true)
            removals.append(key)
            return
        }
        entries += 1
        names.append(Name(directory: inode, offset: key.low, inode: entry.inode.value, kind: entry.kind))
    }

    static func isPossible(_ name: RawBytes) -> Bool {
        if name.u8(at: 0) == 0x2e, name.count == 1 || name.count == 2 && name.u8(at: 1) == 0x2e { return false }
        return !(0..<name.count).contains { name.u8(at: $0) == 0 || name.u8(at: $0) == 0x2f }
    }

    func takeExtent(_ inode: UInt64, _ key: Key, _ value: RawBytes) {
        func remove(_ why: String) {
            say("\(why) at offset \(key.low << UInt64(blockShift)) is removed: what it held reads as zeros", inode, isLoss: true)
            removals.append(key)
        }
        guard (try? ExtentItem.validate(value, key: key, blockCount: superblock.blockCount)) != nil else { return remove("a malformed extent") }
        let extent = ExtentItem(value)
        let count = UInt64(extent.blocks)
        guard extent.start.value >= Superblock.reservedBlocks, extent.start.value + count < superblock.blockCount else {
            return remove("an extent outside of the image")
        }
        guard key.low >= extentEnd else { return remove("an extent that overlaps the one before it") }
        guard structure.firstPresent(extent.start.value, count) == nil else {
            return remove("an extent whose blocks are the filesystem's own")
        }
        if extent.isUnwritten {
            // What is set aside is never shared, and reads as zeros anyway.
            guard aside.firstPresent(extent.start.value, count) == nil else { return remove("a run set aside for two files") }
            aside.insert(extent.start.value, count)
        }
        if extent.birth > sequence {
            say("an extent was to be born later than its checkpoint", inode, isLoss: false)
            births.append(key)
        }
        extents += 1
        blocks += count
        extentEnd = key.low + count
        if !extent.isUnwritten { dataEnd = key.low + count }
    }

    // MARK: 2 values

    func settleValues() {
        for (owner, value) in values.sorted(by: { $0.key < $1.key }) {
            if let run = loose.removeValue(forKey: owner) {
                if run.isSound && run.bytes == value.length {
                    guard isValidList(owner, value) else {
                        say("the malformed access control list '\(value.name)' is removed: its mode alone counts", value.inode, isLoss: true)
                        lose(value)
                        doomed.append(owner)
                        continue
                    }
                    continue
                }
                doomed.append(owner)
            }
            say(
                "the value of extended attribute '\(value.name)', \(value.length) bytes, is lost: the attribute is removed", value.inode,
                isLoss: true)
            lose(value)
        }
        values = [:]
        guard !loose.isEmpty else { return }
        // A symbolic link whose attributes are lost is told from a value without an owner by a name that leads to it.
        let links = Set(names.lazy.filter { $0.kind == FileKind.symlink.rawValue }.map(\.inode))
        var revived = false
        for (owner, run) in loose.sorted(by: { $0.key < $1.key }) {
            if links.contains(owner), run.isSound, run.bytes > 0, run.bytes <= Limit.symlinkTarget {
                xattrs = 0
                revive(owner, .symlink, length: UInt64(run.bytes), blocks: 0)
                revived = true
            } else {
                say("\(run.bytes) bytes of a value that no attribute names are removed", isLoss: true)
                doomed.append(owner)
            }
        }
        if revived { nodes.sort { $0.number < $1.number } }
    }

    func lose(_ value: (length: Int, inode: UInt64, key: Key, name: String)) {
        removals.append(value.key)
        update(value.inode) { $0.xattrs -= min(1, $0.xattrs) }
    }

    func isValidList(_ owner: UInt64, _ value: (length: Int, inode: UInt64, key: Key, name: String)) -> Bool {
        guard StoredAccessControlList.names.contains(value.name) else { return true }
        var bytes: [UInt8] = []
        var index: UInt64 = 0
        while let piece = try? tree.find(Key(InodeNumber(owner), .piece, index)) {
            bytes += piece.array
            index += 1
        }
        let isDirectory = self.index(of: value.inode).map { nodes[$0].isDirectory } ?? true
        return Array(value.name.utf8).withRawBytes { name in
            bytes.withRawBytes { StoredAccessControlList.isValid(name, $0, isDirectory: isDirectory) }
        }
    }
}
