// ImageMap: the parts of an image, what vouches for each, and what has to be put right when one was changed.
//
//   main nodes ─crc─► parents ─crc─► checkpoint items in space leaves, and slots
//   list blocks ─crc─► the block before ─crc─► checkpoint item, slot       bitmaps ─crc─► region items
//   frames ─chain─► next frame, next chunk's header, positions in checkpoint items and slots
//   space leaves ─crc─► parents ─crc─► slots
//
// (M1) A link leads from a part of lower rank to one of higher rank: mending in the order of ranks ends, and needs each part once.

import Device
import Format
import Journal
import Memory
import Space
import Volume

public enum PartKind: String, CaseIterable, Sendable {
    case slot, identity, spaceNode, bitmap, deadList, pendingList, chunkHeader, frame, mainNode, data
}

/// What is kept of a part elsewhere.
struct Link {
    enum Value { case crc, chain }
    let value: Value
    let target: Int
    let offset: Int
}

struct Part {
    let kind: PartKind
    let block: UInt64
    var blocks: UInt64 = 1
    var rank: Int
    var links: [Link] = []
    /// Where the CRC over the part lies in it; nil for data.
    var crcOffset: Int? { kind == .data ? nil : kind == .slot || kind == .identity ? 12 : 4 }
}

/// Not changed once it is made.
public final class ImageMap: @unchecked Sendable {
    let base: MutantDisk
    private(set) var parts: [Part] = []
    private var byBlock: [UInt64: Int] = [:]
    private(set) var byKind: [PartKind: [Int]] = [:]
    /// Numbers that mean something in this image: blocks, inodes, sequences.
    private(set) var numbers: [UInt64] = []
    private let superblock: Superblock
    public var count: Int { parts.count }

    public init(_ base: MutantDisk) throws {
        self.base = base
        let image = try Image(base)
        superblock = image.superblock
        var slots: [Int] = []
        for (slot, block) in Superblock.slots.enumerated() {
            guard case .success(let found) = image.slots[slot] else { continue }
            let part = add(.slot, block.value, rank: 3_000_000)
            slots.append(part)
            let root = walkNodes(found.spaceRoot, found.spaceLevel, .spaceNode, rank: 2_000_000)
            link(root, .crc, part, 432)
            let main = walkNodes(found.checkpoint.root, found.checkpoint.rootLevel, .mainNode, rank: 0)
            link(main, .crc, part, 224 + 32)
            addList(.pendingList, found.pendingList, holder: part, offset: 448)
            addList(.deadList, found.checkpoint.deadList, holder: part, offset: 224 + 136)
        }
        _ = add(.identity, superblock.blockCount - 1, rank: 3_000_001)
        try addFrames(slots)
        addData()
        for part in parts.indices { byKind[parts[part].kind, default: []].append(part) }
        numbers = Array(Set(parts.map(\.block) + [superblock.blockCount, superblock.blockCount - 1, superblock.checkpoint.sequence.value,
            superblock.checkpoint.sequence.value + 1, superblock.horizon.value, superblock.checkpoint.nextInode,
            superblock.checkpoint.journal.serial, superblock.epoch] + Array(1...12))).sorted()
    }

    /// Number, kind and place of each part.
    public var list: [String] {
        parts.indices.map { "\($0) \(parts[$0].kind) at block \(parts[$0].block)" + (parts[$0].blocks > 1 ? ", \(parts[$0].blocks) blocks" : "") }
    }

    // MARK: building

    private func add(_ kind: PartKind, _ block: UInt64, blocks: UInt64 = 1, rank: Int) -> Int {
        if let known = byBlock[block] { return known }
        parts.append(Part(kind: kind, block: block, blocks: blocks, rank: rank))
        byBlock[block] = parts.count - 1
        return parts.count - 1
    }

    private func link(_ from: Int, _ value: Link.Value, _ to: Int, _ offset: Int) {
        guard !parts[from].links.contains(where: { $0.target == to && $0.offset == offset }) else { return }
        precondition(parts[from].rank < parts[to].rank, "a link must lead upwards")
        parts[from].links.append(Link(value: value, target: to, offset: offset))
    }

    private func walkNodes(_ reference: ChildReference, _ level: UInt8, _ kind: PartKind, rank: Int) -> Int {
        let isNew = byBlock[reference.address.value] == nil
        let part = add(kind, reference.address.value, rank: rank + Int(level))
        guard isNew else { return part }
        base.block(reference.address.value).withRawBytes { page in
            for index in 0..<NodeLayout.count(page) {
                let at = Int(page.u16(at: NodeLayout.header + index * NodeLayout.slot + 16))
                if level > 0 {
                    let child = walkNodes(ChildReference(NodeLayout.value(page, index)), level - 1, kind, rank: rank)
                    link(child, .crc, part, at + 16)
                } else if kind == .spaceNode {
                    addSpaceItem(NodeLayout.key(page, index), NodeLayout.value(page, index), part, at)
                }
            }
        }
        return part
    }

    private var positions: [(serial: UInt64, block: UInt32, part: Int, offset: Int)] = []

    private func addSpaceItem(_ key: Key, _ value: RawBytes, _ leaf: Int, _ at: Int) {
        switch SpaceItemType(rawValue: UInt8(truncatingIfNeeded: key.high)) {
        case .region:
            guard let item = RegionItem(value) else { return }
            link(add(.bitmap, item.bitmap.value, rank: 1_000), .crc, leaf, at + 8)
        case .checkpoint:
            let item = CheckpointItem(value)
            link(walkNodes(item.root, item.rootLevel, .mainNode, rank: 0), .crc, leaf, at + 32)
            addList(.deadList, item.deadList, holder: leaf, offset: at + 136)
            positions.append((item.journal.serial, item.journal.block, leaf, at + 64 + 40))
        default: break
        }
    }

    private func addList(_ kind: PartKind, _ head: BlockNumber, holder: Int, offset: Int) {
        var blocks: [UInt64] = []
        var at = head.value
        while at != 0, blocks.count < 1000 {
            blocks.append(at)
            at = base.block(at).withRawBytes { $0.u64(at: 32) }
        }
        var (holder, offset) = (holder, offset)
        for (index, block) in blocks.enumerated() {
            let part = add(kind, block, rank: 10_000 - index)
            link(part, .crc, holder, offset)
            (holder, offset) = (part, 40)
        }
    }

    private func addFrames(_ slots: [Int]) throws {
        let checkpoints = try Image(base).space.checkpoints()
        guard let oldest = checkpoints.first else { return }
        for slot in slots {
            base.block(parts[slot].block).withRawBytes { page in
                let item = CheckpointItem(page.slice(224, CheckpointItem.size))
                positions.append((item.journal.serial, item.journal.block, slot, 224 + 64 + 40))
                let cut = JournalPosition(page.slice(464, JournalPosition.size))
                if cut.epoch != 0 { positions.append((cut.serial, cut.block, slot, 464 + 40)) }
            }
        }
        let reader = try JournalReader(
            device: base, id: superblock.id, chunkBlocks: superblock.chunkBlocks, from: oldest.journal, cut: superblock.cut)
        var headers: [(ChunkHeader, Int)] = []
        func addHeader(_ block: BlockNumber) {
            base.block(block.value).withRawBytes { page in
                guard let header = ChunkHeader(page, at: block, id: superblock.id) else { return }
                let part = add(.chunkHeader, block.value, rank: 1_900_000)
                headers.append((header, part))
                if header.cut.epoch != 0 { positions.append((header.cut.serial, header.cut.block, part, 96 + 40)) }
            }
        }
        addHeader(oldest.journal.chunk)
        reader.onChunk = { addHeader($0.position.chunk) }
        var last: (part: Int, after: JournalPosition)?
        var frames: [(part: Int, after: JournalPosition)] = []
        var rank = 100_000
        while let frame = try reader.next() {
            let blocks = UInt64(FrameHeader.blocks(payload: Int(frame.header.payload)))
            let part = add(.frame, frame.header.address.value, blocks: blocks, rank: rank)
            rank += 1
            if let last {
                link(last.part, .chain, part, 88)
                // The chunk entered in between names the chain as well.
                if let (header, owner) = headers.last, header.position.serial != last.after.serial { link(last.part, .chain, owner, 32 + 40) }
            }
            last = (part, frame.after)
            frames.append((part, frame.after))
        }
        // Some of them became known by the header that follows.
        for (part, after) in frames {
            for position in positions where position.serial == after.serial && position.block == after.block {
                link(part, .chain, position.part, position.offset)
            }
        }
        if let last, let (header, owner) = headers.last, header.position.serial > last.after.serial { link(last.part, .chain, owner, 32 + 40) }
    }

    /// Some blocks of data, for exchanging with others.
    private func addData() {
        for part in parts.indices where parts[part].kind == .mainNode {
            base.block(parts[part].block).withRawBytes { page in
                guard NodeLayout.level(page) == 0 else { return }
                for index in 0..<NodeLayout.count(page) where NodeLayout.key(page, index).type == ItemType.extent.rawValue {
                    let extent = ExtentItem(NodeLayout.value(page, index))
                    if !extent.isUnwritten { _ = add(.data, extent.start.value, rank: 4_000_000) }
                }
            }
        }
    }

    // MARK: mending

    /// Puts every checksum and hash right that depends on the changed parts, and what depends on those.
    func mend(_ disk: MutantDisk, _ changed: Set<Int>) {
        var waiting = changed
        while let part = waiting.min(by: { parts[$0].rank < parts[$1].rank }) {
            waiting.remove(part)
            guard let (crc, chain) = reseal(disk, parts[part]) else { continue }
            for link in parts[part].links {
                var page = disk.block(parts[link.target].block)
                page.edit { page in
                    switch link.value {
                    case .crc: page.set(u32: crc, at: link.offset)
                    case .chain: page.set(u64: chain, at: link.offset)
                    }
                }
                disk.set(parts[link.target].block, page)
                waiting.insert(link.target)
            }
        }
    }

    private func reseal(_ disk: MutantDisk, _ part: Part) -> (crc: UInt32, chain: UInt64)? {
        guard let offset = part.crcOffset else { return nil }
        var bytes = bytes(disk, part)
        return bytes.edit { all in
            // A frame's checksum covers as much as its header says, if that can be.
            var covered = all
            if part.kind == .frame {
                if let length = FrameHeader.length(all), length <= all.count { covered = all.slice(0, length) }
            }
            let crc = covered.crc32c(skipping: offset)
            covered.set(u32: crc, at: offset)
            store(disk, part, all)
            return (crc, part.kind == .frame ? FrameHeader.chain(all) : 0)
        }
    }

    func bytes(_ disk: MutantDisk, _ part: Part) -> [UInt8] { (0..<part.blocks).flatMap { disk.block(part.block + $0) } }

    func store(_ disk: MutantDisk, _ part: Part, _ bytes: RawBytes) {
        for index in 0..<part.blocks { disk.set(part.block + index, bytes.slice(Int(index) << blockShift, blockSize).array) }
    }
}

extension [UInt8] {
    /// Lends the array's bytes to be changed; they are its own alone.
    mutating func edit<R>(_ body: (RawBytes) -> R) -> R {
        withUnsafeMutableBytes { body(RawBytes(base: $0.baseAddress!, count: $0.count)) }
    }
}
