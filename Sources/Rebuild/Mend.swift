// Mend: a tree whose nodes can all be read, but whose items contradict each other, or are no longer all there.
//
//   1 items    one inode after the other: what is malformed goes; counts are taken
//   2 values   large attribute values and symlink targets against who names them
//   3 names    entries against inodes; a directory keeps one name; loops are cut
//   4 adopt    what no name leads to gets one in lost+found, or is an orphan again
//   5 counts   links, lengths of directories, hints, orphan items
//   6 write    all of it into the tree, copy-on-write
//
// (M1) What is taken away is said, by path where there is one: nothing goes silently.
// (M2) Data is never made up. A part of a file whose extents are lost is a hole, and said to be lost.
// (M3) An inode whose attributes are lost comes back as owned by root and open to nobody else.
// (M4) Nothing but names in lost+found is changed before step 6, and all of it in memory only.
// (M5) Memory: 72 bytes an inode, 24 bytes a name.

import Check
import Device
import Format
import Memory
import Tree

/// One thing that a repair does, for people.
public struct RepairLine: Sendable {
    public let text: String
    /// Where, from the root, as far as known.
    public let path: [UInt8]?
    /// Whether something is given up by it.
    public let isLoss: Bool

    init(_ text: String, path: [UInt8]? = nil, isLoss: Bool) {
        self.text = text
        self.path = path
        self.isLoss = isLoss
    }
}

final class Mend {
    struct Node {
        let number: UInt64
        var kind: UInt8
        /// As stored; nil fields do not exist: then `isNew`.
        var links: UInt32
        var length: UInt64
        var parent: UInt64
        var parentEntry: UInt64
        var isNew = false
        // As found.
        var entries: UInt64 = 0
        var names: UInt32 = 0
        var children: UInt32 = 0
        var hintMet = false
        var isReached = false
        var isVisiting = false
        /// A name of it, for the hint.
        var nameDirectory: UInt64 = 0
        var nameOffset: UInt64 = 0

        var isDirectory: Bool { kind == FileKind.directory.rawValue }
    }
    struct Name {
        let directory: UInt64
        let offset: UInt64
        let inode: UInt64
        var kind: UInt8
        var isGone = false
    }

    let tree: Tree
    let superblock: Superblock
    let isCancelled: () -> Bool
    private let lost: [LostRange]
    /// Blocks that are no file's: nodes, chunks.
    private let structure: BlockSet
    /// Blocks set aside.
    private var aside: BlockSet

    var nodes = ContiguousArray<Node>()
    var names = ContiguousArray<Name>()
    private(set) var orphans = Set<UInt64>()
    private(set) var lines: [(text: String, inode: UInt64, isLoss: Bool)] = []
    private(set) var dataBlocks: UInt64 = 0
    private(set) var nextInode: UInt64
    private let time: Timestamp
    private let sequence: SequenceNumber

    // Edits (M4).
    private var removals: [Key] = []
    private var dropped: [(inode: UInt64, type: ItemType)] = []
    private var doomed: [UInt64] = []
    var updates: [UInt64: [(inout InodeItem) -> Void]] = [:]
    private var kinds: [(key: Key, kind: UInt8)] = []
    private var births: [Key] = []
    private var newOrphans: [UInt64] = []
    private var goneOrphans: [UInt64] = []
    private var adopted: [UInt64] = []

    init(_ tree: Tree, _ superblock: Superblock, structure: BlockSet, lost: [LostRange], isCancelled: @escaping () -> Bool) {
        self.tree = tree
        self.superblock = superblock
        self.structure = structure
        self.lost = lost
        aside = BlockSet(blockCount: superblock.blockCount)
        self.isCancelled = isCancelled
        nextInode = superblock.checkpoint.nextInode
        time = superblock.checkpoint.time
        sequence = superblock.checkpoint.sequence
    }

    func run() throws {
        try takeItems()
        settleValues()
        try takeNames()
        try adopt()
        count()
        try write()
    }

    func say(_ text: String, _ inode: UInt64 = 0, isLoss: Bool) {
        // A lost directory of a million names is one story, not a million; what is lost is not pushed out by what is not.
        let kind = isLoss ? 1 : 0
        said[kind] += 1
        if said[kind] <= Self.linesOfAKind { lines.append((text, inode, isLoss)) }
    }
    private static let linesOfAKind: UInt64 = 10_000
    /// Lines that are no loss, and those that are, listed or not.
    private var said: [UInt64] = [0, 0]

    func index(of number: UInt64) -> Int? {
        var low = 0
        var high = nodes.count
        while low < high {
            let middle = (low + high) / 2
            if nodes[middle].number < number { low = middle + 1 } else { high = middle }
        }
        return low < nodes.count && nodes[low].number == number ? low : nil
    }

    // MARK: 1 items

    private struct PieceRun {
        var count: UInt64 = 0
        var bytes = 0
        var isSound = true
        var last = Piece.size
        mutating func take(_ index: UInt64, _ length: Int) {
            if index != count || length == 0 || length > Piece.size || last != Piece.size { isSound = false }
            count += 1
            bytes += length
            last = length
        }
    }

    // The inode in hand.
    private var number: UInt64?
    private var item: InodeItem?
    private var entries: UInt64 = 0
    private var xattrs: UInt64 = 0
    private var extents: UInt64 = 0
    private var blocks: UInt64 = 0
    private var extentEnd: UInt64 = 0
    private var dataEnd: UInt64 = 0
    private var pieces = PieceRun()
    private var isBad = false
    private var hashBase: UInt64 = 0
    private var hashNames: [[UInt8]] = []
    private var xattrPieces: [UInt64] = []

    private var values: [UInt64: (length: Int, inode: UInt64, key: Key, name: String)] = [:]
    private var loose: [UInt64: PieceRun] = [:]
    private var highest: UInt64 = 1

    private func takeItems() throws {
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

    private func take(_ key: Key, _ value: RawBytes) {
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

    private func begin(_ inode: UInt64) {
        number = inode
        item = nil
        (entries, xattrs, extents, blocks, extentEnd, dataEnd) = (0, 0, 0, 0, 0, 0)
        pieces = PieceRun()
        isBad = false
        resetHash()
        xattrPieces = []
    }

    private func resetHash() {
        hashBase = 0
        hashNames = []
    }

    private func takeInode(_ inode: UInt64, _ value: RawBytes) {
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

    private func close() {
        guard let inode = number, inode != 0 else { return }
        number = nil
        if isBad {
            say("its attributes are malformed: they are made anew from what else there is of it", inode, isLoss: true)
            removals.append(Key(InodeNumber(inode), .inode))
            item = nil
        }
        if let item { closeKnown(inode, item) } else { closeUnknown(inode) }
    }

    private func closeKnown(_ inode: UInt64, _ item: InodeItem) {
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

    private func sayLostData(_ inode: UInt64, _ count: UInt64) {
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

    private func closeUnknown(_ inode: UInt64) {
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
    private func revive(_ inode: UInt64, _ kind: FileKind, length: UInt64, blocks: UInt64) {
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
    private func belongs(_ offset: UInt64, _ name: RawBytes) -> Bool {
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

    private func takeXattr(_ inode: UInt64, _ key: Key, _ value: RawBytes) {
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

    private func takeEntry(_ inode: UInt64, _ key: Key, _ value: RawBytes) {
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

    private static func isPossible(_ name: RawBytes) -> Bool {
        if name.u8(at: 0) == 0x2e, name.count == 1 || name.count == 2 && name.u8(at: 1) == 0x2e { return false }
        return !(0..<name.count).contains { name.u8(at: $0) == 0 || name.u8(at: $0) == 0x2f }
    }

    private func takeExtent(_ inode: UInt64, _ key: Key, _ value: RawBytes) {
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

    private func settleValues() {
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

    private func lose(_ value: (length: Int, inode: UInt64, key: Key, name: String)) {
        removals.append(value.key)
        update(value.inode) { $0.xattrs -= min(1, $0.xattrs) }
    }

    private func isValidList(_ owner: UInt64, _ value: (length: Int, inode: UInt64, key: Key, name: String)) -> Bool {
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

    // MARK: 3 names

    private func takeNames() throws {
        var kept: [UInt64: Int] = [:]
        for at in names.indices {
            let name = names[at]
            guard let target = index(of: name.inode) else {
                drop(at, "leads to an inode that is lost", isLoss: true)
                continue
            }
            let node = nodes[target]
            let isHint = node.parent == name.directory && node.parentEntry == name.offset
            if node.isDirectory {
                if name.inode == 1 {
                    drop(at, "leads to the root", isLoss: true)
                    continue
                }
                if let other = kept[name.inode] {
                    // A directory has one name: the one that it notes itself.
                    if isHint { drop(other, "is a second one of a directory", isLoss: true) } else {
                        drop(at, "is a second one of a directory", isLoss: true)
                        continue
                    }
                }
                kept[name.inode] = at
            }
            if node.kind != name.kind {
                kinds.append((Key(InodeNumber(name.directory), .entry, name.offset), node.kind))
                say("the type noted with one of its names is put right", name.inode, isLoss: false)
            }
        }
        for name in names where !name.isGone { meet(name) }
        try cutLoops()
    }

    private func drop(_ at: Int, _ why: String, isLoss: Bool) {
        names[at].isGone = true
        let name = names[at]
        let key = Key(InodeNumber(name.directory), .entry, name.offset)
        let text = (try? tree.find(key)).flatMap { $0.flatMap { EntryItem($0)?.name.text } } ?? "?"
        say("the name '\(text)' in it \(why) (inode \(name.inode)), and is removed", name.directory, isLoss: isLoss)
        removals.append(key)
        if let directory = index(of: name.directory) { nodes[directory].entries -= min(1, nodes[directory].entries) }
    }

    private func meet(_ name: Name) {
        guard let target = index(of: name.inode) else { return }
        nodes[target].names += 1
        if nodes[target].parent == name.directory && nodes[target].parentEntry == name.offset { nodes[target].hintMet = true }
        nodes[target].nameDirectory = name.directory
        nodes[target].nameOffset = name.offset
    }

    /// Names are in the order of their keys.
    private func place(of offset: UInt64, in directory: UInt64) -> Int? {
        var low = 0
        var high = names.count
        while low < high {
            let middle = (low + high) / 2
            if (names[middle].directory, names[middle].offset) < (directory, offset) { low = middle + 1 } else { high = middle }
        }
        return low < names.count && names[low].directory == directory && names[low].offset == offset ? low : nil
    }

    /// Directories whose way up runs in a circle lose the name that closes it.
    private func cutLoops() throws {
        guard let root = index(of: 1) else { return }
        nodes[root].isReached = true
        for start in nodes.indices where nodes[start].isDirectory && nodes[start].names > 0 {
            if isCancelled() { throw Cancelled() }
            var way: [Int] = []
            var at = start
            while !nodes[at].isReached {
                if nodes[at].isVisiting {
                    let directory = nodes[at].nameDirectory
                    let offset = nodes[at].nameOffset
                    if let name = place(of: offset, in: directory) { drop(name, "closes a circle of directories", isLoss: true) }
                    nodes[at].names = 0
                    break
                }
                nodes[at].isVisiting = true
                way.append(at)
                guard nodes[at].names > 0, let parent = index(of: nodes[at].nameDirectory) else { break }
                at = parent
            }
            for index in way {
                nodes[index].isReached = true
                nodes[index].isVisiting = false
            }
        }
    }

    // MARK: 4 adopting

    private func adopt() throws {
        for at in nodes.indices where nodes[at].names == 0 && nodes[at].number != 1 {
            let node = nodes[at]
            if node.links == 0 && !node.isNew && orphans.contains(node.number) && (!node.isDirectory || node.entries == 0) { continue }
            if node.links == 0 && !node.isNew && !node.isDirectory {
                say("a file that was deleted while open is noted as such again", node.number, isLoss: false)
                newOrphans.append(node.number)
                continue
            }
            adopted.append(node.number)
        }
        guard !adopted.isEmpty else { return }
        let directory = try lostAndFound()
        for number in adopted {
            let name = Array("#\(number)".utf8)
            let offset = try freeOffset(directory, name)
            let at = index(of: number)!
            EntryItem.store(
                try put(Key(InodeNumber(directory), .entry, offset), EntryItem.size(nameLength: name.count)), inode: InodeNumber(number),
                kind: nodes[at].kind, name: name)
            nodes[at].names = 1
            nodes[at].nameDirectory = directory
            nodes[at].nameOffset = offset
            nodes[at].hintMet = false
            nodes[index(of: directory)!].entries += 1
            say("no name led to it", number, isLoss: false)
        }
    }

    /// The directory `lost+found` in the root; made if need be.
    private func lostAndFound() throws -> UInt64 {
        let name = Array("lost+found".utf8)
        for entry in names where entry.directory == 1 && !entry.isGone {
            if nameInRoot(entry.offset) == name,
                let at = index(of: entry.inode), nodes[at].isDirectory, nodes[at].names > 0
            { return entry.inode }
        }
        var wanted = name
        nextInode = max(nextInode, highest + 1)
        let number = nextInode
        nextInode += 1
        if names.contains(where: { $0.directory == 1 && !$0.isGone && nameInRoot($0.offset) == name }) { wanted = Array("lost+found.\(number)".utf8) }
        let offset = try freeOffset(1, wanted)
        EntryItem.store(
            try put(Key(.root, .entry, offset), EntryItem.size(nameLength: wanted.count)), inode: InodeNumber(number),
            kind: FileKind.directory.rawValue, name: wanted)
        var node = Node(number: number, kind: FileKind.directory.rawValue, links: 0, length: 0, parent: 1, parentEntry: offset)
        node.isNew = true
        node.names = 1
        node.hintMet = true
        node.nameDirectory = 1
        node.nameOffset = offset
        nodes.append(node)
        nodes.sort { $0.number < $1.number }
        nodes[index(of: 1)!].entries += 1
        return number
    }

    private func nameInRoot(_ offset: UInt64) -> [UInt8]? {
        guard let value = try? tree.find(Key(.root, .entry, offset)) else { return nil }
        return EntryItem(value)?.name.array
    }

    private func freeOffset(_ directory: UInt64, _ name: [UInt8]) throws -> UInt64 {
        let base = name.withRawBytes { NameHash.offset($0, seed: superblock.seed) }
        for offset in base..<base + NameHash.ordinals where try tree.find(Key(InodeNumber(directory), .entry, offset)) == nil {
            return offset
        }
        throw RepairFailure(.damaged, "no place for a name in lost+found")
    }

    private func put(_ key: Key, _ count: Int) throws -> RawBytes { try tree.put(key, count: count) }

    // MARK: 5 counts

    private func count() {
        for at in nodes.indices { nodes[at].children = 0 }
        for at in nodes.indices where nodes[at].isDirectory && nodes[at].names > 0 && nodes[at].number != 1 {
            if let parent = index(of: nodes[at].nameDirectory) { nodes[parent].children += 1 }
        }
        for at in nodes.indices { count(nodes[at]) }
        for number in orphans {
            guard let at = index(of: number) else {
                goneOrphans.append(number)
                continue
            }
            // Of a file that has names it may say that its end is to be trimmed; of others it says nothing.
            if nodes[at].names > 0 && nodes[at].kind != FileKind.regular.rawValue { goneOrphans.append(number) }
        }
        for number in goneOrphans { say("it is no longer noted as a file without a name", number, isLoss: false) }
        nextInode = max(nextInode, highest + 1)
    }

    private func count(_ node: Node) {
        let isRoot = node.number == 1
        let links = node.isDirectory ? (isRoot || node.names > 0 ? node.children + 2 : 0) : node.names
        if node.links != links {
            if !node.isNew { say("its link count is \(links), not \(node.links)", node.number, isLoss: false) }
            update(node.number) { $0.links = links }
        }
        if node.isDirectory && node.length != node.entries {
            if !node.isNew { say("it has \(node.entries) names, not \(node.length)", node.number, isLoss: false) }
            update(node.number) { $0.length = node.entries }
        }
        let parent: (UInt64, UInt64) = isRoot ? (1, node.parentEntry) : node.names > 0 ? (node.nameDirectory, node.nameOffset) : (0, 0)
        let needsNone = !node.isDirectory && node.parent == 0 && !node.isNew
        let isRight = isRoot ? node.parent == 1 : node.names > 0 ? node.hintMet || needsNone : node.parent == 0
        if !isRight && !node.isNew { say("the place that it notes of its name is put right", node.number, isLoss: false) }
        if !isRight || node.isNew {
            update(node.number) {
                $0.parent = InodeNumber(parent.0)
                $0.parentEntry = parent.1
            }
        }
    }

    // MARK: 6 writing

    private func write() throws {
        for key in removals { try tree.remove(key) }
        for (inode, type) in dropped {
            while let found = try tree.next(Key(InodeNumber(inode), type)), found.key.isOf(InodeNumber(inode), type) { try tree.remove(found.key) }
        }
        for inode in doomed {
            while let found = try tree.next(Key(InodeNumber(inode), .inode)), found.key.inode.value == inode { try tree.remove(found.key) }
        }
        for (key, kind) in kinds { try tree.update(key)?.set(u8: kind, at: 8) }
        for key in births { try tree.update(key)?.set(u64: sequence.value, at: 8) }
        for (number, changes) in updates.sorted(by: { $0.key < $1.key }) {
            guard let at = index(of: number) else { continue }
            let key = Key(InodeNumber(number), .inode)
            var item: InodeItem
            if nodes[at].isNew {
                let isSymlink = nodes[at].kind == FileKind.symlink.rawValue
                let permissions: UInt32 = number == 1 ? 0o755 : nodes[at].isDirectory ? 0o700 : isSymlink ? 0o777 : 0o600
                item = InodeItem(mode: UInt32(nodes[at].kind) << 12 | permissions, uid: 0, gid: 0, links: 0, time: time)
            } else {
                guard let value = try tree.find(key) else { continue }
                item = InodeItem(value)
            }
            for change in changes { change(&item) }
            item.store(try put(key, InodeItem.size))
        }
        for number in newOrphans where orphans.insert(number).inserted { _ = try put(Key(.none, .orphan, number), 0) }
        for number in goneOrphans { try tree.remove(Key(.none, .orphan, number)) }
    }

    /// The checkpoint's numbers as they are now.
    func counted(_ item: CheckpointItem) -> CheckpointItem {
        var item = item
        func tell(_ what: String, _ old: UInt64, _ new: UInt64) {
            if old != new { say("\(what): \(new), not \(old)", isLoss: false) }
        }
        tell("inodes", item.inodes, UInt64(nodes.count))
        tell("data blocks", item.dataBlocks, dataBlocks)
        tell("the next inode number", item.nextInode, nextInode)
        item.inodes = UInt64(nodes.count)
        item.dataBlocks = dataBlocks
        item.nextInode = nextInode
        return item
    }

    /// What was done, with paths as they are now.
    func report() -> [RepairLine] {
        let listed = lines.map { line in
            let place = line.inode == 0 ? "" : "inode \(line.inode): "
            return RepairLine(place + line.text, path: line.inode == 0 ? nil : path(of: line.inode), isLoss: line.isLoss)
        }
        let rest = [false, true].compactMap { isLoss -> RepairLine? in
            let count = said[isLoss ? 1 : 0]
            guard count > Self.linesOfAKind else { return nil }
            return RepairLine("\(count - Self.linesOfAKind) more of the kinds above, which are not listed", isLoss: isLoss)
        }
        return listed + rest
    }

    private func path(of number: UInt64) -> [UInt8]? {
        if number == 1 { return [0x2f] }
        var parts: [[UInt8]] = []
        var at = number
        while at != 1 {
            guard parts.count < 256, let inode = try? tree.find(Key(InodeNumber(at), .inode)), inode.count == InodeItem.size else { return nil }
            let item = InodeItem(inode)
            guard let value = try? tree.find(Key(item.parent, .entry, item.parentEntry)), let entry = EntryItem(value), entry.inode.value == at
            else { return nil }
            parts.append(entry.name.array)
            at = item.parent.value
        }
        return Array(parts.reversed().map { [0x2f] + $0 }.joined())
    }
}

extension EntryItem {
    static func store(_ bytes: RawBytes, inode: InodeNumber, kind: UInt8, name: [UInt8]) {
        name.withRawBytes { store(bytes, inode: inode, kind: kind, name: $0) }
    }
}
