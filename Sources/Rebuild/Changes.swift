// Changes: what a repair in an overlay comes to, and how it reaches the medium.
//
//   overlay (repaired, checked) ─► blocks that differ ─► undo file, synced ─► blocks ─► flush ─► older slot ─► flush ─► newer ─► flush
//
// (X1) Nothing is written to the device before the undo file is on its medium (or was declined).
// (X2) The superblock slots come last, each after a flush. A repair puts what is new into blocks that nothing reached before (R2 in
//      Repairer), so until a slot is there, the device holds what it held: a power failure on the way leaves an image that the
//      next fsck finds in the same state, and repairs the same way.
// (X3) Between the two slots, the one that is not written yet names what it named before, all of it still there.

public import Device
import Format
import Memory

public struct RepairFailure: Error, Sendable, CustomStringConvertible {
    public enum Kind: Sendable, Equatable { case cancelled, device, undo, damaged }
    public let kind: Kind
    public let description: String
    public init(_ kind: Kind, _ description: String) {
        self.kind = kind
        self.description = description
    }
}

/// CRC32C of each sector of a block: what the power can leave of a write is whole sectors.
struct SectorSums: Sendable {
    static let size = 512
    static let count = blockSize / size
    private var sums = SIMD8<UInt32>()

    init(_ sum: (Int) -> UInt32) { for sector in 0..<Self.count { sums[sector] = sum(sector) } }
    init(of page: RawBytes) { self.init { page.slice($0 * Self.size, Self.size).crc32c() } }
    subscript(sector: Int) -> UInt32 { sums[sector] }
}

/// One block that a repair changes, or a slot that it leaves as it is.
struct Change: Sendable {
    let block: UInt64
    let oldSum: UInt32
    let newSum: UInt32
    let newSectors: SectorSums
    let isWritten: Bool
    /// What was there: bytes, nothing but zeros, or what cannot be read any more.
    enum Old: Sendable { case bytes, zeros, unreadable }
    let old: Old
}

public struct Changes {
    let overlay: OverlayDevice
    let list: [Change]
    /// Of blocks that a repair writes.
    public let count: Int

    /// Compares what was written to the overlay with what lies below. If anything is changed, both slots are listed: whether they are still
    /// what they were tells whether somebody has written to the image since.
    public init(_ overlay: OverlayDevice) throws(RepairFailure) {
        self.overlay = overlay
        let old = AlignedBuffer(count: blockSize)
        let new = AlignedBuffer(count: blockSize)
        var list: [Change] = []
        let written = Set(overlay.writtenBlocks)
        for number in written.union(Superblock.slots.map(\.value)).sorted() {
            let block = BlockNumber(number)
            do throws(DeviceError) { try overlay.read(block, into: new.bytes) } catch {
                throw RepairFailure(.device, error.description)
            }
            let isReadable = (try? overlay.below.read(block, into: old.bytes)) != nil
            let isSame = isReadable && old.bytes.equals(new.bytes)
            if isSame && !Superblock.slots.contains(block) { continue }
            let kind: Change.Old = !isReadable ? .unreadable : old.bytes.isZero ? .zeros : .bytes
            list.append(Change(
                block: number, oldSum: isReadable ? old.bytes.crc32c() : 0, newSum: new.bytes.crc32c(), newSectors: SectorSums(of: new.bytes),
                isWritten: !isSame, old: kind))
        }
        count = list.reduce(0) { $0 + ($1.isWritten ? 1 : 0) }
        self.list = count > 0 ? list : []
    }

    private var blocks: [UInt64] { list.filter(\.isWritten).map(\.block) }

    /// Makes sure that the host has room for them.
    public func provide(on device: any BlockDevice) throws(RepairFailure) {
        do throws(DeviceError) {
            for run in Self.runs(blocks, limit: .max) { try device.provide(BlockNumber(run.lowerBound), count: UInt64(run.count)) }
        } catch { throw RepairFailure(.device, error.description) }
    }

    /// Writes them to `device`, which lies below the overlay (X2).
    public func write(to device: any BlockDevice, progress: (Double) -> Void = { _ in }) throws(RepairFailure) {
        let slots = Set(Superblock.slots.map(\.value))
        let buffer = AlignedBuffer(count: Self.batch << blockShift, zeroed: false)
        do throws(DeviceError) {
            let runs = Self.runs(blocks.filter { !slots.contains($0) }, limit: Self.batch)
            for (index, run) in runs.enumerated() {
                let bytes = buffer.bytes.slice(0, run.count << blockShift)
                try overlay.read(BlockNumber(run.lowerBound), into: bytes)
                try device.write(BlockNumber(run.lowerBound), bytes)
                if index % 64 == 0 { progress(Double(index) / Double(runs.count)) }
            }
            try device.flush()
            for block in slotsInOrder() {
                let bytes = buffer.bytes.slice(0, blockSize)
                try overlay.read(BlockNumber(block), into: bytes)
                try device.write(BlockNumber(block), bytes)
                try device.flush()
            }
        } catch { throw RepairFailure(.device, error.description) }
    }

    private static let batch = 256

    /// Changed slots, the one of the higher generation last.
    private func slotsInOrder() -> [UInt64] {
        let page = AlignedBuffer(count: blockSize)
        func generation(_ slot: Int) -> UInt64 {
            guard (try? overlay.read(Superblock.slots[slot], into: page.bytes)) != nil else { return 0 }
            return (try? Superblock(page.bytes, slot: slot))?.generation ?? 0
        }
        let changed = Set(blocks)
        return [0, 1].sorted { generation($0) < generation($1) }.map { Superblock.slots[$0].value }.filter(changed.contains)
    }

    /// Neighbours together.
    static func runs(_ blocks: [UInt64], limit: Int) -> [Range<UInt64>] {
        var runs: [Range<UInt64>] = []
        for block in blocks {
            if let last = runs.last, last.upperBound == block, last.count < limit {
                runs[runs.count - 1] = last.lowerBound..<(block + 1)
            } else {
                runs.append(block..<(block + 1))
            }
        }
        return runs
    }
}
