// Scan: the whole medium, block by block, for what says by itself what it is: leaves of space trees (for the checkpoints that they
// name), headers of journal chunks, the leaf that mkfs wrote, and the copy of identity and geometry. For images whose superblocks or
// index are lost.
//
// (N1) What is found may be out of date. It is a suggestion: whoever follows it checks what it leads to.

import Check
import Device
import Format
import Memory

struct Scan {
    /// From the youngest leaf that names each sequence.
    private(set) var checkpoints: [CheckpointItem] = []
    private(set) var chunks: [UInt64: BlockNumber] = [:]
    /// Of the highest epoch met.
    private(set) var lastHeader: ChunkHeader?
    private(set) var identity: Superblock?
    private var firstLeaf: ChildReference?
    private var firstHeader: ChunkHeader?

    /// The state that mkfs made, if its one leaf and the first chunk are there.
    func firstCheckpoint(_ superblock: Superblock) -> CheckpointItem? {
        guard let firstLeaf, let firstHeader, firstHeader.position.next == SequenceNumber(1) else { return nil }
        return CheckpointItem(
            sequence: SequenceNumber(0), time: superblock.created, root: firstLeaf, rootLevel: 0, nextInode: 2, inodes: 1, dataBlocks: 0,
            journal: firstHeader.position)
    }

    private static let batch = 256

    /// Looks for what belongs to filesystem `id`; with nil to the one whose identity is found first, from the end backwards.
    init(
        _ device: any BlockDevice, id: FilesystemID?, chunkBlocks: UInt32?, progress: (Double) -> Void, isCancelled: () -> Bool
    ) throws {
        let buffer = AlignedBuffer(count: Self.batch << blockShift)
        var id = id
        var chunkBlocks = chunkBlocks
        if id == nil {
            identity = try Self.identity(device, buffer, isCancelled)
            id = identity?.id
            chunkBlocks = identity?.chunkBlocks
        }
        guard let id, let chunkBlocks else { return }
        var births: [UInt64: UInt64] = [:]
        var items: [UInt64: CheckpointItem] = [:]
        var block: UInt64 = 0
        while block < device.blockCount {
            if isCancelled() { throw Cancelled() }
            progress(Double(block) / Double(device.blockCount))
            let count = Int(min(UInt64(Self.batch), device.blockCount - block))
            let whole = (try? device.read(BlockNumber(block), into: buffer.bytes.slice(0, count << blockShift))) != nil
            for index in 0..<count {
                let page = buffer.bytes.slice(index << blockShift, blockSize)
                let at = BlockNumber(block + UInt64(index))
                if !whole { guard (try? device.read(at, into: page)) != nil else { continue } }
                switch page.u32(at: 0) {
                case magicNode where page.u8(at: 25) == NodeLayout.Kind.main.rawValue:
                    let claimed = ChildReference(address: at, birth: SequenceNumber(0), crc: page.u32(at: NodeLayout.crc))
                    if (try? NodeLayout.validate(page, kind: .main, id: id, expected: claimed, level: 0)) != nil { firstLeaf = claimed }
                case magicNode: Self.takeLeaf(page, at, id, &items, &births)
                case magicChunk where at.value % UInt64(chunkBlocks) == 0:
                    guard let header = ChunkHeader(page, at: at, id: id) else { continue }
                    chunks[header.position.serial] = at
                    if header.position.serial == 0 { firstHeader = header }
                    if lastHeader == nil || lastHeader!.position.serial < header.position.serial { lastHeader = header }
                default: break
                }
            }
            block += UInt64(count)
        }
        checkpoints = items.values.sorted { $0.sequence < $1.sequence }
    }

    private static func takeLeaf(
        _ page: RawBytes, _ at: BlockNumber, _ id: FilesystemID, _ items: inout [UInt64: CheckpointItem], _ births: inout [UInt64: UInt64]
    ) {
        let claimed = ChildReference(address: at, birth: NodeLayout.birth(page), crc: page.u32(at: NodeLayout.crc))
        guard (try? NodeLayout.validate(page, kind: .space, id: id, expected: claimed, level: 0)) != nil else { return }
        for index in 0..<NodeLayout.count(page) {
            let key = NodeLayout.key(page, index)
            let value = NodeLayout.value(page, index)
            guard key.high == UInt64(SpaceItemType.checkpoint.rawValue), value.count == CheckpointItem.size else { continue }
            let item = CheckpointItem(value)
            guard item.sequence.value == key.low, item.isPossible, item.isPlausible else { continue }
            if let birth = births[key.low], birth >= claimed.birth.value { continue }
            births[key.low] = claimed.birth.value
            items[key.low] = item
        }
    }

    /// The copy in the last block of the filesystem: usually that of the device.
    private static func identity(_ device: any BlockDevice, _ buffer: AlignedBuffer, _ isCancelled: () -> Bool) throws -> Superblock? {
        let page = buffer.bytes.slice(0, blockSize)
        var block = device.blockCount
        while block > 0 {
            block -= 1
            if block % 4096 == 0 && isCancelled() { throw Cancelled() }
            guard (try? device.read(BlockNumber(block), into: page)) != nil, Superblock.looksLikeOne(page),
                let copy = try? Superblock(page, slot: 2), copy.blockCount == block + 1
            else { continue }
            return copy
        }
        return nil
    }
}
