// SimulatedDisk: a disk in memory that can lose power (fault model: Docs/TESTING.md).
//
//   write ──► pending, in order ──flush──► durable
//                  │ crash
//                  └──► each pending write is kept, dropped, or torn at 512-byte sectors, independently of the others
//
// (F1) Reads see pending writes. (F2) After `crash` the disk is a new one; whoever holds the old one can write to it, but nobody
// will read that. (F3) From the moment `failsAfter` names, writes and flushes fail; and with `forgets` set the flush that fails takes with
// it what it should have made durable, as a host does that has marked the pages as clean. (F4) With `hostRoom` set the disk is thin:
// every block that is provided or written for the first time takes one of the host's, and when it has none left both
// are refused with ENOSPC.

public import Format
import Glibc
public import Memory

/// SplitMix64: small, seeded, the same everywhere.
public struct SeededRandom: RandomNumberGenerator, Sendable {
    private var state: UInt64
    public init(seed: UInt64) { state = seed }
    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

/// What a medium may do wrong, by chance and from a seed: the line that `description` gives says it all.
public struct DiskFaults: Sendable, CustomStringConvertible {
    public enum Kind: String, Sendable, CaseIterable {
        /// A write that fails, having written nothing.
        case failedWrite
        /// A write that fails, having written some of its sectors.
        case shortWrite
        /// A flush that fails. What it was to make durable is there or not, and no later flush changes that: it counts as clean.
        case failedFlush
        /// A read that fails; the next one may not.
        case failedRead
        /// A write for which the host has no room.
        case noSpace
        /// A write that is acknowledged and never done: the block is stale.
        case lostWrite
        /// A write that is done to another block.
        case misdirectedWrite
        /// Bits of a block change while nobody looks.
        case rot

        /// The medium says that something went wrong.
        public var isReported: Bool {
            switch self {
            case .failedWrite, .shortWrite, .failedFlush, .failedRead, .noSpace: true
            case .lostWrite, .misdirectedWrite, .rot: false
            }
        }
    }
    public let seed: UInt64
    public let kind: Kind
    /// One operation in so many goes wrong.
    public let oneIn: Int

    public init(_ kind: Kind, oneIn: Int, seed: UInt64) {
        self.kind = kind
        self.oneIn = oneIn
        self.seed = seed
    }
    public var description: String { "\(kind.rawValue), one in \(oneIn), seed \(seed)" }
}

public final class SimulatedDisk: BlockDevice, @unchecked Sendable {
    public let blockCount: UInt64
    public let isReadOnly = false
    public let name: String

    private let lock = Lock()
    private var durable: [UInt64: [UInt8]]
    private var pending: [(block: UInt64, bytes: [UInt8])] = []
    private var newest: [UInt64: [UInt8]] = [:]
    /// Writes and flushes done so far.
    public private(set) var operations = 0
    public private(set) var flushes = 0
    /// Number of the operation from which on writes and flushes fail.
    public var failsAfter = Int.max
    public var forgets = false
    /// Blocks that cannot be read.
    public var unreadable: Set<UInt64> = []
    /// Blocks that the host still has to give; nil: as many as the disk has.
    public var hostRoom: Int?
    private var given: Set<UInt64> = []
    /// Written before a flush that failed: on the medium or not, whatever is flushed later.
    private var doubtful: [(block: UInt64, bytes: [UInt8])] = []
    private var faults: DiskFaults?
    private var chance = SeededRandom(seed: 0)
    /// What went wrong so far: the block, and the first word of what should have been written to it.
    public private(set) var incidents: [(kind: DiskFaults.Kind, block: UInt64, magic: UInt32)] = []
    public var isThin: Bool { hostRoom != nil }

    public init(blockCount: UInt64, name: String = "simulated disk") {
        self.blockCount = blockCount
        self.name = name
        durable = [:]
    }

    private init(blockCount: UInt64, name: String, durable: [UInt64: [UInt8]]) {
        self.blockCount = blockCount
        self.name = name
        self.durable = durable
    }

    /// From now on, and until it is nil again, things go wrong.
    public func inject(_ faults: DiskFaults?) {
        lock.withLock {
            self.faults = faults
            if let faults { chance = SeededRandom(seed: faults.seed) }
        }
    }

    /// Whether this operation on `block` goes wrong in one of these ways. With the lock held.
    private func goesWrong(_ kinds: [DiskFaults.Kind], _ block: UInt64, _ bytes: RawBytes? = nil) -> DiskFaults.Kind? {
        guard let faults, kinds.contains(faults.kind), chance.next() % UInt64(faults.oneIn) == 0 else { return nil }
        incidents.append((faults.kind, block, bytes?.u32(at: 0) ?? 0))
        return faults.kind
    }

    private static let zeros = [UInt8](repeating: 0, count: blockSize)

    public func read(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError) {
        try lock.withLock { () throws(DeviceError) in
            rot()
            let fails = goesWrong([.failedRead], block.value) != nil
            for index in 0..<(bytes.count >> blockShift) {
                let number = block.value + UInt64(index)
                guard number < blockCount, !unreadable.contains(number), !fails else {
                    throw DeviceError(.read, errno: EIO, "\(name): reading \(BlockNumber(number))")
                }
                bytes.slice(index << blockShift, blockSize).copy(newest[number] ?? durable[number] ?? Self.zeros)
            }
        }
    }

    public func write(_ block: BlockNumber, _ bytes: RawBytes) throws(DeviceError) {
        try lock.withLock { () throws(DeviceError) in
            operations += 1
            guard operations <= failsAfter else { throw DeviceError(.write, errno: EIO, "\(name): writing \(block)") }
            precondition(block.value + UInt64(bytes.count >> blockShift) <= blockCount, "write beyond the end")
            try give(block, UInt64(bytes.count >> blockShift))
            for index in 0..<(bytes.count >> blockShift) {
                let page = bytes.slice(index << blockShift, blockSize)
                try put(block.value + UInt64(index), page)
            }
        }
    }

    private func put(_ block: UInt64, _ page: RawBytes) throws(DeviceError) {
        rot()
        var target = block
        var copy = page.array
        let fault = goesWrong([.failedWrite, .shortWrite, .noSpace, .lostWrite, .misdirectedWrite], block, page)
        switch fault {
        case .failedWrite, .noSpace:
            throw DeviceError(.write, errno: fault == .noSpace ? ENOSPC : EIO, "\(name): writing \(BlockNumber(block))")
        case .shortWrite:
            let sectors = Int(chance.next() % 8)
            copy.replaceSubrange((sectors * 512)..., with: (newest[block] ?? durable[block] ?? Self.zeros)[(sectors * 512)...])
        case .lostWrite: return
        case .misdirectedWrite: target = chance.next() % blockCount
        default: break
        }
        pending.append((target, copy))
        newest[target] = copy
        if fault == .shortWrite { throw DeviceError(.write, errno: EIO, "\(name): writing \(BlockNumber(block)): short") }
    }

    /// Perhaps flips a bit of some block that was written once. With the lock held.
    private func rot() {
        guard let faults, faults.kind == .rot, !durable.isEmpty, chance.next() % UInt64(faults.oneIn) == 0 else { return }
        let block = durable.keys.sorted()[Int(chance.next() % UInt64(durable.count))]
        let bit = Int(chance.next() % UInt64(blockSize * 8))
        durable[block]![bit >> 3] ^= 1 << UInt8(bit & 7)
        incidents.append((.rot, block, 0))
    }

    public func write(_ block: BlockNumber, gathering pages: [RawBytes]) throws(DeviceError) {
        for (index, page) in pages.enumerated() { try write(block + UInt64(index), page) }
    }

    public func provide(_ block: BlockNumber, count: UInt64) throws(DeviceError) {
        try lock.withLock { () throws(DeviceError) in try give(block, count) }
    }

    private func give(_ block: BlockNumber, _ count: UInt64) throws(DeviceError) {
        guard let room = hostRoom else { return }
        let new = (block.value..<block.value + count).filter { !given.contains($0) }
        guard new.count <= room else { throw DeviceError(.allocate, errno: ENOSPC, "\(name): no room on the host for \(block)") }
        given.formUnion(new)
        hostRoom = room - new.count
    }

    public func flush() throws(DeviceError) {
        try lock.withLock { () throws(DeviceError) in
            operations += 1
            flushes += 1
            if operations > failsAfter || goesWrong([.failedFlush], 0) != nil {
                if forgets { newest.removeAll() } else { doubtful += pending }
                pending.removeAll()
                throw DeviceError(.flush, errno: EIO, "\(name): flush")
            }
            for (block, bytes) in pending { durable[block] = bytes }
            let isWrittenAgain = Set(pending.map(\.block))
            doubtful.removeAll { isWrittenAgain.contains($0.block) }
            pending.removeAll(keepingCapacity: true)
            // What is in doubt is still what a read returns.
            newest.removeAll(keepingCapacity: true)
            for (block, bytes) in doubtful { newest[block] = bytes }
        }
    }

    /// The disk after a power failure now, by chance: of the writes since the last flush each block is kept, dropped, or torn.
    public func crash(_ random: inout some RandomNumberGenerator) -> SimulatedDisk {
        lock.withLock {
            var result = durable
            for (block, bytes) in doubtful + pending {
                switch Int.random(in: 0..<4, using: &random) {
                case 0: break
                case 1:
                    var torn = result[block] ?? Self.zeros
                    for sector in 0..<8 where Bool.random(using: &random) {
                        torn.replaceSubrange(sector * 512..<(sector + 1) * 512, with: bytes[sector * 512..<(sector + 1) * 512])
                    }
                    result[block] = torn
                default: result[block] = bytes
                }
            }
            return SimulatedDisk(blockCount: blockCount, name: name, durable: result)
        }
    }

    /// The disk after the process, not the machine, died: everything written is there.
    public func copy() -> SimulatedDisk {
        lock.withLock {
            let copy = SimulatedDisk(blockCount: blockCount, name: name, durable: durable.merging(newest) { $1 })
            (copy.hostRoom, copy.given) = (hostRoom, given)
            return copy
        }
    }

    /// Changes bytes at rest.
    public func corrupt(_ block: BlockNumber, _ change: (inout [UInt8]) -> Void) {
        lock.withLock {
            var bytes = newest[block.value] ?? durable[block.value] ?? Self.zeros
            change(&bytes)
            newest[block.value] = nil
            durable[block.value] = bytes
        }
    }
}
