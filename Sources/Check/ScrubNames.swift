// ScrubNames: what a damaged node or block belonged to, by path, for people.

import Device
import Format
import Journal
import Memory
import Volume

extension Scrubber {
    /// What lies in a node that cannot be read: the inodes from the key that leads to it to the one that leads past it.
    func name(_ damage: inout Damage, _ reference: ChildReference, _ item: CheckpointItem) {
        guard wantsDetail else { return }
        guard reference != item.root else {
            damage.inode = .root
            damage.path = [0x2f]
            return
        }
        guard let bounds = bounds(of: reference, item.root, item.rootLevel, Key.first, Key.last, 0) else { return }
        damage.inode = bounds.lower.inode
        // An inode whose own item is lost may be named by an older tree.
        var number = max(bounds.lower.inode.value, 1)
        for _ in 0..<16 where number <= bounds.upper.inode.value {
            if let path = path(of: InodeNumber(number), in: item) {
                damage.inode = InodeNumber(number)
                damage.path = path
                return
            }
            number += 1
        }
    }

    func bounds(
        of wanted: ChildReference, _ root: ChildReference, _ level: UInt8, _ lower: Key, _ upper: Key, _ visited: Int
    ) -> (lower: Key, upper: Key)? {
        guard level > 0, level <= NodeLayout.plausibleLevel, root.address.value < device.blockCount else { return nil }
        let buffer = AlignedBuffer(count: blockSize)
        defer { withExtendedLifetime(buffer) {} }
        let page = buffer.bytes
        guard (try? device.read(root.address, into: page)) != nil,
            (try? NodeLayout.validate(page, kind: .main, id: superblock.id, expected: root, level: level)) != nil
        else { return nil }
        let count = NodeLayout.count(page)
        for index in 0..<count {
            let child = ChildReference(NodeLayout.value(page, index))
            let from = index == 0 ? lower : NodeLayout.key(page, index)
            let to = index + 1 < count ? NodeLayout.key(page, index + 1) : upper
            if child == wanted { return (from, to) }
        }
        guard level > 1, visited < 24 else { return nil }
        for index in 0..<count {
            let from = index == 0 ? lower : NodeLayout.key(page, index)
            let to = index + 1 < count ? NodeLayout.key(page, index + 1) : upper
            if let found = bounds(of: wanted, ChildReference(NodeLayout.value(page, index)), level - 1, from, to, visited + 1) { return found }
        }
        return nil
    }

    /// Where the inode was in the tree at `item`, or in an older one, or in any.
    func path(of inode: InodeNumber, in item: CheckpointItem) -> [UInt8]? {
        guard wantsDetail else { return nil }
        let older = checkpoints.filter { $0.sequence < item.sequence }.suffix(8).reversed()
        for tree in [item] + older + [superblock.checkpoint] { if let path = pathOnly(of: inode, in: tree) { return path } }
        return nil
    }

    /// As of just behind the record, for files that no tree knows yet or any more.
    func replayedPath(of inode: InodeNumber, _ sequence: SequenceNumber) -> [UInt8]? {
        guard replays < Self.replayLimit else { return nil }
        replays += 1
        guard let start = checkpoints.last(where: { $0.sequence < sequence }),
            let reader = try? JournalReader(
                device: device, id: superblock.id, chunkBlocks: superblock.chunkBlocks, from: start.journal, cut: superblock.cut)
        else { return nil }
        // Without looking at data, as a Replay does at the journal's end: some of it is damaged.
        let view = View(checkpoint: start, superblock: superblock, device: device, cacheBytes: 16 << 20)
        while view.sequence < sequence, let frame = try? reader.next() {
            let applied: Void? = try? frame.forEachRecord(mapping: { ViewError.damaged($0.description) }) { (record) throws(ViewError) in
                guard record.sequence <= sequence else { return }
                try view.apply(record, .replay)
                view.freed.removeAll(keepingCapacity: true)
                view.shared.removeAll(keepingCapacity: true)
                view.trim()
            }
            guard applied != nil else { return nil }
        }
        return (try? view.path(inode)) ?? nil
    }
    /// Each may take a second.
    static let replayLimit = 50

    func pathOnly(of inode: InodeNumber, in item: CheckpointItem) -> [UInt8]? {
        if inode == .root { return [0x2f] }
        let walk = walk()
        var parts: [[UInt8]] = []
        var at = inode
        while at != .root {
            guard parts.count < 256, let bytes = walk.find(Key(at, .inode), root: item.root, level: item.rootLevel), bytes.count == InodeItem.size
            else { return nil }
            let found = bytes.withRawBytes { InodeItem($0) }
            guard found.parent != .none, found.parent.value < Limit.inode,
                let value = walk.find(Key(found.parent, .entry, found.parentEntry), root: item.root, level: item.rootLevel),
                let name = value.withRawBytes({ bytes in EntryItem(bytes).flatMap { $0.inode == at ? $0.name.array : nil } })
            else { return nil }
            parts.append(name)
            at = found.parent
        }
        return Array(parts.reversed().map { [0x2f] + $0 }.joined())
    }
}
