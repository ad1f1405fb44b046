// Extents: which home blocks hold a file's blocks, and how that changes.
//
// (E1) Extents of one file do not overlap; each lies inside of the image.
// (E2) A block leaves a file only through `removeExtents`, which makes its dead entry unless the same home stays in place.
// (E3) Neighbours that continue each other on disk are one item up to 128 blocks; the merged item has the older birth,
//      which keeps blocks for longer than needed, never for shorter. Older ones are not merged into a younger left neighbour.

import Format
import Memory

/// An extent as found: a copy, valid across changes of the tree. CRCs are read through `View.crc`.
struct FoundExtent {
    let fileBlock: UInt64
    let item: ExtentItem
    var end: UInt64 { fileBlock + UInt64(item.blocks) }
    func home(_ block: UInt64) -> BlockNumber { item.start + (block - fileBlock) }
}

extension View {
    private func decode(_ key: Key, _ value: RawBytes) throws(ViewError) -> FoundExtent {
        do throws(FormatError) {
            try ExtentItem.validate(value, key: key, blockCount: superblock.blockCount)
        } catch { throw .damaged(error.description) }
        return FoundExtent(fileBlock: key.low, item: ExtentItem(value))
    }

    /// The extent that holds `block`, with its bytes in the tree.
    func extent(_ inode: InodeNumber, at block: UInt64) throws(ViewError) -> (extent: FoundExtent, bytes: RawBytes)? {
        guard let found = try previous(Key(inode, .extent, block)), found.key.isOf(inode, .extent) else { return nil }
        let extent = try decode(found.key, found.value)
        return block < extent.end ? (extent, found.value) : nil
    }

    /// The first extent that ends after `block`.
    func extent(_ inode: InodeNumber, from block: UInt64) throws(ViewError) -> (extent: FoundExtent, bytes: RawBytes)? {
        if let found = try extent(inode, at: block) { return found }
        guard let found = try next(Key(inode, .extent, block)), found.key.isOf(inode, .extent) else { return nil }
        return (try decode(found.key, found.value), found.value)
    }

    /// The last extent of the file.
    func lastExtent(_ inode: InodeNumber, before block: UInt64 = .max) throws(ViewError) -> FoundExtent? {
        guard block > 0, let found = try previous(Key(inode, .extent, block == .max ? .max : block - 1)),
            found.key.isOf(inode, .extent)
        else { return nil }
        return try decode(found.key, found.value)
    }

    /// Removes file blocks [from, to). Homes that `kept` continues (the block at `from` staying at `kept`, and so on) do not die.
    /// Returns how many blocks the file had there.
    func removeExtents(
        _ inode: InodeNumber, from: UInt64, to: UInt64, kept: BlockNumber?, death: SequenceNumber
    ) throws(ViewError) -> UInt64 {
        var removed: UInt64 = 0
        var at = from
        while at < to, let (extent, bytes) = try extent(inode, from: at), extent.fileBlock < to {
            // The tree's bytes move as soon as it changes.
            let old = scratch.bytes.slice(0, bytes.count)
            old.copy(bytes)
            let low = max(from, extent.fileBlock)
            let high = min(to, extent.end)
            if extent.fileBlock < low {
                try putPart(inode, extent, old, from: extent.fileBlock, to: low)
            } else {
                try remove(Key(inode, .extent, extent.fileBlock))
            }
            if high < extent.end { try putPart(inode, extent, old, from: high, to: extent.end) }
            let home = extent.home(low)
            let count = high - low
            if let kept, home == kept + (low - from) {
                // The same blocks stay in place: written over what was set aside, or patched again.
            } else {
                freed.append(
                    DeadEntry(
                        start: home, count: UInt32(clamping: count), kind: .data, birth: extent.item.birth, death: death))
                pages.giveUp(home, extent.item.isUnwritten ? 0 : count)
            }
            removed += count
            at = high
        }
        return removed
    }

    /// Stores file blocks [from, to) of a former extent under their own key.
    private func putPart(
        _ inode: InodeNumber, _ extent: FoundExtent, _ old: RawBytes, from: UInt64, to: UInt64
    ) throws(ViewError) {
        var item = extent.item
        item.start = extent.home(from)
        item.blocks = UInt32(to - from)
        item.stored = item.blocks
        let bytes = try put(Key(inode, .extent, from), count: item.size)
        item.storeHeader(bytes)
        if !item.isUnwritten {
            bytes.copy(
                old.slice(ExtentItem.header + Int(from - extent.fileBlock) * 4, Int(item.blocks) * 4), to: ExtentItem.header)
        }
    }

    /// Adds `count` file blocks from `at` on, homes from `home` on; their place is empty. `crcs` has four bytes a block, or
    /// none for blocks set aside.
    func insertExtent(
        _ inode: InodeNumber, at: UInt64, home: BlockNumber, count: UInt64, crcs: RawBytes?, birth: SequenceNumber
    ) throws(ViewError) {
        let flags: UInt8 = crcs == nil ? ExtentItem.flagUnwritten : 0
        let maximum = crcs == nil ? UInt64(UInt32.max) : ExtentItem.maximumBlocks
        var done: UInt64 = 0
        // The left neighbour may take the beginning (E3).
        if at > 0, let (left, bytes) = try extent(inode, at: at - 1), left.item.flags == flags,
            left.item.birth <= birth, left.item.start.value + UInt64(left.item.blocks) == home.value, UInt64(left.item.blocks) < maximum
        {
            let take = min(count, maximum - UInt64(left.item.blocks))
            var item = left.item
            let old = scratch.bytes.slice(0, bytes.count)
            old.copy(bytes)
            item.blocks += UInt32(take)
            item.stored = item.blocks
            let grown = try put(Key(inode, .extent, left.fileBlock), count: item.size)
            item.storeHeader(grown)
            if let crcs {
                grown.copy(old.from(ExtentItem.header), to: ExtentItem.header)
                grown.copy(crcs.slice(0, Int(take) * 4), to: old.count)
            }
            done = take
        }
        while done < count {
            let take = min(count - done, maximum)
            let item = ExtentItem(start: home + done, birth: birth, blocks: UInt32(take), flags: flags)
            let bytes = try put(Key(inode, .extent, at + done), count: item.size)
            item.storeHeader(bytes)
            if let crcs { bytes.copy(crcs.slice(Int(done) * 4, Int(take) * 4), to: ExtentItem.header) }
            done += take
        }
    }
}
