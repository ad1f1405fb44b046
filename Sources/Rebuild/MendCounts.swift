// MendCounts: steps 5 and 6 of Mend: counts, and all that was decided into the tree.

import Format
import Memory
import Tree

extension Mend {
    func count() {
        for at in nodes.indices { nodes[at].children = 0 }
        for at in nodes.indices where nodes[at].isDirectory && nodes[at].names > 0 && nodes[at].number != 1 {
            if let parent = index(of: nodes[at].nameDirectory) { nodes[parent].children += 1 }
        }
        for at in nodes.indices { count(nodes[at]) }
        for number in orphans {
            guard let at = index(of: number) else {
                goneOrphans.append(number)
                continue
            }
            // Of a file that has names it may say that its end is to be trimmed; of others it says nothing.
            if nodes[at].names > 0 && nodes[at].kind != FileKind.regular.rawValue { goneOrphans.append(number) }
        }
        for number in goneOrphans { say("it is no longer noted as a file without a name", number, isLoss: false) }
        nextInode = max(nextInode, highest + 1)
    }

    func count(_ node: Node) {
        let isRoot = node.number == 1
        let links = node.isDirectory ? (isRoot || node.names > 0 ? node.children + 2 : 0) : node.names
        if node.links != links {
            if !node.isNew { say("its link count is \(links), not \(node.links)", node.number, isLoss: false) }
            update(node.number) { $0.links = links }
        }
        if node.isDirectory && node.length != node.entries {
            if !node.isNew { say("it has \(node.entries) names, not \(node.length)", node.number, isLoss: false) }
            update(node.number) { $0.length = node.entries }
        }
        let parent: (UInt64, UInt64) = isRoot ? (1, node.parentEntry) : node.names > 0 ? (node.nameDirectory, node.nameOffset) : (0, 0)
        let needsNone = !node.isDirectory && node.parent == 0 && !node.isNew
        let isRight = isRoot ? node.parent == 1 : node.names > 0 ? node.hintMet || needsNone : node.parent == 0
        if !isRight && !node.isNew { say("the place that it notes of its name is put right", node.number, isLoss: false) }
        if !isRight || node.isNew {
            update(node.number) {
                $0.parent = InodeNumber(parent.0)
                $0.parentEntry = parent.1
            }
        }
    }

    // MARK: 6 writing

    func write() throws {
        for key in removals { try tree.remove(key) }
        for (inode, type) in dropped {
            while let found = try tree.next(Key(InodeNumber(inode), type)), found.key.isOf(InodeNumber(inode), type) { try tree.remove(found.key) }
        }
        for inode in doomed {
            while let found = try tree.next(Key(InodeNumber(inode), .inode)), found.key.inode.value == inode { try tree.remove(found.key) }
        }
        for (key, kind) in kinds { try tree.update(key)?.set(u8: kind, at: 8) }
        for key in births { try tree.update(key)?.set(u64: sequence.value, at: 8) }
        for (number, changes) in updates.sorted(by: { $0.key < $1.key }) {
            guard let at = index(of: number) else { continue }
            let key = Key(InodeNumber(number), .inode)
            var item: InodeItem
            if nodes[at].isNew {
                let isSymlink = nodes[at].kind == FileKind.symlink.rawValue
                let permissions: UInt32 = number == 1 ? 0o755 : nodes[at].isDirectory ? 0o700 : isSymlink ? 0o777 : 0o600
                item = InodeItem(mode: UInt32(nodes[at].kind) << 12 | permissions, uid: 0, gid: 0, links: 0, time: time)
            } else {
                guard let value = try tree.find(key) else { continue }
                item = InodeItem(value)
            }
            for change in changes { change(&item) }
            item.store(try put(key, InodeItem.size))
        }
        for number in newOrphans where orphans.insert(number).inserted { _ = try put(Key(.none, .orphan, number), 0) }
        for number in goneOrphans { try tree.remove(Key(.none, .orphan, number)) }
    }

    /// The checkpoint's numbers as they are now.
    func counted(_ item: CheckpointItem) -> CheckpointItem {
        var item = item
        func tell(_ what: String, _ old: UInt64, _ new: UInt64) {
            if old != new { say("\(what): \(new), not \(old)", isLoss: false) }
        }
        tell("inodes", item.inodes, UInt64(nodes.count))
        tell("data blocks", item.dataBlocks, dataBlocks)
        tell("the next inode number", item.nextInode, nextInode)
        item.inodes = UInt64(nodes.count)
        item.dataBlocks = dataBlocks
        item.nextInode = nextInode
        return item
    }
}
