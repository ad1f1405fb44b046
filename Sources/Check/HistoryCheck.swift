// HistoryCheck: that past points are still whole. Checkpoints are taken from the newest to the oldest, and each one's dead list is added
// to what is known to be kept before the checkpoint that precedes it is looked at:
//
//   C3, the present      kept: its tree and data
//   C2                   kept: these, and what died in (C2, C3]: everything that C2's root reaches must be among it
//   C1                   kept: these, and what died in (C1, C2]; …
//
// A node that has been seen from a later root is not walked again, so the work is what differs between roots.

import Device
import Format
import Memory

extension Checker {
    func checkHistory() throws(Cancelled) {
        guard treeIsComplete else {
            // Claims alone, so that a leak is not reported for every block of history.
            for index in checkpoints.indices.reversed() where index > 0 { _ = try takeDeadList(index) }
            return
        }
        var complete = true
        for index in checkpoints.indices.reversed() {
            progress(.history, Double(checkpoints.count - index) / Double(checkpoints.count))
            if index + 1 < checkpoints.count && complete { try checkPastTree(checkpoints[index]) }
            if index > 0 { complete = try takeDeadList(index) && complete }
        }
    }

    /// Claims what died in the interval that ends at the checkpoint. False when that is not known in full.
    private func takeDeadList(_ index: Int) throws(Cancelled) -> Bool {
        let item = checkpoints[index]
        guard item.deadList.value != 0 else { return true }
        let since = checkpoints[index - 1].sequence
        var entries: UInt64 = 0
        var blocks: UInt64 = 0
        var previous: UInt64 = 0
        var sound = true
        let whole = try readList(
            item.deadList, crc: item.deadListCRC, itemSize: DeadEntry.size, magic: magicDeadList, damage: .deadListDamaged,
            "the dead list of checkpoint \(item.sequence)"
        ) { bytes in
            let entry = DeadEntry(bytes)
            entries += 1
            blocks &+= UInt64(entry.count)
            guard let kind = DeadEntry.Kind(rawValue: entry.kind), entry.count > 0, entry.birth <= entry.death, entry.death > since,
                entry.death <= item.sequence, entry.start.value >= previous
            else {
                sound = false
                ownersAreMissing = true
                return found(
                    .deadEntry,
                    "checkpoint \(item.sequence): \(entry.count) blocks of kind \(entry.kind), born at \(entry.birth), dead at \(entry.death)",
                    block: entry.start)
            }
            previous = entry.start.value
            takeDead(entry, kind, item)
        }
        if whole && (entries != UInt64(item.deadEntries) || blocks != item.deadBlocks) {
            found(
                .deadCounts,
                "checkpoint \(item.sequence) counts \(item.deadEntries) entries and \(item.deadBlocks) blocks, there are \(entries) and \(blocks)")
        }
        return whole && sound
    }

    private func takeDead(_ entry: DeadEntry, _ kind: DeadEntry.Kind, _ item: CheckpointItem) {
        let count = UInt64(entry.count)
        guard isInside(entry.start, count, "an entry of the dead list of checkpoint \(item.sequence)") else { return }
        if let taken = owned.insert(entry.start.value, count) {
            found(
                .deadBlockInUse, "dead at \(entry.death) by the list of checkpoint \(item.sequence), but used by \(owner(of: taken))",
                block: BlockNumber(taken))
        }
        switch kind {
        case .node: deadNodes.insert(entry.start.value, count)
        case .data: deadData.insert(entry.start.value, count)
        }
    }

    // MARK: past trees

    private func checkPastTree(_ item: CheckpointItem) throws(Cancelled) {
        let walk = mainWalk()
        walk.claim = { [unowned self] reference, _ in
            let block = reference.address.value
            guard isInside(reference.address, 1, "a node of the tree at \(item.sequence)") else { return false }
            if reference.birth > item.sequence {
                found(.bornLater, "a node of the tree at \(item.sequence), born at \(reference.birth)", block: reference.address)
            }
            if pastNodes.contains(block) { return false }
            if liveNodes.contains(block) {
                if options.verifyData { checkShared(reference, item) }
                return false
            }
            pastNodes.insert(block, 1)
            guard deadNodes.contains(block) else {
                found(.pastNodeUncovered, "a node of the tree at \(item.sequence) is kept by nothing", block: reference.address)
                return false
            }
            return true
        }
        walk.problem = { [unowned self] reference, problem in
            switch problem {
            case .damaged(let text), .order(let text):
                found(.pastNodeDamaged, "of the tree at \(item.sequence): \(text)", block: reference.address)
            }
        }
        walk.leaf = { [unowned self] page, range in
            for index in range {
                let key = NodeLayout.key(page, index)
                guard key.type == ItemType.extent.rawValue else { continue }
                takePastExtent(key, NodeLayout.value(page, index), item)
            }
        }
        try walk.walk(item.root, level: item.rootLevel)
    }

    private func takePastExtent(_ key: Key, _ value: RawBytes, _ item: CheckpointItem) {
        do throws(FormatError) { try ExtentItem.validate(value, key: key, blockCount: superblock.blockCount) } catch {
            return found(.pastNodeDamaged, "of the tree at \(item.sequence): \(error.description)")
        }
        let extent = ExtentItem(value)
        var at = extent.start.value
        let end = at + UInt64(extent.blocks)
        while at < end {
            // Live and dead blocks may take turns within one extent.
            let live = liveData.firstMissing(at, end - at) ?? end
            let dead = deadData.firstMissing(live, end - live) ?? end
            if dead == at {
                return found(
                    .pastDataUncovered, "data of inode \(key.inode) at \(item.sequence) is kept by nothing", block: BlockNumber(at))
            }
            at = dead
        }
    }

    /// A past tree's reference into the present one must be to the same node.
    private func checkShared(_ reference: ChildReference, _ item: CheckpointItem) {
        let page = AlignedBuffer(count: blockSize)
        do throws(DeviceError) { try device.read(reference.address, into: page.bytes) } catch { return }
        do throws(FormatError) {
            try NodeLayout.validate(page.bytes, kind: .main, id: superblock.id, expected: reference, level: nil)
        } catch { found(.pastNodeDamaged, "of the tree at \(item.sequence): \(error.description)", block: reference.address) }
    }
}
