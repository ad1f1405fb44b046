// Editor: plants damage in an image and sets every checksum on the way up right again, so that only the checker can see it.

import Check
import Device
import Format
import Memory
import Testing

typealias Items = [(key: Key, value: [UInt8])]

final class Editor {
    let disk: SimulatedDisk
    var superblock: Superblock
    let slot: Int

    init(_ disk: SimulatedDisk) throws {
        self.disk = disk
        let state = try SlotState(disk)
        superblock = state.newest
        slot = state.newestSlot
    }

    // MARK: blocks

    func read(_ block: BlockNumber) -> AlignedBuffer {
        let page = AlignedBuffer(count: blockSize)
        try! disk.read(block, into: page.bytes)
        return page
    }
    func write(_ block: BlockNumber, _ page: AlignedBuffer) {
        let bytes = page.bytes.array
        disk.corrupt(block) { $0 = bytes }
    }
    /// Changes a byte and leaves the checksum wrong.
    func spoil(_ block: BlockNumber, at offset: Int = 2000) { disk.corrupt(block) { $0[offset] ^= 0x55 } }

    func saveSuperblock(slot: Int? = nil) {
        let page = AlignedBuffer(count: blockSize)
        superblock.store(page.bytes, slot: slot ?? self.slot)
        write(Superblock.slots[slot ?? self.slot], page)
    }

    // MARK: trees

    /// Gives the leaf that `key` belongs to, as items, to `change`, and seals everything above it. Returns the new root.
    private func edit(_ reference: ChildReference, _ level: UInt8, _ key: Key, _ change: (inout Items) -> Void) -> ChildReference {
        let buffer = read(reference.address)
        defer { withExtendedLifetime(buffer) {} }
        let page = buffer.bytes
        var items: Items = (0..<NodeLayout.count(page)).map { (NodeLayout.key(page, $0), NodeLayout.value(page, $0).array) }
        if level == 0 {
            change(&items)
        } else {
            let index = max(0, (items.firstIndex { key < $0.key } ?? items.count) - 1)
            let child = edit(items[index].value.withRawBytes { ChildReference($0) }, level - 1, key, change)
            items[index].value.withRawBytes { child.store($0) }
        }
        return seal(reference, level, NodeLayout.Kind(rawValue: page.u8(at: 25))!, items)
    }

    func seal(_ reference: ChildReference, _ level: UInt8, _ kind: NodeLayout.Kind, _ items: Items) -> ChildReference {
        let buffer = AlignedBuffer(count: blockSize)
        defer { withExtendedLifetime(buffer) {} }
        let page = buffer.bytes
        NodeLayout.initialize(page, kind: kind, level: level, id: superblock.id)
        var heap = blockSize
        for (index, item) in items.enumerated() {
            heap -= item.value.count
            let at = NodeLayout.header + index * NodeLayout.slot
            precondition(at + NodeLayout.slot <= heap, "the leaf is full")
            page.copy(item.value, to: heap)
            page.set(u64: item.key.high, at: at)
            page.set(u64: item.key.low, at: at + 8)
            page.set(u16: UInt16(heap), at: at + 16)
            page.set(u16: UInt16(item.value.count), at: at + 18)
        }
        page.set(u16: UInt16(items.count), at: 26)
        page.set(u16: UInt16(heap), at: 28)
        var result = reference
        result.crc = NodeLayout.seal(page, address: reference.address, birth: reference.birth)
        write(reference.address, buffer)
        return result
    }

    func editSpace(_ key: Key, _ change: (inout Items) -> Void) {
        superblock.spaceRoot = edit(superblock.spaceRoot, superblock.spaceLevel, key, change)
        saveSuperblock()
    }

    func editSpaceItem(_ key: Key, _ change: (RawBytes) -> Void) {
        editSpace(key) { items in
            let index = items.firstIndex { $0.key == key }!
            items[index].value.withRawBytes(change)
        }
    }

    /// Changes a checkpoint's item, and the superblock's copy when it is the newest.
    func editCheckpoint(_ sequence: SequenceNumber, _ change: (inout CheckpointItem) -> Void) {
        editSpaceItem(Key(.checkpoint, sequence.value)) { bytes in
            var item = CheckpointItem(bytes)
            change(&item)
            item.store(bytes)
            if sequence == superblock.checkpoint.sequence { superblock.checkpoint = item }
        }
        saveSuperblock()
    }

    /// Edits the leaf of `key` in the newest tree, or in that of another checkpoint.
    func editTree(_ key: Key, at item: CheckpointItem? = nil, _ change: (inout Items) -> Void) {
        let item = item ?? superblock.checkpoint
        let root = edit(item.root, item.rootLevel, key, change)
        editCheckpoint(item.sequence) { $0.root = root }
    }

    func editItem(_ key: Key, _ change: (RawBytes) -> Void) {
        editTree(key) { items in
            guard let index = items.firstIndex(where: { $0.key == key }) else {
                Issue.record("no item \(key)")
                return
            }
            items[index].value.withRawBytes(change)
        }
    }

    func insert(_ key: Key, _ value: [UInt8]) {
        editTree(key) { items in
            let index = items.firstIndex { key < $0.key } ?? items.count
            items.insert((key, value), at: index)
        }
    }

    func remove(_ key: Key) { editTree(key) { $0.removeAll { $0.key == key } } }

    func inode(_ number: InodeNumber, _ change: (inout InodeItem) -> Void) {
        editItem(Key(number, .inode)) { bytes in
            var item = InodeItem(bytes)
            change(&item)
            item.store(bytes)
        }
    }

    func addXattr(_ number: InodeNumber, _ name: String, _ value: [UInt8]) throws {
        let isLarge = value.count > XattrItem.inlineValue
        let owner = InodeNumber(isLarge ? superblock.checkpoint.nextInode : 0)
        let bytes = [UInt8](repeating: 0, count: XattrItem.size(nameLength: name.utf8.count, valueLength: value.count))
        Array(name.utf8).withRawBytes { name in
            value.withRawBytes { value in bytes.withRawBytes { XattrItem.store($0, name: name, value: value, pieces: owner) } }
        }
        inode(number) { $0.xattrs += 1 }
        insert(Key(number, .xattr, offset(name)), bytes)
        if isLarge {
            insert(Key(owner, .piece), value)
            editCheckpoint(superblock.checkpoint.sequence) { $0.nextInode += 1 }
        }
    }

    // MARK: looking

    func items(_ root: ChildReference, _ level: UInt8) -> Items {
        let buffer = read(root.address)
        defer { withExtendedLifetime(buffer) {} }
        let page = buffer.bytes
        if level == 0 { return (0..<NodeLayout.count(page)).map { (NodeLayout.key(page, $0), NodeLayout.value(page, $0).array) } }
        return (0..<NodeLayout.count(page)).flatMap { items(ChildReference(NodeLayout.value(page, $0)), level - 1) }
    }
    var tree: Items { items(superblock.checkpoint.root, superblock.checkpoint.rootLevel) }
    var space: Items { items(superblock.spaceRoot, superblock.spaceLevel) }
    var checkpoints: [CheckpointItem] {
        space.filter { $0.key.high == UInt64(SpaceItemType.checkpoint.rawValue) }.map { $0.value.withRawBytes { CheckpointItem($0) } }
    }
    var chunks: [ChunkItem] {
        space.filter { $0.key.high == UInt64(SpaceItemType.chunk.rawValue) }.map { $0.value.withRawBytes { ChunkItem($0)! } }
    }

    /// The entry of `name`, of the root unless another directory is given.
    func entry(_ name: String, in directory: InodeNumber = .root) -> (key: Key, inode: InodeNumber) {
        for (key, value) in tree where key.isOf(directory, .entry) {
            let found = value.withRawBytes { bytes in EntryItem(bytes)!.name.text == name ? EntryItem(bytes)!.inode : nil }
            if let found { return (key, found) }
        }
        fatalError("no entry \(name)")
    }
    func value(_ key: Key) -> [UInt8] { tree.first { $0.key == key }!.value }
    func extents(_ inode: InodeNumber) -> [(key: Key, item: ExtentItem)] {
        tree.filter { $0.key.isOf(inode, .extent) }.map { ($0.key, $0.value.withRawBytes { ExtentItem($0) }) }
    }
    func offset(_ name: String) -> UInt64 { Array(name.utf8).withRawBytes { NameHash.offset($0, seed: superblock.seed) } }
    func entryValue(_ name: String, _ inode: InodeNumber, _ kind: FileKind) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: EntryItem.size(nameLength: name.utf8.count))
        Array(name.utf8).withRawBytes { name in bytes.withRawBytes { EntryItem.store($0, inode: inode, kind: kind.rawValue, name: name) } }
        return bytes
    }

    /// Where the leaf of the newest tree lies that `key` belongs to.
    func leaf(of key: Key) -> BlockNumber {
        var reference = superblock.checkpoint.root
        for _ in 0..<superblock.checkpoint.rootLevel {
            let buffer = read(reference.address)
            let page = buffer.bytes
            let index = (0..<NodeLayout.count(page)).last { !(key < NodeLayout.key(page, $0)) } ?? 0
            reference = ChildReference(NodeLayout.value(page, index))
            withExtendedLifetime(buffer) {}
        }
        return reference.address
    }

    // MARK: bitmaps and lists

    func region(_ number: UInt64, _ change: (RawBytes) -> Void) {
        let key = Key(.region, number)
        let item = space.first { $0.key == key }!.value.withRawBytes { RegionItem($0)! }
        let page = read(item.bitmap)
        change(page.bytes)
        var free: UInt32 = 0
        for word in 0..<Region.blocks / 64 { free += UInt32(64 - page.bytes.u64(at: Region.bits + word * 8).nonzeroBitCount) }
        let crc = Region.seal(page.bytes, region: number, address: item.bitmap, id: superblock.id)
        write(item.bitmap, page)
        editSpaceItem(key) { RegionItem(bitmap: item.bitmap, crc: crc, free: free).store($0) }
    }

    func setUsed(_ block: BlockNumber, _ used: Bool) {
        region(block.value / UInt64(Region.blocks)) { page in
            let bit = Int(block.value) % Region.blocks
            let at = Region.bits + bit / 64 * 8
            let mask: UInt64 = 1 << UInt64(bit & 63)
            page.set(u64: used ? page.u64(at: at) | mask : page.u64(at: at) & ~mask, at: at)
        }
    }

    /// A block that nothing uses.
    var freeBlock: BlockNumber {
        let item = space.first { $0.key == Key(.region, 0) }!.value.withRawBytes { RegionItem($0)! }
        let buffer = read(item.bitmap)
        defer { withExtendedLifetime(buffer) {} }
        let page = buffer.bytes
        for bit in stride(from: Region.blocks - 1, to: 0, by: -1) where page.u64(at: Region.bits + bit / 64 * 8) & (1 << UInt64(bit & 63)) == 0 {
            return BlockNumber(UInt64(bit))
        }
        fatalError("full")
    }

    /// Changes the first block of a checkpoint's dead list.
    func deadList(_ sequence: SequenceNumber, _ change: (inout [DeadEntry]) -> Void) {
        let item = checkpoints.first { $0.sequence == sequence }!
        let page = read(item.deadList)
        let next = BlockNumber(page.bytes.u64(at: 32))
        let nextCRC = page.bytes.u32(at: 40)
        let count = Int(page.bytes.u32(at: 44))
        var entries = (0..<count).map { DeadEntry(page.bytes.slice(ListBlock.header + $0 * DeadEntry.size, DeadEntry.size)) }
        change(&entries)
        for (index, entry) in entries.enumerated() { entry.store(page.bytes.slice(ListBlock.header + index * DeadEntry.size, DeadEntry.size)) }
        let crc = ListBlock.seal(
            page.bytes, magic: magicDeadList, address: item.deadList, id: superblock.id, next: next, nextCRC: nextCRC, count: entries.count)
        write(item.deadList, page)
        editCheckpoint(sequence) { $0.deadListCRC = crc }
    }

    /// Writes a frame where the journal ends, as if it went on.
    func appendFrame() {
        let position = superblock.checkpoint.journal
        let page = AlignedBuffer(count: blockSize)
        let record = page.bytes.slice(FrameHeader.size, Record.size(payload: 16))
        RecordHeader(type: .access, sequence: position.next, time: superblock.checkpoint.time, uid: 0, gid: 0, pid: 0).store(record)
        let header = FrameHeader(
            position: position, last: position.next, time: superblock.checkpoint.time, payload: UInt32(record.count), records: 1, flags: 0)
        _ = header.seal(page.bytes, id: superblock.id)
        write(header.address, page)
    }

    /// The last frame before the newest checkpoint: it must take one block.
    func editLastFrame(_ change: (RawBytes) -> Void) {
        let end = superblock.checkpoint.journal
        var page = AlignedBuffer(count: blockSize)
        var block = end.block
        repeat {
            block -= 1
            page = read(end.chunk + UInt64(block))
        } while page.bytes.u32(at: 0) != magicFrame
        precondition(FrameHeader.length(page.bytes) == blockSize && block == end.block - 1)
        change(page.bytes)
        page.bytes.set(u32: page.bytes.crc32c(skipping: 4), at: 4)
        write(end.chunk + UInt64(block), page)
        let chain = FrameHeader.chain(page.bytes)
        editCheckpoint(superblock.checkpoint.sequence) { $0.journal.chain = chain }
    }
}
