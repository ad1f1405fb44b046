// NamesCheck: entries against inodes, both ways: every entry leads to an inode of its type, every inode has as many names as links,
// every directory one name and the way to the root.

import Format
import Memory

extension Checker {
    func checkNames() throws(Cancelled) {
        // Without some of the tree, names would be missed by the thousand; what is wrong with it has been said.
        guard treeIsComplete else { return }
        if namesOverflow {
            remembered = []
            try walkNames()
        } else {
            for name in remembered { takeName(name) }
            remembered = []
        }
        if isCancelled() { throw Cancelled() }
        progress(.names, 0.5)
        checkInodes()
        try checkReach()
        for (number, used) in orphans.sorted(by: { $0.key < $1.key }) where !used {
            found(.orphanItem, "an orphan item for inode \(number), which has its names", inode: number)
        }
    }

    /// For filesystems with more entries than are remembered: the tree once more.
    private func walkNames() throws(Cancelled) {
        let walk = mainWalk()
        walk.leaf = { [unowned self] page, range in
            for index in range {
                let key = NodeLayout.key(page, index)
                guard key.type == ItemType.entry.rawValue, let entry = EntryItem(NodeLayout.value(page, index)),
                    entry.inode.value < Limit.inode
                else { continue }
                takeName(RememberedName(directory: key.high >> 8, offset: key.low, inode: entry.inode.value, kind: entry.kind))
            }
        }
        try walk.walk(superblock.checkpoint.root, level: superblock.checkpoint.rootLevel)
    }

    private func takeName(_ name: RememberedName) {
        guard let index = inodes.index(of: name.inode) else {
            return found(.entryDangling, "the entry at \(name.offset) leads to inode \(name.inode), which does not exist", inode: name.directory)
        }
        let target = inodes[index]
        if target.kind != name.kind {
            found(.entryKind, "the entry at \(name.offset) is of type \(name.kind), its inode \(name.inode) of type \(target.kind)", inode: name.directory)
        }
        if target.isDirectory {
            if name.inode == 1 { found(.directoryNames, "the root has a name in directory \(name.directory)", inode: 1) }
            if target.names == 1 { found(.directoryNames, "a second name, in directory \(name.directory)", inode: name.inode) }
            if let parent = inodes.index(of: name.directory) { inodes[parent].children += 1 }
        }
        inodes[index].names = target.names == .max ? .max : target.names + 1
        if target.parent == name.directory && target.parentEntry == name.offset {
            inodes[index].flags |= InodeTable.Entry.hintMet
        }
    }

    private func checkInodes() {
        for index in 0..<inodes.count {
            let inode = inodes[index]
            let isOrphan = orphans[inode.number] != nil
            if isOrphan {
                // Without names, or being trimmed, which only regular files are.
                orphans[inode.number] = inode.links == 0 || inode.kind == FileKind.regular.rawValue
            }
            if inode.isDirectory {
                checkDirectory(inode, isOrphan: isOrphan)
            } else {
                if inode.links != inode.names {
                    found(.linkCount, "\(inode.links) links, but \(inode.names) names lead to it", inode: inode.number)
                } else if inode.links == 0 && !isOrphan {
                    found(.unnamedInode, "no name leads to it, and it is no orphan", inode: inode.number)
                }
                if inode.parent != 0 && inode.flags & InodeTable.Entry.hintMet == 0 {
                    found(.nameHint, "notes a name at \(inode.parentEntry) of directory \(inode.parent), which leads elsewhere", inode: inode.number)
                }
            }
        }
    }

    private func checkDirectory(_ inode: InodeTable.Entry, isOrphan: Bool) {
        if inode.number == 1 {
            if inode.parent != 1 { found(.directoryParent, "the root's parent is \(inode.parent)", inode: 1) }
        } else if inode.names == 0 {
            if inode.links != 0 || !isOrphan { found(.unnamedInode, "no name leads to it, and it is no orphan", inode: inode.number) }
            if inode.links == 0 { return }
        } else if inode.flags & InodeTable.Entry.hintMet == 0 {
            found(.directoryParent, "its parent is to be \(inode.parent), entry \(inode.parentEntry); its name is elsewhere", inode: inode.number)
        }
        if inode.links != inode.children &+ 2 {
            found(.directoryLinks, "\(inode.links) links with \(inode.children) subdirectories", inode: inode.number)
        }
    }

    /// From each directory upwards until a directory that is known to be reached.
    private func checkReach() throws(Cancelled) {
        guard let root = inodes.index(of: 1) else { return found(.inodeMalformed, "there is no root directory") }
        inodes[root].flags |= InodeTable.Entry.reached
        var way: [Int] = []
        for start in 0..<inodes.count where inodes[start].isDirectory && inodes[start].names > 0 {
            way.removeAll(keepingCapacity: true)
            var at = start
            var reached = true
            while inodes[at].flags & InodeTable.Entry.reached == 0 {
                // Met again on the way up: a loop; without a name or parent: an end elsewhere than at the root.
                guard inodes[at].flags & InodeTable.Entry.visiting == 0, inodes[at].names > 0, let parent = inodes.index(of: inodes[at].parent)
                else {
                    reached = false
                    break
                }
                inodes[at].flags |= InodeTable.Entry.visiting
                way.append(at)
                at = parent
            }
            if !reached { found(.directoryLoop, "there is no way from it up to the root", inode: inodes[start].number) }
            for index in way {
                // Said once for all of them.
                inodes[index].flags |= InodeTable.Entry.reached
                inodes[index].flags &= ~InodeTable.Entry.visiting
            }
        }
    }

    // MARK: paths

    /// A path to the inode by the notes that inodes keep of their names, for messages.
    func path(of number: UInt64) -> [UInt8]? {
        if number == 1 { return [0x2f] }
        let walk = mainWalk()
        let checkpoint = superblock.checkpoint
        var parts: [[UInt8]] = []
        var at = number
        while at != 1 {
            guard parts.count < 256, let index = inodes.index(of: at), inodes[index].parent != 0,
                let value = walk.find(
                    Key(InodeNumber(inodes[index].parent), .entry, inodes[index].parentEntry), root: checkpoint.root, level: checkpoint.rootLevel),
                let name = value.withRawBytes({ bytes in EntryItem(bytes).flatMap { $0.inode.value == at ? $0.name.array : nil } })
            else { return nil }
            parts.append(name)
            at = inodes[index].parent
        }
        return Array(parts.reversed().map { [0x2f] + $0 }.joined())
    }
}
