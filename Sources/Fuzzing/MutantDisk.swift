// MutantDisk: an image in memory, shared until it is written to: a copy for each way of opening it costs next to nothing.
//
// A write behind its end is the fuzzer's to notice: nothing that an image says may lead to one.

public import Device
public import Format
import Glibc
public import Memory

public final class MutantDisk: BlockDevice, @unchecked Sendable {
    public let blockCount: UInt64
    public let isReadOnly = false
    /// An image file with holes, as most are.
    public let isThin = true
    public let name = "mutant"
    private let lock = Lock()
    private var blocks: [UInt64: [UInt8]]
    private var outside: String?

    public init(blockCount: UInt64, blocks: [UInt64: [UInt8]] = [:]) {
        self.blockCount = blockCount
        self.blocks = blocks
    }

    public var contents: [UInt64: [UInt8]] { lock.withLock { blocks } }
    /// What was written, or was to be, where nothing is.
    public var violation: String? { lock.withLock { outside } }
    public func copy() -> MutantDisk { MutantDisk(blockCount: blockCount, blocks: contents) }

    public func block(_ number: UInt64) -> [UInt8] { lock.withLock { blocks[number] ?? Self.zeros } }
    public func set(_ number: UInt64, _ bytes: [UInt8]) { lock.withLock { blocks[number] = bytes } }

    private static let zeros = [UInt8](repeating: 0, count: blockSize)

    public func read(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError) {
        try lock.withLock { () throws(DeviceError) in
            let count = UInt64(bytes.count >> blockShift)
            guard block.value < blockCount, count <= blockCount - block.value else {
                throw DeviceError(.read, errno: EIO, "\(name): reading \(block): end of the image")
            }
            for index in 0..<count {
                let page = bytes.slice(Int(index) << blockShift, blockSize)
                if let found = blocks[block.value + index] { page.copy(found) } else { page.zero() }
            }
        }
    }

    public func write(_ block: BlockNumber, _ bytes: RawBytes) throws(DeviceError) {
        try lock.withLock { () throws(DeviceError) in
            let count = UInt64(bytes.count >> blockShift)
            guard block.value < blockCount, count <= blockCount - block.value else {
                outside = outside ?? "\(count) blocks were to be written to \(block), the image has \(blockCount)"
                throw DeviceError(.write, errno: ENOSPC, "\(name): writing \(block): behind the end")
            }
            for index in 0..<count {
                let page = bytes.slice(Int(index) << blockShift, blockSize)
                // Journals are zeroed ahead by the megabyte.
                if page.isZero && blocks[block.value + index] == nil { continue }
                blocks[block.value + index] = page.array
            }
        }
    }

    public func write(_ block: BlockNumber, gathering pages: [RawBytes]) throws(DeviceError) {
        for (index, page) in pages.enumerated() { try write(BlockNumber(block.value &+ UInt64(index)), page) }
    }

    public func provide(_ block: BlockNumber, count: UInt64) throws(DeviceError) {
        lock.withLock {
            guard block.value > blockCount || count > blockCount - block.value else { return }
            outside = outside ?? "room was asked for \(count) blocks at \(block), the image has \(blockCount)"
        }
    }

    public func flush() throws(DeviceError) {}
}
