// Content: reading a file. Under the lock a plan is made: what lies in memory is copied, holes are zeroed, and the rest is
// listed; the listed blocks are then read into place and verified without the lock.
//
// A block listed in a plan may die, be given up by the horizon and be written again before it is read. Its checksum then
// fails; the caller makes a new plan and gives up only if that one says the same (see Volume.read).

public import Format
import Device
public import Memory

/// Where the parts of one read come from. Reused, so that reading allocates nothing.
public final class ReadPlan {
    struct Piece {
        var home: BlockNumber
        var blocks: Int
        /// Within the destination, in bytes.
        var destination: Int
        /// Of the first block's CRC in `crcs`.
        var firstCRC: Int
        var fileBlock: UInt64
    }
    var pieces: [Piece] = []
    var crcs: [UInt32] = []
    var inode: InodeNumber = .none
    /// Bytes that the read delivers.
    public internal(set) var count = 0
    /// For reads that do not begin and end at block boundaries.
    let bounce = AlignedBuffer(count: blockSize)

    public init() {}
}

extension View {
    /// Plans reading `buffer.count` bytes at `offset`; `plan.count` says how many there are. Whole blocks that have to come from
    /// the device are listed in the plan.
    func plan(
        _ plan: ReadPlan, _ inode: InodeNumber, at offset: UInt64, into buffer: RawBytes
    ) throws(ViewError) {
        plan.pieces.removeAll(keepingCapacity: true)
        plan.crcs.removeAll(keepingCapacity: true)
        plan.inode = inode
        plan.count = 0
        let item = try attributes(inode).item
        guard item.isRegular else { throw .refused(item.isDirectory ? .isDirectory : .invalid) }
        guard offset < item.length else { return }
        let count = Int(min(UInt64(buffer.count), item.length - offset))
        let end = offset + UInt64(count)
        var at = offset
        while at < end {
            let block = at >> UInt64(blockShift)
            let found = try extent(inode, from: block)
            guard let (extent, bytes) = found, extent.fileBlock << UInt64(blockShift) < end else {
                buffer.zero(Int(at - offset), Int(end - at))
                break
            }
            let start = extent.fileBlock << UInt64(blockShift)
            if start > at {
                buffer.zero(Int(at - offset), Int(start - at))
                at = start
            }
            let stop = min(extent.end << UInt64(blockShift), end)
            if extent.item.isUnwritten {
                buffer.zero(Int(at - offset), Int(stop - at))
            } else {
                planExtent(plan, extent, bytes, from: at, to: stop, offset: offset, buffer)
            }
            at = stop
        }
        plan.count = count
    }

    private func planExtent(
        _ plan: ReadPlan, _ extent: FoundExtent, _ bytes: RawBytes, from: UInt64, to: UInt64, offset: UInt64,
        _ buffer: RawBytes
    ) {
        var at = from
        while at < to {
            let block = at >> UInt64(blockShift)
            let home = extent.home(block)
            let within = Int(at & UInt64(blockSize - 1))
            let length = min(blockSize - within, Int(to - at))
            let slot = pages.cache.lookup(home.value)
            let destination = Int(at - offset)
            if !slot.isNone {
                buffer.copy(pages.cache.page(slot).slice(within, length), to: destination)
            } else {
                let crc = ExtentItem.crc(bytes, Int(block - extent.fileBlock))
                if let last = plan.pieces.last, last.home.value + UInt64(last.blocks) == home.value,
                    last.destination + last.blocks << blockShift == destination - within,
                    last.fileBlock + UInt64(last.blocks) == block
                {
                    plan.pieces[plan.pieces.count - 1].blocks += 1
                } else {
                    plan.pieces.append(
                        ReadPlan.Piece(
                            home: home, blocks: 1, destination: destination - within, firstCRC: plan.crcs.count,
                            fileBlock: block))
                }
                plan.crcs.append(crc)
            }
            at += UInt64(length)
        }
    }

    /// Reads and verifies what the plan lists. Needs no lock. `buffer` is that of the plan.
    func fetch(_ plan: ReadPlan, into buffer: RawBytes) throws(ViewError) {
        for piece in plan.pieces {
            var first = 0
            var blocks = piece.blocks
            // Blocks that stick out of the buffer at either end go through the bounce page.
            if piece.destination < 0 {
                try bounce(plan, piece, 0, buffer)
                first = 1
            }
            if blocks > first, piece.destination + blocks << blockShift > buffer.count {
                try bounce(plan, piece, blocks - 1, buffer)
                blocks -= 1
            }
            guard blocks > first else { continue }
            let target = buffer.slice(piece.destination + first << blockShift, (blocks - first) << blockShift)
            if UInt(bitPattern: target.pointer) & 511 != 0 {
                // Not aligned for O_DIRECT: block by block.
                for index in first..<blocks { try bounce(plan, piece, index, buffer) }
                continue
            }
            do throws(DeviceError) { try device.read(piece.home + UInt64(first), into: target) } catch {
                // Which of them it is.
                for index in first..<blocks { try bounce(plan, piece, index, buffer) }
                continue
            }
            for index in first..<blocks {
                let sum = target.slice((index - first) << blockShift, blockSize).crc32c()
                guard sum == plan.crcs[piece.firstCRC + index] else { throw mismatch(plan, piece, index, sum) }
            }
        }
    }

    private func mismatch(_ plan: ReadPlan, _ piece: ReadPlan.Piece, _ index: Int, _ sum: UInt32) -> ViewError {
        .damaged(
            "\(piece.home + UInt64(index)) (inode \(plan.inode), offset \((piece.fileBlock + UInt64(index)) << UInt64(blockShift))):"
                + " checksum \(hex(sum)), expected \(hex(plan.crcs[piece.firstCRC + index]))")
    }

    private func bounce(_ plan: ReadPlan, _ piece: ReadPlan.Piece, _ index: Int, _ buffer: RawBytes) throws(ViewError) {
        let page = plan.bounce.bytes
        do throws(DeviceError) { try device.read(piece.home + UInt64(index), into: page) } catch {
            let offset = (piece.fileBlock + UInt64(index)) << UInt64(blockShift)
            throw .device(DeviceError(.read, errno: error.errno, "\(error.description) (inode \(plan.inode), offset \(offset))"))
        }
        let sum = page.crc32c()
        guard sum == plan.crcs[piece.firstCRC + index] else { throw mismatch(plan, piece, index, sum) }
        let place = piece.destination + index << blockShift
        let from = max(0, -place)
        let to = min(blockSize, plan.count - place)
        if to > from { buffer.copy(page.slice(from, to - from), to: place + from) }
    }

    /// Reads in one go, for callers that own the view alone. Returns the bytes read.
    public func read(
        _ inode: InodeNumber, at offset: UInt64, into buffer: RawBytes, _ plan: ReadPlan
    ) throws(ViewError) -> Int {
        try self.plan(plan, inode, at: offset, into: buffer)
        try fetch(plan, into: buffer)
        trim()
        return plan.count
    }

    /// The first offset at or after `offset` that holds data, or a hole.
    public func seek(_ inode: InodeNumber, from offset: UInt64, to target: SeekTarget) throws(ViewError) -> UInt64 {
        let item = try attributes(inode).item
        guard item.isRegular else { throw .refused(.invalid) }
        guard offset < item.length else { throw .refused(.noSuchOffset) }
        var block = offset >> UInt64(blockShift)
        while let (extent, _) = try extent(inode, from: block) {
            let start = extent.fileBlock << UInt64(blockShift)
            guard start < item.length else { break }
            let isData = !extent.item.isUnwritten
            switch target {
            case .data where isData: return max(start, offset)
            case .hole:
                // All was data up to here; the hole is a gap before this extent, or one that nothing was written to.
                let here = max(offset, block << UInt64(blockShift))
                if !isData || start > here { return here }
            default: break
            }
            block = extent.end
        }
        switch target {
        case .data: throw .refused(.noSuchOffset)
        case .hole: return min(max(offset, block << UInt64(blockShift)), item.length)
        }
    }
}
