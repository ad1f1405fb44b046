// Residence: nodes that apply will look at and that the operation has had no reason to look at itself, brought into memory before the
// record is appended. What apply has to read and cannot read ends the volume (Operate, O2), for a record cannot be half applied; here
// it refuses one operation. So a bad block hits what lies in it, and nothing else.

import Format
import Tree

extension View {
    /// The leaf that an inode which loses its last name, or gets one again, is noted in.
    @inline(__always) func bringInOrphan(_ inode: InodeNumber) throws(ViewError) { _ = try find(Key(.none, .orphan, inode.value)) }

    /// The leaf that a new inode goes into, and all that is made with it: no key of the tree is higher.
    @inline(__always) func bringInNew(_ inode: InodeNumber) throws(ViewError) { _ = try find(Key(inode, .inode)) }

    /// The leaves that extents of file blocks [from, to) come into or grow in. Those that lie there already the operation has looked at.
    func bringInExtents(_ inode: InodeNumber, from: UInt64, to: UInt64, unwritten: Bool = false) throws(ViewError) {
        if from > 0 { _ = try previous(Key(inode, .extent, from - 1)) }
        let step = unwritten ? max(to - min(from, to), 1) : ExtentItem.maximumBlocks
        var at = from
        while at < to {
            _ = try find(Key(inode, .extent, at))
            at += step
        }
        _ = try find(Key(inode, .extent, to))
    }

    func bringInPieces(_ owner: InodeNumber) throws(ViewError) {
        guard owner != .none else { return }
        var at = Key(owner, .piece)
        while let found = try next(at), found.key.isOf(owner, .piece), found.key.low < .max {
            at = Key(owner, .piece, found.key.low + 1)
        }
    }

    /// All that goes with an inode: its attributes and their values, its target; its extents are looked at by whoever frees them.
    func bringInRest(_ inode: InodeNumber, _ item: InodeItem) throws(ViewError) {
        try bringInOrphan(inode)
        if item.kind == .symlink { try bringInPieces(inode) }
        guard item.xattrs > 0 else { return }
        var at = Key(inode, .xattr)
        while let found = try next(at), found.key.isOf(inode, .xattr) {
            let low = found.key.low
            if let xattr = XattrItem(found.value) { try bringInPieces(xattr.pieces) }
            // The last place there is: only in a hostile image.
            guard low < .max else { return }
            at = Key(inode, .xattr, low + 1)
        }
    }
}
