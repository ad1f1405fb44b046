// ScrubFiles: the Scrubber's way through the trees of all points, and the data of files.

import Device
import Format
import Memory

extension Scrubber {
    // MARK: data

    /// Reads the blocks that were not read before, and says of each run that is not what it should be where it begins and why.
    func verify(_ start: BlockNumber, _ count: UInt64, crcs: RawBytes, _ body: (BlockNumber, UInt64, String) -> Void) {
        guard start.value < superblock.blockCount, count <= superblock.blockCount - start.value else {
            return body(start, count, "outside of the image")
        }
        var at = start.value
        let end = start.value + count
        while at < end, !isCancelled() {
            guard let first = seenData.firstMissing(at, end - at) else { return }
            var stop = first + 1
            while stop < min(end, first + Self.batch) && !seenData.contains(stop) { stop += 1 }
            seenData.insert(first, stop - first)
            report.dataBlocks += stop - first
            verifyRun(first, stop - first, crcs.slice(Int(first - start.value) * 4, Int(stop - first) * 4), body)
            at = stop
        }
    }

    func verifyRun(_ start: UInt64, _ count: UInt64, _ crcs: RawBytes, _ body: (BlockNumber, UInt64, String) -> Void) {
        let bytes = buffer.bytes.slice(0, Int(count) << blockShift)
        let isRead = (try? device.read(BlockNumber(start), into: bytes)) != nil
        var bad: (first: UInt64, count: UInt64, text: String)?
        for index in 0..<count {
            let page = bytes.slice(Int(index) << blockShift, blockSize)
            var problem: String?
            if !isRead {
                // One of them cannot be read: which?
                do throws(DeviceError) { try device.read(BlockNumber(start + index), into: page) } catch { problem = error.description }
            }
            if problem == nil {
                let sum = page.crc32c()
                let expected = crcs.u32(at: Int(index) * 4)
                if sum != expected { problem = "checksum \(hex(sum)), expected \(hex(expected))" }
            }
            if let problem {
                if bad != nil { bad!.count += 1 } else { bad = (start + index, 1, problem) }
            } else if let run = bad {
                body(BlockNumber(run.first), run.count, run.text)
                bad = nil
            }
        }
        if let run = bad { body(BlockNumber(run.first), run.count, run.text) }
    }

    // MARK: trees

    /// All retained trees, newest first. False when the newest was given up while it was read, and things are to be looked at anew.
    func scrubTrees() throws(Cancelled) -> Bool {
        seenNodes = BlockSet(blockCount: superblock.blockCount)
        for item in checkpoints.reversed() {
            if try scrubTree(item) { continue }
            // Given up: older ones are as well.
            return item.sequence != superblock.checkpoint.sequence
        }
        return true
    }

    func walk() -> NodeWalk { NodeWalk(device: device, kind: .main, id: superblock.id, isCancelled: isCancelled) }

    func scrubTree(_ item: CheckpointItem) throws(Cancelled) -> Bool {
        let walk = walk()
        var isGone = false
        walk.claim = { [unowned self] reference, _ in
            let block = reference.address.value
            guard !isGone, block < superblock.blockCount else { return !isGone }
            return seenNodes.insert(block, 1) == nil
        }
        walk.problem = { [unowned self] reference, problem in
            guard !isGone, case .damaged(let text) = problem else { return }
            guard !isGivenUp(item.sequence) else {
                isGone = true
                return
            }
            var damage = Damage(.node, reference.address, text)
            points(&damage, item, birth: reference.birth)
            name(&damage, reference, item)
            found(damage)
        }
        walk.leaf = { [unowned self] page, range in
            for index in range {
                guard !isGone else { return }
                let key = NodeLayout.key(page, index)
                guard key.type == ItemType.extent.rawValue else { continue }
                scrubExtent(key, NodeLayout.value(page, index), item, &isGone)
            }
        }
        try walk.walk(item.root, level: item.rootLevel)
        report.nodes += walk.nodes
        return !isGone
    }

    func scrubExtent(_ key: Key, _ value: RawBytes, _ item: CheckpointItem, _ isGone: inout Bool) {
        // A malformed one is in a node whose checksum holds: the checker's to report.
        guard (try? ExtentItem.validate(value, key: key, blockCount: superblock.blockCount)) != nil else { return }
        let extent = ExtentItem(value)
        guard !extent.isUnwritten else { return }
        var gone = isGone
        verify(extent.start, UInt64(extent.blocks), crcs: value.slice(ExtentItem.header, Int(extent.blocks) * 4)) { block, count, text in
            guard !gone else { return }
            guard !isGivenUp(item.sequence) else {
                gone = true
                return
            }
            var damage = Damage(.data, block, text)
            damage.inode = key.inode
            damage.offset = (key.low + (block.value - extent.start.value)) << UInt64(blockShift)
            damage.length = count << UInt64(blockShift)
            damage.path = path(of: key.inode, in: item)
            points(&damage, item, birth: extent.birth)
            found(damage)
        }
        isGone = gone
    }
}
