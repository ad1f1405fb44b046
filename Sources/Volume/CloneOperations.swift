// CloneOperations: copy_file_range, by sharing blocks where that is possible and by copying where it is not.
//
// Shared are whole blocks that lie equally in both files, and the source's last one in part if nothing of the destination
// lies behind it. A block that has not reached its home yet (patched since the last checkpoint) is copied: two files must
// never share what is still to be posted (Space/Shares.swift; Apply, `shared`).

import Device
public import Format
import Journal
import Memory
import Space
import Tree

extension Volume {
    /// Bytes that one call shares, and that one call copies, at most.
    private static let mostShared: UInt64 = 1 << 30
    private static let mostCopied: UInt64 = 8 << 20
    /// Blocks of one record, at most, and its segments.
    private static let stepBlocks: UInt64 = 8192
    private static let stepSegments = 256

    /// copy_file_range(2). Returns how many bytes, perhaps fewer than asked; 0 at the end of the source.
    public func copyRange(
        from source: InodeNumber, at sourceOffset: UInt64, to destination: InodeNumber, at offset: UInt64, length: UInt64,
        _ caller: Caller
    ) throws(OperationError) -> UInt64 {
        // 0 would mean the end of the source.
        guard sourceOffset <= Limit.fileSize, offset < Limit.fileSize else { throw .tooLarge }
        let wanted = min(length, Limit.fileSize - max(sourceOffset, offset), Self.mostShared)
        // As the kernel has it, too: a record's later segments would be of blocks that its earlier ones have replaced.
        guard source != destination || max(sourceOffset, offset) - min(sourceOffset, offset) >= wanted else { throw .invalid }
        let mask = UInt64(blockSize - 1)
        let isAligned = (sourceOffset ^ offset) & mask == 0
        var buffer: AlignedBuffer?
        var done: UInt64 = 0
        var copied: UInt64 = 0
        do throws(OperationError) {
            try finishTrim(destination)
            while done < wanted && copied < Self.mostCopied {
                let from = sourceOffset + done
                if isAligned && from & mask == 0 {
                    let shared = try share(source, from, destination, offset + done, wanted - done, caller)
                    done += shared
                    if shared > 0 { continue }
                }
                // To the next block that could be shared.
                let step = isAligned ? UInt64(blockSize) - from & mask : 1 << 20
                if buffer == nil { buffer = AlignedBuffer(count: 1 << 20) }
                let bytes = buffer!.bytes
                let count = try read(source, at: from, into: bytes.slice(0, Int(min(wanted - done, step))))
                if count == 0 { break }
                try write(destination, at: offset + done, bytes.slice(0, count), killPrivileges: false, caller)
                done += UInt64(count)
                copied += UInt64(count)
            }
        } catch {
            // What was done is done.
            guard done > 0 else { throw error }
        }
        withExtendedLifetime(buffer) {}
        return done
    }

    private struct Piece {
        var fileBlock: UInt64
        var blocks: UInt64
        var home: BlockNumber
        var birth: SequenceNumber
        /// Nil for a hole.
        var crcs: RawBytes?
    }

    /// Shares what it can from the start of the range on, in one record; both offsets are those of blocks. Returns bytes, 0 when the
    /// first block cannot be shared.
    private func share(
        _ source: InodeNumber, _ from: UInt64, _ destination: InodeNumber, _ to: UInt64, _ length: UInt64, _ caller: Caller
    ) throws(OperationError) -> UInt64 {
        try mutate(blocks: 8) { () throws(ViewError) -> UInt64 in
            let have = try view.attributes(source).item
            let item = try view.attributes(destination).item
            for file in [have, item] where !file.isRegular { throw .refused(file.isDirectory ? .isDirectory : .invalid) }
            guard from < have.length else { return 0 }
            try finishTrimNow(destination)
            let end = min(from + length, have.length)
            let mask = UInt64(blockSize - 1)
            var last = end >> UInt64(blockShift)
            if end & mask != 0 && end == have.length && to + (end - from) >= item.length { last += 1 }
            let first = from >> UInt64(blockShift)
            let target = to >> UInt64(blockShift)
            last = min(last, first + Self.stepBlocks)
            last = try first + boundedByExtents(destination, target, last - min(first, last))
            let pieces = try piecesToShare(source, first, last, target: target)
            guard let final = pieces.last else { return 0 }
            try view.bringInExtents(destination, from: target, to: final.fileBlock + final.blocks)
            let count = min((final.fileBlock + final.blocks - target) << UInt64(blockShift), end - from)
            try performClone(
                pieces, source, from, destination, to, count, size: max(item.length, to + count),
                mode: item.mode, caller)
            return count
        }
    }

    /// Of `count` blocks from `start` on, those that may be replaced by one record (invariant 12).
    private func boundedByExtents(_ inode: InodeNumber, _ start: UInt64, _ count: UInt64) throws(ViewError) -> UInt64 {
        var at = start
        var extents = 0
        while at < start + count, let (extent, _) = try view.extent(inode, from: at), extent.fileBlock < start + count {
            extents += 1
            if extents >= ReclaimPayload.maximumExtents / 4 { return min(count, extent.end - start) }
            at = extent.end
        }
        return count
    }

    /// What blocks [first, last) of the source become in the destination, up to the first that cannot be shared.
    private func piecesToShare(
        _ source: InodeNumber, _ first: UInt64, _ last: UInt64, target: UInt64
    ) throws(ViewError) -> [Piece] {
        var pieces: [Piece] = []
        var at = first
        func hole(_ end: UInt64) {
            guard at < end else { return }
            pieces.append(
                Piece(fileBlock: target + (at - first), blocks: end - at, home: BlockNumber(0), birth: SequenceNumber(0), crcs: nil))
            at = end
        }
        while at < last && pieces.count < Self.stepSegments {
            guard let (extent, bytes) = try view.extent(source, from: at), extent.fileBlock < last else {
                hole(last)
                break
            }
            hole(extent.fileBlock)
            let end = min(extent.end, last)
            if extent.item.isUnwritten {
                hole(end)
                continue
            }
            var stop = at
            while stop < end, view.pages.isSettled(extent.home(stop)) { stop += 1 }
            guard stop > at else { break }
            let crcs = bytes.slice(ExtentItem.header + Int(at - extent.fileBlock) * 4, Int(stop - at) * 4)
            pieces.append(
                Piece(
                    fileBlock: target + (at - first), blocks: stop - at, home: extent.home(at), birth: extent.item.birth, crcs: crcs))
            at = stop
            if stop < end { break }
        }
        return pieces
    }

    private func performClone(
        _ pieces: [Piece], _ source: InodeNumber, _ from: UInt64, _ destination: InodeNumber, _ to: UInt64, _ length: UInt64,
        size: UInt64, mode: UInt32, _ caller: Caller
    ) throws(ViewError) {
        var payload = ClonePayload.fixed + ContentPayload.fixed
        for piece in pieces { payload += piece.crcs.map { Segment.size(shared: $0.count / 4) } ?? Segment.fixed }
        try perform(.clone, payload: payload, caller, time: now()) { bytes in
            ClonePayload.store(bytes, source: source, offset: from)
            let content = bytes.from(ClonePayload.fixed)
            ContentPayload.store(
                content, inode: destination, offset: to, length: length, size: size, mode: mode, segments: pieces.count,
                fallocateMode: 0)
            var at = ContentPayload.firstSegment
            for piece in pieces {
                if let crcs = piece.crcs {
                    Segment.storeShared(
                        content.from(at), fileBlock: piece.fileBlock, home: piece.home, birth: piece.birth, crcs: crcs)
                    at += Segment.size(shared: crcs.count / 4)
                } else {
                    Segment.storePlain(
                        content.from(at), kind: .hole, fileBlock: piece.fileBlock, home: piece.home, blocks: Int(piece.blocks))
                    at += Segment.fixed
                }
            }
        }
    }
}
