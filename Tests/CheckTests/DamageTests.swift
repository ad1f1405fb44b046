// Goal: each kind of damage is found, and reported as what it is.
// Method: one small image with something of everything, in which each case plants one contradiction with all checksums right.

import Check
import Device
import Format
import Foundation
import Memory
import TestSupport
import Testing
import Volume

/// Files, directories, links, attributes, several epochs, thirty checkpoints with history between them.
let baseImage: SimulatedDisk = {
    do {
        let disk = try makeDisk()
        var volume = try openVolume(disk)
        try volume.makeDirectory("a")
        try volume.makeDirectory("a/b")
        try volume.make("gone")
        for index in 0..<60 {
            try volume.make("f\(index)")
            try volume.write("f\(index)", pattern(5000, UInt64(index)))
        }
        try volume.unlink("gone")
        try volume.make("link", mode: 0o120777, target: String(repeating: "t", count: 1500))
        try volume.link("f0", "a/hard")
        for index in 0..<30 {
            try volume.write("f\(index)", pattern(3000, 100 + UInt64(index)))
            try volume.checkpointNow()
        }
        try volume.commit()
        let crashed = disk.copy()
        volume.abandon()
        volume = try openVolume(crashed)
        for (name, count) in [("user.small", 10), ("user.large", 3000)] {
            let inode = try volume.find("f1").inode
            try Array(name.utf8).withRawBytes { (name) throws(OperationError) in
                try pattern(count, 5).withRawBytes { (value) throws(OperationError) in
                    try volume.setXattr(inode, name, value, create: false, replace: false, testCaller)
                }
            }
        }
        try volume.checkpointNow()
        for name in ["x", "y"] {
            try volume.make(name)
            try volume.write(name, pattern(8192, 7))
            try volume.write(name, pattern(5000, 8), at: 40960)
        }
        try volume.commit()
        _ = try volume.make("last")
        try volume.close()
        return crashed
    } catch { fatalError("\(error)") }
}()

struct Planting: Sendable, CustomTestStringConvertible {
    let code: FindingCode
    /// What else cannot but be found.
    let others: Set<FindingCode>
    /// More may follow from it.
    let open: Bool
    let plant: @Sendable (Editor) throws -> Void
    var testDescription: String { code.label }

    init(_ code: FindingCode, _ others: Set<FindingCode> = [], open: Bool = false, _ plant: @escaping @Sendable (Editor) throws -> Void) {
        self.code = code
        self.others = others
        self.open = open
        self.plant = plant
    }
}

let plantings: [Planting] = [
    Planting(.slotDamaged) { $0.spoil(Superblock.slots[1 - $0.slot], at: 300) },
    Planting(.identityDamaged) { $0.spoil(BlockNumber($0.superblock.blockCount - 1)) },
    Planting(.identityDiffers) {
        let other = Superblock(
            id: FilesystemID(high: 1, low: 2), label: "", blockCount: $0.superblock.blockCount, chunkBlocks: 256, seed: HashSeed(k0: 0, k1: 0),
            nonce: 1, created: $0.superblock.created, checkpoint: $0.superblock.checkpoint, spaceRoot: $0.superblock.spaceRoot)
        try Repair.identity(of: other, $0.disk)
    },
    Planting(.slotsDisagree) {
        let newest = $0.superblock
        $0.superblock.seed = HashSeed(k0: 9, k1: 9)
        $0.superblock.generation -= 1
        $0.saveSuperblock(slot: 1 - $0.slot)
        $0.superblock = newest
    },
    Planting(.markedDamaged) {
        $0.superblock.flags |= Superblock.flagDamaged
        $0.saveSuperblock()
    },
    Planting(.superblockContradiction) {
        $0.superblock.checkpoint.nextInode += 1
        $0.saveSuperblock()
    },
    Planting(.spaceNodeDamaged, open: true) { $0.spoil($0.superblock.spaceRoot.address) },
    Planting(.spaceNodeOrder, open: true) { editor in
        // The second child's separator rises above its first keys.
        precondition(editor.superblock.spaceLevel == 1)
        let items = editor.items(editor.superblock.spaceRoot, 0)
        var moved = items
        moved[1].key.low += 1
        editor.superblock.spaceRoot = editor.seal(editor.superblock.spaceRoot, 1, .space, moved)
        editor.saveSuperblock()
    },
    Planting(.spaceItemMalformed) { $0.editSpace(Key(high: 9, low: 9)) { $0.append((Key(high: 9, low: 9), [1, 2, 3])) } },
    Planting(.regionMissing) { editor in
        editor.editSpace(Key(.region, 99)) { items in
            let at = items.firstIndex { $0.key.high > 1 } ?? items.count
            items.insert((Key(.region, 99), [UInt8](repeating: 0, count: RegionItem.size)), at: at)
        }
    },
    Planting(.bitmapDamaged) { editor in
        editor.spoil(editor.space.first { $0.key == Key(.region, 0) }!.value.withRawBytes { RegionItem($0)!.bitmap })
    },
    Planting(.regionFreeCount) { $0.editSpaceItem(Key(.region, 0)) { $0.set(u32: $0.u32(at: 12) + 1, at: 12) } },
    Planting(.checkpointItem) { $0.editCheckpoint($0.checkpoints[5].sequence) { $0.time = Timestamp(nanoseconds: 5) } },
    Planting(.chunkItem) { editor in
        editor.editSpace(Key(.chunk, 1 << 40)) { items in
            var value = [UInt8](repeating: 0, count: ChunkItem.size)
            value.withRawBytes { ChunkItem(address: BlockNumber(333), first: SequenceNumber(1), epoch: 1).store($0) }
            items.append((Key(.chunk, 1 << 40), value))
        }
    },
    Planting(.pendingList) {
        $0.superblock.pendingCRC ^= 1
        $0.saveSuperblock()
    },
    Planting(.historyCount) {
        $0.superblock.historyBlocks += 1
        $0.saveSuperblock()
    },
    Planting(.chunkHeader) { $0.spoil($0.chunks[0].address, at: 100) },
    Planting(.frameUnreadable) { $0.spoil($0.chunks[0].address + 2, at: 100) },
    Planting(.recordMalformed) { $0.editLastFrame { $0.set(u16: 999, at: FrameHeader.size + 4) } },
    Planting(.checkpointPosition) { $0.editCheckpoint($0.checkpoints[5].sequence) { $0.journal.block += 1 } },
    Planting(.journalContinues) { $0.appendFrame() },
    Planting(.nodeDamaged, open: true) { editor in
        let root = editor.read(editor.superblock.checkpoint.root.address)
        precondition(editor.superblock.checkpoint.rootLevel == 1)
        editor.spoil(ChildReference(NodeLayout.value(root.bytes, NodeLayout.count(root.bytes) - 1)).address)
    },
    Planting(.nodeOrder, open: true) { editor in
        let item = editor.superblock.checkpoint
        var items = editor.items(item.root, 0)
        items[1].key.low += 1 << 40
        let root = editor.seal(item.root, 1, .main, items)
        editor.editCheckpoint(item.sequence) { $0.root = root }
    },
    Planting(.itemMisplaced) { $0.insert(Key(high: $0.entry("x").inode.value << 8 | 9, low: 0), [1]) },
    Planting(.inodeMalformed) { $0.inode($0.entry("x").inode) { $0.flags = 1 } },
    Planting(.extentMalformed, [.inodeBlocks]) { $0.editItem($0.extents($0.entry("x").inode)[0].key) { $0.set(u8: 7, at: 28) } },
    Planting(.extentsOverlap) { editor in
        let key = editor.extents(editor.entry("x").inode)[1].key
        editor.editTree(key) { items in items[items.firstIndex { $0.key == key }!].key.low = 1 }
    },
    Planting(.dataBeyondEnd) { $0.inode($0.entry("x").inode) { $0.length = 8192 } },
    Planting(.inodeBlocks) { $0.inode($0.entry("x").inode) { $0.blocks += 1 } },
    Planting(.symlinkTarget) { editor in
        let key = Key(editor.entry("link").inode, .piece, 1)
        editor.editTree(key) { items in items[items.firstIndex { $0.key == key }!].value.removeLast() }
    },
    Planting(.xattrMalformed) { editor in
        let inode = editor.entry("f1").inode
        editor.editItem(editor.tree.first { $0.key.isOf(inode, .xattr) }!.key) { $0.set(u8: 1, at: 13) }
    },
    Planting(.xattrCount) { $0.inode($0.entry("f1").inode) { $0.xattrs += 1 } },
    Planting(.accessControlList) { editor in
        // A list without an entry for the owning group.
        let list: [UInt8] = [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 6, 0, 1, 0, 0, 0, 32, 0, 4, 0, 255, 255, 255, 255]
        try editor.addXattr(editor.entry("f2").inode, "system.posix_acl_access", list)
    },
    Planting(.accessControlList) { editor in
        // A default list of a file, too long for its item.
        var list: [UInt8] = [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255]
        for id in 0..<100 { list += [2, 0, 6, 0, UInt8(id), 0, 0, 0] }
        for tag: UInt8 in [4, 16, 32] { list += [tag, 0, 6, 0, 255, 255, 255, 255] }
        try editor.addXattr(editor.entry("f2").inode, "system.posix_acl_default", list)
    },
    Planting(.xattrValue) { editor in
        let owner = editor.entry("f1").inode
        let pieces = editor.tree.filter { $0.key.isOf(owner, .xattr) }.map { $0.value.withRawBytes { XattrItem($0)!.pieces } }.first { $0 != .none }!
        editor.remove(Key(pieces, .piece, 2))
    },
    Planting(.piecesUnowned) { editor in
        let used = Set(editor.tree.map { $0.key.inode.value })
        let number = (2..<editor.superblock.checkpoint.nextInode).first { !used.contains($0) }!
        editor.insert(Key(InodeNumber(number), .piece, 0), [1, 2, 3])
    },
    Planting(.bornLater) { $0.editItem($0.extents($0.entry("x").inode)[0].key) { $0.set(u64: 1 << 40, at: 8) } },
    Planting(.inodeCount) { $0.editCheckpoint($0.superblock.checkpoint.sequence) { $0.inodes += 1 } },
    Planting(.dataBlockCount) { $0.editCheckpoint($0.superblock.checkpoint.sequence) { $0.dataBlocks += 1 } },
    Planting(.nextInode, [.checkpointItem]) { $0.editCheckpoint($0.superblock.checkpoint.sequence) { $0.nextInode = 5 } },
    Planting(.dataDamaged) { $0.spoil($0.extents($0.entry("x").inode)[0].item.start) },
    Planting(.tailNotZero) { editor in
        let (key, item) = editor.extents(editor.entry("x").inode)[1]
        let last = item.start + UInt64(item.blocks - 1)
        editor.disk.corrupt(last) { $0[4000] = 1 }
        let page = editor.read(last)
        let crc = withExtendedLifetime(page) { page.bytes.crc32c() }
        editor.editItem(key) { $0.set(u32: crc, at: ExtentItem.header + Int(item.blocks - 1) * 4) }
    },
    Planting(.entryMalformed, [.entryOffset]) { $0.editItem($0.entry("f5").key) { $0.set(u8: 0x2f, at: EntryItem.header) } },
    Planting(.entryOffset, [.nameHint]) { editor in
        let key = editor.entry("f5").key
        editor.editTree(key) { items in items[items.firstIndex { $0.key == key }!].key.low += NameHash.ordinals }
    },
    Planting(.duplicateName) { editor in
        let (key, inode) = editor.entry("f5")
        editor.insert(Key(.root, .entry, key.low + 1), editor.value(key))
        editor.inode(inode) { $0.links += 1 }
        editor.inode(.root) { $0.length += 1 }
    },
    Planting(.entryDangling) { editor in
        editor.insert(Key(.root, .entry, editor.offset("nowhere")), editor.entryValue("nowhere", InodeNumber(1 << 40), .regular))
        editor.inode(.root) { $0.length += 1 }
    },
    Planting(.entryKind) { $0.editItem($0.entry("f5").key) { $0.set(u8: FileKind.fifo.rawValue, at: 8) } },
    Planting(.linkCount) { $0.inode($0.entry("f5").inode) { $0.links += 1 } },
    Planting(.directoryLength) { $0.inode(.root) { $0.length += 1 } },
    Planting(.directoryLinks) { $0.inode(.root) { $0.links += 1 } },
    Planting(.directoryParent) { $0.inode($0.entry("a").inode) { $0.parentEntry += 1 } },
    Planting(.directoryNames) { editor in
        editor.insert(Key(.root, .entry, editor.offset("again")), editor.entryValue("again", editor.entry("a").inode, .directory))
        editor.inode(.root) { item in
            item.length += 1
            item.links += 1
        }
    },
    Planting(.directoryLoop) { editor in
        let (key, a) = editor.entry("a")
        let b = editor.entry("b", in: a).inode
        let value = editor.value(key)
        editor.remove(key)
        editor.insert(Key(b, .entry, key.low), value)
        editor.inode(.root) { item in
            item.length -= 1
            item.links -= 1
        }
        editor.inode(b) { item in
            item.length += 1
            item.links += 1
        }
        editor.inode(a) { $0.parent = b }
    },
    Planting(.unnamedInode) { editor in
        let (key, inode) = editor.entry("f5")
        editor.remove(key)
        editor.inode(.root) { $0.length -= 1 }
        editor.inode(inode) { item in
            item.links = 0
            item.parent = .none
            item.parentEntry = 0
        }
    },
    Planting(.orphanItem) { $0.insert(Key(.none, .orphan, 1 << 40), []) },
    Planting(.nameHint) { $0.inode($0.entry("f5").inode) { $0.parentEntry += 1 } },
    Planting(.blockShared, [.blockLeaked]) { editor in
        let other = editor.extents(editor.entry("y").inode)[0].item.start
        editor.editItem(editor.extents(editor.entry("x").inode)[0].key) { $0.set(u64: other.value, at: 0) }
    },
    Planting(.blockUsedButFree) { $0.setUsed($0.extents($0.entry("x").inode)[0].item.start, false) },
    Planting(.blockLeaked) { $0.setUsed($0.freeBlock, true) },
    Planting(.shareCount) { editor in
        let home = editor.extents(editor.entry("x").inode)[0].item.start
        editor.editSpace(Key(.share, home.value)) { items in
            var value = [UInt8](repeating: 0, count: ShareItem.size)
            value.withRawBytes { ShareItem(count: 1, further: 1).store($0) }
            items.append((Key(.share, home.value), value))
        }
    },
    Planting(.blockOutside, [.blockLeaked]) { $0.editItem($0.extents($0.entry("x").inode)[0].key) { $0.set(u64: 5, at: 0) } },
    Planting(.deadListDamaged) { $0.editCheckpoint($0.checkpoints[7].sequence) { $0.deadListCRC ^= 1 } },
    Planting(.deadEntry) { $0.deadList($0.checkpoints[7].sequence) { $0[0].death = SequenceNumber(1 << 40) } },
    Planting(.deadBlockInUse, open: true) { editor in
        let live = editor.extents(editor.entry("x").inode)[0].item.start
        editor.deadList(editor.checkpoints[7].sequence) { entries in
            entries[entries.count - 1].start = live
            entries.sort { $0.start < $1.start }
        }
    },
    Planting(.deadCounts) { editor in
        editor.editCheckpoint(editor.checkpoints[7].sequence) { $0.deadBlocks += 1 }
        editor.superblock.historyBlocks += 1
        editor.saveSuperblock()
    },
    Planting(.pastNodeDamaged) { $0.spoil($0.checkpoints[7].root.address) },
    Planting(.pastNodeUncovered) { editor in
        let item = editor.checkpoints[7]
        let page = editor.read(item.root.address)
        let free = editor.freeBlock
        let crc = NodeLayout.seal(page.bytes, address: free, birth: item.root.birth)
        editor.write(free, page)
        editor.editCheckpoint(item.sequence) { $0.root = ChildReference(address: free, birth: item.root.birth, crc: crc) }
    },
    Planting(.pastDataUncovered, open: true) { editor in
        let item = editor.checkpoints[7]
        let free = editor.freeBlock
        // A file that is written again just after: its leaf there is nobody else's.
        let inode = editor.entry("f7").inode
        let key = editor.items(item.root, item.rootLevel).first { $0.key.isOf(inode, .extent) }!.key
        editor.editTree(key, at: item) { items in
            items[items.firstIndex { $0.key == key }!].value.withRawBytes { $0.set(u64: free.value, at: 0) }
        }
    },
]

@Suite struct DamageTests {
    @Test func baseImageIsClean() throws { try expectClean(baseImage.copy()) }

    @Test(arguments: plantings) func everyKindIsFound(planting: Planting) throws {
        let disk = baseImage.copy()
        try planting.plant(try Editor(disk))
        var options = CheckOptions()
        options.verifyData = true
        let report = try Checker(disk, options: options).run()
        // Edits in place may hit nodes that past trees share, which then notice.
        let codes = Set(report.counts.keys).subtracting(planting.code == .pastNodeDamaged ? [] : [.pastNodeDamaged])
        let text = report.findings.map(\.description).joined(separator: "\n  ")
        if planting.open {
            #expect(codes.isSuperset(of: planting.others.union([planting.code])), "\(text)")
        } else {
            #expect(codes == planting.others.union([planting.code]), "\(text)")
        }
    }

    @Test func everyCodeIsPlanted() {
        // That a journal cannot be replayed is found by the command, not by the checker.
        let missing = Set(FindingCode.allCases).subtracting(plantings.map(\.code)).subtracting([.recoveryImpossible])
        #expect(missing.isEmpty, "\(missing.map(\.label).sorted())")
    }

    @Test func everyCodeIsDocumented() throws {
        let page = try String(
            contentsOf: URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../Docs/FSCK.md"), encoding: .utf8)
        for code in FindingCode.allCases {
            #expect(page.contains("| \(code.label) | \(code.meaning) | \(code.remedy) | \(code.loss) |"), "\(code.label)")
        }
    }
}
