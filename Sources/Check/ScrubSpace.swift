// ScrubSpace: one look of the Scrubber at the space state; it has no history, so it is looked at until it holds still (B2).

import Device
import Format
import Memory

/// One look at the space state that a superblock names: its tree, the bitmaps, the lists.
final class SpacePass {
    private let device: any BlockDevice
    private let superblock: Superblock
    private let isCancelled: () -> Bool
    var damages: [Damage] = []
    var nodes: UInt64 = 0
    var checkpoints: [CheckpointItem] = []
    var dead: [(item: CheckpointItem, entries: () -> [DeadEntry])] = []
    private var regions: [(number: UInt64, item: RegionItem)] = []
    private var seen: BlockSet

    init(_ device: any BlockDevice, _ superblock: Superblock, _ isCancelled: @escaping () -> Bool) {
        self.device = device
        self.superblock = superblock
        self.isCancelled = isCancelled
        seen = BlockSet(blockCount: superblock.blockCount)
    }

    /// More of them tell nothing more.
    private static let limit = 1000

    private func found(_ block: BlockNumber, _ text: String) {
        guard damages.count < Self.limit else { return }
        var damage = Damage(.space, block, text)
        damage.hasPoints = false
        damages.append(damage)
    }

    func run() throws(Cancelled) {
        let walk = NodeWalk(device: device, kind: .space, id: superblock.id, isCancelled: isCancelled)
        walk.claim = { [unowned self] reference, _ in
            reference.address.value >= superblock.blockCount || seen.insert(reference.address.value, 1) == nil
        }
        walk.problem = { [unowned self] reference, problem in if case .damaged(let text) = problem { found(reference.address, text) } }
        walk.leaf = { [unowned self] page, range in
            for index in range { take(NodeLayout.key(page, index), NodeLayout.value(page, index)) }
        }
        try walk.walk(superblock.spaceRoot, level: superblock.spaceLevel)
        nodes = walk.nodes
        let page = AlignedBuffer(count: blockSize)
        for (number, item) in regions {
            if isCancelled() { throw Cancelled() }
            do throws(DeviceError) {
                try device.read(item.bitmap, into: page.bytes)
                do throws(FormatError) { try Region.validate(page.bytes, region: number, item: item, id: superblock.id, blockCount: superblock.blockCount) } catch {
                    found(item.bitmap, error.description)
                }
            } catch { found(item.bitmap, "bitmap of region \(number): \(error.description)") }
        }
        try readList(superblock.pendingList, superblock.pendingCRC, itemSize: 16, magic: magicPending, "the pending list")
        for item in checkpoints where item.deadList.value != 0 {
            try readList(
                item.deadList, item.deadListCRC, itemSize: DeadEntry.size, magic: magicDeadList, "the dead list of checkpoint \(item.sequence)")
            let (device, id) = (device, superblock.id)
            dead.append((item, { Self.entries(item, device, id) }))
        }
    }

    private func take(_ key: Key, _ value: RawBytes) {
        guard key.high <= 0xff else { return }
        switch SpaceItemType(rawValue: UInt8(key.high)) {
        case .region:
            if let item = RegionItem(value), key.low < UInt64(superblock.regions) { regions.append((key.low, item)) }
        case .checkpoint:
            guard value.count == CheckpointItem.size else { return }
            let item = CheckpointItem(value)
            if item.isPlausible, item.isPossible, item.sequence.value == key.low { checkpoints.append(item) }
        default: break
        }
    }

    /// Every block of a chain, each vouching for the next.
    private func readList(_ head: BlockNumber, _ crc: UInt32, itemSize: Int, magic: UInt32, _ what: String) throws(Cancelled) {
        let buffer = AlignedBuffer(count: blockSize)
        var at = head
        var crc = crc
        while at.value != 0 {
            if isCancelled() { throw Cancelled() }
            guard at.value < superblock.blockCount, seen.insert(at.value, 1) == nil else { return }
            do throws(DeviceError) { try device.read(at, into: buffer.bytes) } catch {
                return found(at, "\(what): \(error.description)")
            }
            do throws(FormatError) {
                let list = try ListBlock.validate(buffer.bytes, magic: magic, itemSize: itemSize, address: at, crc: crc, id: superblock.id)
                at = list.next
                crc = list.nextCRC
            } catch { return found(at, "\(what): \(error.description)") }
        }
    }

    private static func entries(_ item: CheckpointItem, _ device: any BlockDevice, _ id: FilesystemID) -> [DeadEntry] {
        var result: [DeadEntry] = []
        let buffer = AlignedBuffer(count: blockSize)
        var (at, crc) = (item.deadList, item.deadListCRC)
        // As many blocks as there are said to be entries, at most.
        for _ in 0...item.deadEntries where at.value != 0 && at.value < device.blockCount {
            guard (try? device.read(at, into: buffer.bytes)) != nil,
                let list = try? ListBlock.validate(
                    buffer.bytes, magic: magicDeadList, itemSize: DeadEntry.size, address: at, crc: crc, id: id)
            else { break }
            for index in 0..<list.count {
                result.append(DeadEntry(buffer.bytes.slice(ListBlock.header + index * DeadEntry.size, DeadEntry.size)))
            }
            (at, crc) = (list.next, list.nextCRC)
        }
        return result
    }
}
