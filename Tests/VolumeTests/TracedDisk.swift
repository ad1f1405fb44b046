// TracedDisk: a simulated disk that notes every write and flush in order.

import Device
import Format
import Memory

final class TracedDisk: BlockDevice, @unchecked Sendable {
    enum Event {
        case write(BlockNumber, [UInt8])
        case flush
    }
    let disk: SimulatedDisk
    private let lock = Lock()
    private var list: [Event] = []

    init(_ disk: SimulatedDisk) { self.disk = disk }

    var events: [Event] { lock.withLock { list } }
    func forget() { lock.withLock { list.removeAll() } }

    var blockCount: UInt64 { disk.blockCount }
    var isReadOnly: Bool { false }
    var name: String { disk.name }
    func read(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError) { try disk.read(block, into: bytes) }
    func write(_ block: BlockNumber, _ bytes: RawBytes) throws(DeviceError) {
        lock.withLock { list.append(.write(block, bytes.array)) }
        try disk.write(block, bytes)
    }
    func write(_ block: BlockNumber, gathering pages: [RawBytes]) throws(DeviceError) {
        for (index, page) in pages.enumerated() { try write(block + UInt64(index), page) }
    }
    func flush() throws(DeviceError) {
        // Noted when it has succeeded: what follows may rely on it.
        try disk.flush()
        lock.withLock { list.append(.flush) }
    }
}
