// OverlayDevice: another device with the writes kept in memory, for whoever wants to see what recovery or a repair would make of an
// image without touching it (`fsck`, which may write them out later: Rebuild/Changes) and for tests.
//
//   write ──► blocks here          read ◄── blocks here, else the device below
//
// (O1) Nothing reaches the device below: no write, no flush, no backing, no discard.
// (O2) With `dropsEqual`, what is written as it lies below is not kept: a repair writes much that is there already.
// (O3) At most `limit` blocks that are not all zero are held; what asks for more is told ENOMEM and has to stop.

public import Format
import Glibc
public import Memory

public final class OverlayDevice: BlockDevice, @unchecked Sendable {
    public let below: any BlockDevice
    public var blockCount: UInt64 { below.blockCount }
    public let isReadOnly = false
    public var name: String { below.name }

    private let lock = Lock()
    /// Written blocks; nil stands for one of zeros (a journal's fresh chunks are megabytes of them).
    private var blocks: [UInt64: AlignedBuffer?] = [:]
    private var held = 0
    private let limit: Int
    private let dropsEqual: Bool
    private static let batch = 64
    /// What lies below, to compare with.
    private let window: AlignedBuffer?

    /// 1 GiB is far above what recovery may leave dirty (VolumeLimits).
    public init(_ below: any BlockDevice, limit: Int = 1 << 18, dropsEqual: Bool = false) {
        self.below = below
        self.limit = limit
        self.dropsEqual = dropsEqual
        window = dropsEqual ? AlignedBuffer(count: Self.batch << blockShift) : nil
    }

    /// The block is again what it is below.
    public func forget(_ block: BlockNumber) {
        lock.withLock { remove(block.value) }
    }

    /// Blocks that were written.
    public var written: Int { lock.withLock { blocks.count } }
    /// Their numbers, ascending.
    public var writtenBlocks: [UInt64] { lock.withLock { blocks.keys.sorted() } }

    public func read(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError) {
        let count = UInt64(bytes.count >> blockShift)
        // A block number may come from the image itself.
        guard block.value < blockCount, count <= blockCount - block.value else {
            throw DeviceError(.read, errno: EIO, "\(name): reading \(block): end of the image")
        }
        // What lies here entirely need not be readable below.
        let here = lock.withLock { () -> UInt64 in
            (block.value..<(block.value + count)).reduce(0) { blocks.index(forKey: $1) == nil ? $0 : $0 + 1 }
        }
        if here < count { try below.read(block, into: bytes) }
        guard here > 0 else { return }
        lock.withLock {
            for index in 0..<count {
                guard let entry = blocks[block.value + index] else { continue }
                let page = bytes.slice(Int(index) << blockShift, blockSize)
                if let entry { page.copy(entry.bytes) } else { page.zero() }
            }
        }
    }

    public func write(_ block: BlockNumber, _ bytes: RawBytes) throws(DeviceError) {
        try write(block, count: bytes.count >> blockShift) { bytes.slice($0 << blockShift, blockSize) }
    }

    public func write(_ block: BlockNumber, gathering pages: [RawBytes]) throws(DeviceError) {
        try write(block, count: pages.count) { pages[$0] }
    }

    private func write(_ block: BlockNumber, count: Int, _ page: (Int) -> RawBytes) throws(DeviceError) {
        guard block.value < blockCount, UInt64(count) <= blockCount - block.value else {
            throw DeviceError(.write, errno: ENOSPC, "\(name): writing \(block): behind the end")
        }
        try lock.withLock { () throws(DeviceError) in
            var index = 0
            while index < count {
                let batch = min(count - index, Self.batch)
                let old = window?.bytes.slice(0, batch << blockShift)
                let isReadable = old.map { (try? below.read(block + UInt64(index), into: $0)) != nil } ?? false
                for part in 0..<batch {
                    let new = page(index + part)
                    let number = block.value + UInt64(index + part)
                    // Where a neighbour cannot be read, all are kept.
                    if isReadable, old!.slice(part << blockShift, blockSize).equals(new) { remove(number) } else { try store(number, new) }
                }
                index += batch
            }
        }
    }

    private func remove(_ number: UInt64) {
        if let old = blocks.removeValue(forKey: number), old != nil { held -= 1 }
    }

    private func store(_ number: UInt64, _ page: RawBytes) throws(DeviceError) {
        let old = blocks[number] ?? nil
        if page.isZero {
            if old != nil { held -= 1 }
            blocks[number] = .some(nil)
            return
        }
        if let old {
            old.bytes.copy(page)
            return
        }
        guard held < limit else {
            throw DeviceError(.write, errno: ENOMEM, "\(name): more than \(limit) blocks would have to be kept in memory")
        }
        let copy = AlignedBuffer(count: blockSize)
        copy.bytes.copy(page)
        blocks[number] = copy
        held += 1
    }

    public func flush() throws(DeviceError) {}

    /// Another overlay of the same device, with the same blocks written.
    public func copy() throws(DeviceError) -> OverlayDevice {
        let other = OverlayDevice(below, limit: limit, dropsEqual: dropsEqual)
        let page = AlignedBuffer(count: blockSize)
        for number in writtenBlocks {
            try read(BlockNumber(number), into: page.bytes)
            try other.write(BlockNumber(number), page.bytes)
        }
        return other
    }
}
