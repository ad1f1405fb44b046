// MendNames: steps 3 and 4 of Mend: names against inodes, and what no name leads to.

import Check
import Format
import Memory
import Tree

extension Mend {
    func takeNames() throws {
        var kept: [UInt64: Int] = [:]
        for at in names.indices {
            let name = names[at]
            guard let target = index(of: name.inode) else {
                drop(at, "leads to an inode that is lost", isLoss: true)
                continue
            }
            let node = nodes[target]
            let isHint = node.parent == name.directory && node.parentEntry == name.offset
            if node.isDirectory {
                if name.inode == 1 {
                    drop(at, "leads to the root", isLoss: true)
                    continue
                }
                if let other = kept[name.inode] {
                    // A directory has one name: the one that it notes itself.
                    if isHint { drop(other, "is a second one of a directory", isLoss: true) } else {
                        drop(at, "is a second one of a directory", isLoss: true)
                        continue
                    }
                }
                kept[name.inode] = at
            }
            if node.kind != name.kind {
                kinds.append((Key(InodeNumber(name.directory), .entry, name.offset), node.kind))
                say("the type noted with one of its names is put right", name.inode, isLoss: false)
            }
        }
        for name in names where !name.isGone { meet(name) }
        try cutLoops()
    }

    func drop(_ at: Int, _ why: String, isLoss: Bool) {
        names[at].isGone = true
        let name = names[at]
        let key = Key(InodeNumber(name.directory), .entry, name.offset)
        let text = (try? tree.find(key)).flatMap { $0.flatMap { EntryItem($0)?.name.text } } ?? "?"
        say("the name '\(text)' in it \(why) (inode \(name.inode)), and is removed", name.directory, isLoss: isLoss)
        removals.append(key)
        if let directory = index(of: name.directory) { nodes[directory].entries -= min(1, nodes[directory].entries) }
    }

    func meet(_ name: Name) {
        guard let target = index(of: name.inode) else { return }
        nodes[target].names += 1
        if nodes[target].parent == name.directory && nodes[target].parentEntry == name.offset { nodes[target].hintMet = true }
        nodes[target].nameDirectory = name.directory
        nodes[target].nameOffset = name.offset
    }

    /// Names are in the order of their keys.
    func place(of offset: UInt64, in directory: UInt64) -> Int? {
        var low = 0
        var high = names.count
        while low < high {
            let middle = (low + high) / 2
            if (names[middle].directory, names[middle].offset) < (directory, offset) { low = middle + 1 } else { high = middle }
        }
        return low < names.count && names[low].directory == directory && names[low].offset == offset ? low : nil
    }

    /// Directories whose way up runs in a circle lose the name that closes it.
    func cutLoops() throws {
        guard let root = index(of: 1) else { return }
        nodes[root].isReached = true
        for start in nodes.indices where nodes[start].isDirectory && nodes[start].names > 0 {
            if isCancelled() { throw Cancelled() }
            var way: [Int] = []
            var at = start
            while !nodes[at].isReached {
                if nodes[at].isVisiting {
                    let directory = nodes[at].nameDirectory
                    let offset = nodes[at].nameOffset
                    if let name = place(of: offset, in: directory) { drop(name, "closes a circle of directories", isLoss: true) }
                    nodes[at].names = 0
                    break
                }
                nodes[at].isVisiting = true
                way.append(at)
                guard nodes[at].names > 0, let parent = index(of: nodes[at].nameDirectory) else { break }
                at = parent
            }
            for index in way {
                nodes[index].isReached = true
                nodes[index].isVisiting = false
            }
        }
    }

    // MARK: 4 adopting

    func adopt() throws {
        for at in nodes.indices where nodes[at].names == 0 && nodes[at].number != 1 {
            let node = nodes[at]
            if node.links == 0 && !node.isNew && orphans.contains(node.number) && (!node.isDirectory || node.entries == 0) { continue }
            if node.links == 0 && !node.isNew && !node.isDirectory {
                say("a file that was deleted while open is noted as such again", node.number, isLoss: false)
                newOrphans.append(node.number)
                continue
            }
            adopted.append(node.number)
        }
        guard !adopted.isEmpty else { return }
        let directory = try lostAndFound()
        for number in adopted {
            let name = Array("#\(number)".utf8)
            let offset = try freeOffset(directory, name)
            let at = index(of: number)!
            EntryItem.store(
                try put(Key(InodeNumber(directory), .entry, offset), EntryItem.size(nameLength: name.count)), inode: InodeNumber(number),
                kind: nodes[at].kind, name: name)
            nodes[at].names = 1
            nodes[at].nameDirectory = directory
            nodes[at].nameOffset = offset
            nodes[at].hintMet = false
            nodes[index(of: directory)!].entries += 1
            say("no name led to it", number, isLoss: false)
        }
    }

    /// The directory `lost+found` in the root; made if need be.
    func lostAndFound() throws -> UInt64 {
        let name = Array("lost+found".utf8)
        for entry in names where entry.directory == 1 && !entry.isGone {
            if nameInRoot(entry.offset) == name,
                let at = index(of: entry.inode), nodes[at].isDirectory, nodes[at].names > 0
            { return entry.inode }
        }
        var wanted = name
        nextInode = max(nextInode, highest + 1)
        let number = nextInode
        nextInode += 1
        if names.contains(where: { $0.directory == 1 && !$0.isGone && nameInRoot($0.offset) == name }) { wanted = Array("lost+found.\(number)".utf8) }
        let offset = try freeOffset(1, wanted)
        EntryItem.store(
            try put(Key(.root, .entry, offset), EntryItem.size(nameLength: wanted.count)), inode: InodeNumber(number),
            kind: FileKind.directory.rawValue, name: wanted)
        var node = Node(number: number, kind: FileKind.directory.rawValue, links: 0, length: 0, parent: 1, parentEntry: offset)
        node.isNew = true
        node.names = 1
        node.hintMet = true
        node.nameDirectory = 1
        node.nameOffset = offset
        nodes.append(node)
        nodes.sort { $0.number < $1.number }
        nodes[index(of: 1)!].entries += 1
        return number
    }

    func nameInRoot(_ offset: UInt64) -> [UInt8]? {
        guard let value = try? tree.find(Key(.root, .entry, offset)) else { return nil }
        return EntryItem(value)?.name.array
    }

    func freeOffset(_ directory: UInt64, _ name: [UInt8]) throws -> UInt64 {
        let base = name.withRawBytes { NameHash.offset($0, seed: superblock.seed) }
        for offset in base..<base + NameHash.ordinals where try tree.find(Key(InodeNumber(directory), .entry, offset)) == nil {
            return offset
        }
        throw RepairFailure(.damaged, "no place for a name in lost+found")
    }

    func put(_ key: Key, _ count: Int) throws -> RawBytes { try tree.put(key, count: count) }
}
