// SharesCheck: blocks that several extents hold. The space tree says how many; the files say which.

import Format

struct ShareClaim {
    let start: UInt64
    let item: ShareItem
    var end: UInt64 { start + UInt64(item.count) }
    /// Extents that are to hold each block.
    var due: UInt32 { item.further &+ 1 }
}

/// How many extents have been seen to hold each block; in pieces that exist once one of their blocks has been seen.
struct ShareCounts {
    private static let piece: UInt64 = 1024
    private var pieces: [UInt64: [UInt32]] = [:]

    /// Counts one more; returns how many there are now.
    mutating func add(_ block: UInt64) -> UInt32 {
        let (piece, place) = block.quotientAndRemainder(dividingBy: Self.piece)
        return {
            $0[Int(place)] &+= 1
            return $0[Int(place)]
        }(&pieces[piece, default: Array(repeating: 0, count: Int(Self.piece))])
    }

    subscript(_ block: UInt64) -> UInt32 { pieces[block / Self.piece]?[Int(block % Self.piece)] ?? 0 }
}

extension Checker {
    /// An item of the space tree, in the order of keys.
    func takeShare(_ start: UInt64, _ item: ShareItem) {
        guard isInside(BlockNumber(start), UInt64(item.count), "a share item") else { return }
        if let last = shares.last, last.end > start {
            return found(.spaceItemMalformed, "share items at \(last.start) and \(start) overlap", block: BlockNumber(start))
        }
        guard item.further < .max else {
            return found(.spaceItemMalformed, "share item at \(start): impossible count", block: BlockNumber(start))
        }
        shares.append(ShareClaim(start: start, item: item))
    }

    /// Claims the blocks of an extent; false when some have an owner that they must not have, or they lie outside.
    func claimData(_ start: BlockNumber, _ count: UInt64, inode: UInt64) -> Bool {
        guard !shares.isEmpty else { return claim(start, count, "file data", inode: inode) }
        guard isInside(start, count, "file data", inode: inode) else { return false }
        var at = start.value
        let end = at + count
        var isGood = true
        var index = firstShare(endingAfter: at)
        while at < end {
            guard index < shares.count, shares[index].start < end else {
                return claim(BlockNumber(at), end - at, "file data", inode: inode) && isGood
            }
            if shares[index].start > at {
                isGood = claim(BlockNumber(at), shares[index].start - at, "file data", inode: inode) && isGood
                at = shares[index].start
            }
            let to = min(end, shares[index].end)
            isGood = claimShared(index, at, to, inode) && isGood
            at = to
            index += 1
        }
        return isGood
    }

    private func firstShare(endingAfter block: UInt64) -> Int {
        var low = 0
        var high = shares.count
        while low < high {
            let middle = (low + high) / 2
            if shares[middle].end > block { high = middle } else { low = middle + 1 }
        }
        return low
    }

    private func claimShared(_ index: Int, _ from: UInt64, _ to: UInt64, _ inode: UInt64) -> Bool {
        var isGood = true
        for block in from..<to {
            let seen = shareCounts.add(block)
            if seen == 1 {
                isGood = claim(BlockNumber(block), 1, "file data", inode: inode) && isGood
            } else if seen > shares[index].due {
                found(
                    .shareCount, "shared by more than \(shares[index].due) extents", block: BlockNumber(block), inode: inode)
            }
        }
        return isGood
    }

    /// Once all extents have been seen.
    func checkShares() {
        for share in shares {
            // One finding an item: a false one may cover the whole image.
            guard let block = (share.start..<share.end).first(where: { shareCounts[$0] < share.due }) else { continue }
            found(
                .shareCount, "\(share.due) extents are to hold it, there are \(shareCounts[block])", block: BlockNumber(block))
        }
    }
}
