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
    let lost: [LostRange]
    /// Blocks that are no file's: nodes, chunks.
    let structure: BlockSet
    /// Blocks set aside.
    var aside: BlockSet

    var nodes = ContiguousArray<Node>()
    var names = ContiguousArray<Name>()
    var orphans = Set<UInt64>()
    var lines: [(text: String, inode: UInt64, isLoss: Bool)] = []
    var dataBlocks: UInt64 = 0
    var nextInode: UInt64
    let time: Timestamp
    let sequence: SequenceNumber

    // Edits (M4).
    var removals: [Key] = []
    var dropped: [(inode: UInt64, type: ItemType)] = []
    var doomed: [UInt64] = []
    var updates: [UInt64: [(inout InodeItem) -> Void]] = [:]
    var kinds: [(key: Key, kind: UInt8)] = []
    var births: [Key] = []
    var newOrphans: [UInt64] = []
    var goneOrphans: [UInt64] = []
    var adopted: [UInt64] = []

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

    // MARK: what the pass over the items has in hand (MendItems)

    struct PieceRun {
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
    var number: UInt64?
    var item: InodeItem?
    var entries: UInt64 = 0
    var xattrs: UInt64 = 0
    var extents: UInt64 = 0
    var blocks: UInt64 = 0
    var extentEnd: UInt64 = 0
    var dataEnd: UInt64 = 0
    var pieces = PieceRun()
    var isBad = false
    var hashBase: UInt64 = 0
    var hashNames: [[UInt8]] = []
    var xattrPieces: [UInt64] = []

    var values: [UInt64: (length: Int, inode: UInt64, key: Key, name: String)] = [:]
    var loose: [UInt64: PieceRun] = [:]
    var highest: UInt64 = 1

    // MARK: saying

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
