// Shares: blocks that several extents hold, and how many do.
//
//   one extent ──clone──► two ──clone──► three …            one of many lets go ──► one fewer
//       │                                                    the last lets go    ──► a dead entry, the only one (invariant 11)
//       └── lets go ──► a dead entry
//
// Records say that an extent was cloned, or let go of, and nothing of counts: past views and replay need none. Only what
// is dead depends on them, and that is asked when a checkpoint writes its dead list. So counts live in the space tree, are
// changed by the checkpoint alone (P3), and cost neither memory nor time before.
//
// (H1) In the space tree, share items do not overlap, and have a count of at least one further extent; blocks without an item
//      have one extent at most.
// (H2) Clones and deaths are settled in the order of their records.
// (H3) All extents of a block have the birth that the first one had, so that the one dead entry covers whoever held it.
//
// If the power fails before the checkpoint's slot is written, the older slot's counts stand, and replay brings the same clones and
// deaths in the same order.

public import Format
import Memory
import Tree

/// An extent began to hold blocks that another one holds. `position`: how many deaths came before it, since the list was taken.
public struct Sharing: Sendable {
    public let position: Int
    public let start: BlockNumber
    public let count: UInt64
    public init(position: Int, start: BlockNumber, count: UInt64) {
        self.position = position
        self.start = start
        self.count = count
    }
}

extension Space {
    private struct Share {
        var start: UInt64
        var item: ShareItem
        var end: UInt64 { start + UInt64(item.count) }
    }

    /// Whether any block has several extents.
    public func findShares() throws(Failure) -> Bool { try share(from: 0) != nil }

    /// From what records let go of to what died: what other extents hold lives on.
    func settle(_ released: [DeadEntry], _ sharings: [Sharing]) throws(Failure) -> [DeadEntry] {
        if sharings.isEmpty, try !findShares() { return released }
        var dead: [DeadEntry] = []
        var next = 0
        for (position, entry) in released.enumerated() {
            while next < sharings.count, sharings[next].position <= position {
                try hold(sharings[next].start.value, sharings[next].count)
                next += 1
            }
            try letGo(entry, &dead)
        }
        for sharing in sharings[next...] { try hold(sharing.start.value, sharing.count) }
        return dead
    }

    /// One more extent holds the blocks.
    private func hold(_ start: UInt64, _ count: UInt64) throws(Failure) {
        var at = start
        let end = start + count
        while at < end {
            let found = try share(from: at)
            if let found, found.start <= at {
                let to = min(found.end, end)
                guard found.item.further < .max else { throw .damaged("block \(at) has too many extents") }
                try split(found, at, to, further: found.item.further + 1)
                at = to
            } else {
                let to = min(found?.start ?? end, end)
                try add(at, to, further: 1)
                at = to
            }
        }
    }

    /// One extent fewer holds the entry's blocks; those that had no other are dead.
    private func letGo(_ entry: DeadEntry, _ dead: inout [DeadEntry]) throws(Failure) {
        var at = entry.start.value
        let end = at + UInt64(entry.count)
        while at < end {
            let found = try share(from: at)
            if let found, found.start <= at {
                let to = min(found.end, end)
                try split(found, at, to, further: found.item.further - 1)
                at = to
            } else {
                let to = min(found?.start ?? end, end)
                var part = entry
                part.start = BlockNumber(at)
                part.count = UInt32(to - at)
                dead.append(part)
                at = to
            }
        }
    }

    /// The item that holds `block`, or the first behind it.
    private func share(from block: UInt64) throws(Failure) -> Share? {
        func decode(_ found: (key: Key, value: RawBytes)?) throws(Failure) -> Share? {
            guard let found, found.key.high == UInt64(SpaceItemType.share.rawValue) else { return nil }
            guard let item = ShareItem(found.value), found.key.low <= map.blockCount, UInt64(item.count) <= map.blockCount - found.key.low
            else { throw .damaged("share item at \(found.key.low): malformed") }
            return Share(start: found.key.low, item: item)
        }
        let before: (key: Key, value: RawBytes)?
        do throws(TreeError) { before = try tree.previous(Key(.share, block)) } catch { throw Failure(error) }
        if let share = try decode(before), share.end > block { return share }
        let after: (key: Key, value: RawBytes)?
        do throws(TreeError) { after = try tree.next(Key(.share, block)) } catch { throw Failure(error) }
        return try decode(after)
    }

    /// Gives blocks [from, to) of an item a count of their own; 0: they have one extent.
    private func split(_ share: Share, _ from: UInt64, _ to: UInt64, further: UInt32) throws(Failure) {
        try remove(Key(.share, share.start))
        try add(share.start, from, further: share.item.further)
        try add(from, to, further: further)
        try add(to, share.end, further: share.item.further)
    }

    /// Adds an item; a left neighbour with the same count grows instead.
    private func add(_ from: UInt64, _ to: UInt64, further: UInt32) throws(Failure) {
        guard from < to, further > 0 else { return }
        var start = from
        if from > 0, let left = try share(from: from - 1), left.end == from, left.item.further == further,
            to - left.start <= UInt64(UInt32.max)
        { start = left.start }
        try put(Key(.share, start), ShareItem.size) { ShareItem(count: UInt32(to - start), further: further).store($0) }
    }
}
