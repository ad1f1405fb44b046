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

/// One block that a repair changes.
struct Change: Sendable {
    let block: UInt64
    let oldSum: UInt32
    let newSum: UInt32
    /// What was there: bytes, nothing but zeros, or what cannot be read any more.
    enum Old: Sendable { case bytes, zeros, unreadable }
    let old: Old
}

public struct Changes {
    let overlay: OverlayDevice
    let list: [Change]
    public var count: Int { list.count }

    /// Compares what was written to the overlay with what lies below.
    public init(_ overlay: OverlayDevice) throws(RepairFailure) {
        self.overlay = overlay
        let old = AlignedBuffer(count: blockSize)
        let new = AlignedBuffer(count: blockSize)
        var list: [Change] = []
        for number in overlay.writtenBlocks {
            let block = BlockNumber(number)
            do throws(DeviceError) { try overlay.read(block, into: new.bytes) } catch {
                throw RepairFailure(.device, error.description)
            }
            let isReadable = (try? overlay.below.read(block, into: old.bytes)) != nil
            if isReadable && old.bytes.equals(new.bytes) { continue }
            let kind: Change.Old = !isReadable ? .unreadable : old.bytes.isZero ? .zeros : .bytes
            list.append(Change(block: number, oldSum: isReadable ? old.bytes.crc32c() : 0, newSum: new.bytes.crc32c(), old: kind))
        }
        self.list = list
    }

    /// Writes them to `device`, which lies below the overlay (X2).
    public func write(to device: any BlockDevice, progress: (Double) -> Void = { _ in }) throws(RepairFailure) {
        let slots = Set(Superblock.slots.map(\.value))
        let buffer = AlignedBuffer(count: Self.batch << blockShift, zeroed: false)
        do throws(DeviceError) {
            // A host without room for them says so before anything is written.
            for run in Self.runs(list.map(\.block), limit: .max) { try device.provide(BlockNumber(run.lowerBound), count: UInt64(run.count)) }
            let runs = Self.runs(list.map(\.block).filter { !slots.contains($0) }, limit: Self.batch)
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
        let changed = Set(list.map(\.block))
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
