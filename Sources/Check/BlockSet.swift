// BlockSet: a set of blocks, one bit each, in pieces that exist once something in them is set: memory follows what is used,
// not how large an image claims to be.

import Format

package struct BlockSet: Sendable {
    package static let pieceBlocks = UInt64(Region.blocks)
    private static let pieceWords = Region.blocks / 64
    /// All that are full are this one: a few bytes of an image may claim terabytes of a file of holes.
    private static let full = ContiguousArray(repeating: UInt64.max, count: pieceWords)

    package let blockCount: UInt64
    private var pieces: [ContiguousArray<UInt64>]
    package private(set) var count: UInt64 = 0

    package init(blockCount: UInt64) {
        self.blockCount = blockCount
        pieces = Array(repeating: [], count: Int((blockCount + Self.pieceBlocks - 1) / Self.pieceBlocks))
    }

    /// The words of one region; nil when nothing in it is set.
    package func words(region: Int) -> ContiguousArray<UInt64>? { pieces[region].isEmpty ? nil : pieces[region] }

    package func contains(_ block: UInt64) -> Bool {
        let piece = pieces[Int(block / Self.pieceBlocks)]
        guard !piece.isEmpty else { return false }
        let bit = Int(block % Self.pieceBlocks)
        return piece[bit >> 6] & (1 << UInt64(bit & 63)) != 0
    }

    /// Adds the run; returns the first block that was in the set before.
    @discardableResult package mutating func insert(_ start: UInt64, _ length: UInt64) -> UInt64? {
        precondition(start <= blockCount && length <= blockCount - start)
        var first: UInt64?
        var block = start
        let end = start + length
        while block < end {
            let region = Int(block / Self.pieceBlocks)
            let bit = block % Self.pieceBlocks
            if bit == 0 && end - block >= Self.pieceBlocks && pieces[region].isEmpty {
                pieces[region] = Self.full
                count += Self.pieceBlocks
                block += Self.pieceBlocks
                continue
            }
            let width = min(64 - bit & 63, end - block, Self.pieceBlocks - bit)
            let mask = (width == 64 ? UInt64.max : (1 << width) - 1) << (bit & 63)
            if pieces[region].isEmpty { pieces[region] = ContiguousArray(repeating: 0, count: Self.pieceWords) }
            let old = pieces[region][Int(bit >> 6)]
            if old & mask != 0 && first == nil { first = block - (bit & 63) + UInt64((old & mask).trailingZeroBitCount) }
            pieces[region][Int(bit >> 6)] = old | mask
            count += UInt64((mask & ~old).nonzeroBitCount)
            block += width
        }
        return first
    }

    /// The first block of the run that is not in the set.
    package func firstMissing(_ start: UInt64, _ length: UInt64) -> UInt64? {
        var block = start
        let end = start + length
        while block < end {
            let piece = pieces[Int(block / Self.pieceBlocks)]
            let bit = block % Self.pieceBlocks
            if bit == 0 && end - block >= Self.pieceBlocks && (piece.isEmpty || piece == Self.full) {
                if piece.isEmpty { return block }
                block += Self.pieceBlocks
                continue
            }
            let width = min(64 - bit & 63, end - block, Self.pieceBlocks - bit)
            let mask = (width == 64 ? UInt64.max : (1 << width) - 1) << (bit & 63)
            let missing = piece.isEmpty ? mask : mask & ~piece[Int(bit >> 6)]
            if missing != 0 { return block - (bit & 63) + UInt64(missing.trailingZeroBitCount) }
            block += width
        }
        return nil
    }
}
