// DiskState: what a disk holds at one moment, as a value: blocks by number, shared between states, with a hash that tells
// states apart. Blocks of zeros are the same as blocks that were never written.

public import Device
public import Format
public import Memory

/// The contents of one block, shared and never changed.
public final class Page: @unchecked Sendable {
    let memory: AlignedBuffer
    let hash: UInt64

    init(_ bytes: RawBytes) {
        memory = AlignedBuffer(count: blockSize)
        memory.bytes.copy(bytes)
        hash = NameHash.sipHash24(memory.bytes, HashSeed(k0: 0x6461_7962_6f6f_6b21, k1: 0x6578_706c_6f72_6521))
    }

    /// Nil for zeros.
    static func of(_ bytes: RawBytes) -> Page? { bytes.isZero ? nil : Page(bytes) }
}

public struct DiskState: Sendable {
    public private(set) var pages: [UInt64: Page] = [:]
    /// The same for the same contents, whatever led to them.
    public private(set) var hash: UInt64 = 0

    public init() {}

    static func mix(_ block: UInt64, _ page: Page?) -> UInt64 {
        guard let page else { return 0 }
        var value = page.hash ^ (block &* 0x9E37_79B9_7F4A_7C15)
        value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
        return value ^ (value >> 31)
    }

    /// What the hash would be with other contents of one block.
    func hash(replacing block: UInt64, with page: Page?) -> UInt64 {
        hash ^ Self.mix(block, pages[block]) ^ Self.mix(block, page)
    }

    public subscript(block: UInt64) -> Page? {
        get { pages[block] }
        set {
            hash = hash(replacing: block, with: newValue)
            pages[block] = newValue
        }
    }
}

extension DiskState {
    /// Writes the blocks to a device, which holds zeros.
    public func store(_ device: any BlockDevice) throws(DeviceError) {
        for (block, page) in pages { try device.write(BlockNumber(block), page.memory.bytes) }
        try device.flush()
    }
}

/// A disk in memory that starts from a state and notes what is written and flushed, in order. For one thread.
public final class TracedDisk: BlockDevice, @unchecked Sendable {
    public enum Event {
        case write(UInt64, Page?)
        case flush
    }

    public let blockCount: UInt64
    public let isReadOnly = false
    public let name = "disk"
    private let base: DiskState
    private var changed: [UInt64: Page?] = [:]
    public private(set) var events: [Event] = []
    /// Every so many flushes do nothing and say that they did: a bug to be found (0: none).
    var skippedFlush = 0

    public init(_ base: DiskState, blockCount: UInt64) {
        self.base = base
        self.blockCount = blockCount
    }

    /// Everything written, flushed or not.
    public var state: DiskState {
        var state = base
        for (block, page) in changed { state[block] = page }
        return state
    }

    public func forgetEvents() { events.removeAll() }

    public func read(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError) {
        for index in 0..<(bytes.count >> blockShift) {
            let number = block.value + UInt64(index)
            guard number < blockCount else { throw DeviceError(.read, errno: 5, "reading \(number): end of the disk") }
            let target = bytes.slice(index << blockShift, blockSize)
            let page: Page? = if let page = changed[number] { page } else { base[number] }
            if let page { target.copy(page.memory.bytes) } else { target.zero() }
        }
    }

    public func write(_ block: BlockNumber, _ bytes: RawBytes) throws(DeviceError) {
        for index in 0..<(bytes.count >> blockShift) {
            let number = block.value + UInt64(index)
            guard number < blockCount else { throw DeviceError(.write, errno: 5, "writing \(number): end of the disk") }
            let page = Page.of(bytes.slice(index << blockShift, blockSize))
            let old: Page? = if let page = changed[number] { page } else { base[number] }
            // What changes nothing leaves no other state behind.
            if page?.hash == old?.hash { continue }
            changed[number] = .some(page)
            events.append(.write(number, page))
        }
    }

    public func write(_ block: BlockNumber, gathering pages: [RawBytes]) throws(DeviceError) {
        for (index, page) in pages.enumerated() { try write(block + UInt64(index), page) }
    }

    public func flush() throws(DeviceError) { events.append(.flush) }
}
