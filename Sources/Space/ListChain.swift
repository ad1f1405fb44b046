// ListChain: dead lists and pending lists on disk, blocks chained by address and CRC, written last block first so that each can
// hold the CRC of its successor (Format/SpaceItems.swift, ListBlock).

public import Device
public import Format
public import Memory

public enum ListError: Error, Sendable {
    case damaged(FormatError)
    case device(DeviceError)
}

public enum ListChain {
    public static func blocksNeeded(items: Int, itemSize: Int) -> Int {
        let capacity = ListBlock.capacity(itemSize: itemSize)
        return (items + capacity - 1) / capacity
    }

    /// Writes `count` items, encoded by `store`, into exactly the blocks that they need. Returns head and CRC; block 0 when
    /// there are none.
    public static func write(
        _ count: Int, itemSize: Int, magic: UInt32, to blocks: [BlockNumber], id: FilesystemID, device: any BlockDevice,
        store: (Int, RawBytes) -> Void
    ) throws(DeviceError) -> (head: BlockNumber, crc: UInt32) {
        let capacity = ListBlock.capacity(itemSize: itemSize)
        precondition(blocks.count >= blocksNeeded(items: count, itemSize: itemSize))
        var next = BlockNumber(0)
        var crc: UInt32 = 0
        let buffer = AlignedBuffer(count: blockSize)
        let page = buffer.bytes
        for index in stride(from: blocks.count - 1, through: 0, by: -1) {
            page.zero()
            let first = min(index * capacity, count)
            let here = min(capacity, count - first)
            for item in 0..<here { store(first + item, page.slice(ListBlock.header + item * itemSize, itemSize)) }
            crc = ListBlock.seal(page, magic: magic, address: blocks[index], id: id, next: next, nextCRC: crc, count: here)
            next = blocks[index]
            try device.write(next, page)
        }
        return (next, crc)
    }

    /// Reads a list from its head; gives each item to `body`. Returns the blocks that the list itself takes.
    public static func read(
        _ head: BlockNumber, crc: UInt32, itemSize: Int, magic: UInt32, id: FilesystemID, device: any BlockDevice,
        _ body: (RawBytes) -> Void
    ) throws(ListError) -> [BlockNumber] {
        var blocks: [BlockNumber] = []
        var seen = Set<BlockNumber>()
        let buffer = AlignedBuffer(count: blockSize)
        var at = head
        var crc = crc
        while at.value != 0 {
            guard at.value < device.blockCount, seen.insert(at).inserted else {
                throw .damaged(FormatError("list block at \(at): outside of the image, or the list runs in a circle"))
            }
            do throws(DeviceError) { try device.read(at, into: buffer.bytes) } catch { throw .device(error) }
            let found: (count: Int, next: BlockNumber, nextCRC: UInt32)
            do throws(FormatError) {
                found = try ListBlock.validate(buffer.bytes, magic: magic, itemSize: itemSize, address: at, crc: crc, id: id)
            } catch { throw .damaged(error) }
            for item in 0..<found.count { body(buffer.bytes.slice(ListBlock.header + item * itemSize, itemSize)) }
            blocks.append(at)
            at = found.next
            crc = found.nextCRC
        }
        return blocks
    }

    static let runSize = 16

    public static func readPending(
        _ head: BlockNumber, crc: UInt32, id: FilesystemID, device: any BlockDevice
    ) throws(ListError) -> (runs: [BlockRun], blocks: [BlockNumber]) {
        var runs: [BlockRun] = []
        let blocks = try read(head, crc: crc, itemSize: runSize, magic: magicPending, id: id, device: device) { item in
            runs.append(BlockRun(start: BlockNumber(item.u64(at: 0)), count: item.u64(at: 8)))
        }
        try check(runs, head, device)
        return (runs, blocks)
    }

    public static func readDead(
        _ head: BlockNumber, crc: UInt32, id: FilesystemID, device: any BlockDevice
    ) throws(ListError) -> (entries: [DeadEntry], blocks: [BlockNumber]) {
        var entries: [DeadEntry] = []
        let blocks = try read(head, crc: crc, itemSize: DeadEntry.size, magic: magicDeadList, id: id, device: device) { item in
            entries.append(DeadEntry(item))
        }
        try check(entries.lazy.map { BlockRun(start: $0.start, count: UInt64($0.count)) }, head, device)
        return (entries, blocks)
    }

    private static func check(
        _ runs: some Sequence<BlockRun>, _ head: BlockNumber, _ device: any BlockDevice
    ) throws(ListError) {
        for run in runs where run.count == 0 || run.count > device.blockCount || run.start.value > device.blockCount - run.count {
            throw .damaged(FormatError("list at \(head): \(run.count) blocks from \(run.start) lie outside of the image"))
        }
    }
}
