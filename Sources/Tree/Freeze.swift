// Freeze: how a checkpoint writes a tree out while operations go on changing it.
//
//   freeze      (lock)     the dirty nodes become frozen; operations copy what they change from here on
//   seal        (no lock)  each frozen node, children first, is copied, given its block, its references made addresses
//   finish      (lock)     after the checkpoint is durable: frozen nodes are clean, references to them become addresses
//
// If the power fails before the checkpoint's superblock slot is flushed, none of the written nodes is referred to by
// anything durable; their blocks are free in the older checkpoint's space state.

public import Device
public import Format
public import Memory

/// The nodes of one tree that one checkpoint has to write.
public final class FrozenTree: @unchecked Sendable {
    public let root: ChildReference
    public let level: UInt8
    let epoch: UInt64
    /// Frozen slots, children before parents.
    let slots: [PageSlot]
    public private(set) var assigned: [UInt32: ChildReference] = [:]
    /// Blocks replaced by this checkpoint's nodes.
    public let deadNodes: [ChildReference]
    public var count: Int { slots.count }

    init(root: ChildReference, level: UInt8, epoch: UInt64, slots: [PageSlot], deadNodes: [ChildReference]) {
        self.root = root
        self.level = level
        self.epoch = epoch
        self.slots = slots
        self.deadNodes = deadNodes
    }

    /// The root as it will be on disk; only after `write`.
    public var sealedRoot: ChildReference { Tree.isVirtual(root) ? assigned[Tree.slot(root).index]! : root }

    /// Writes all nodes to `blocks` (as many as `count`), which become theirs in order.
    public func write(
        _ tree: Tree, to blocks: [BlockNumber], birth: SequenceNumber, _ output: (BlockNumber, RawBytes) throws(DeviceError) -> Void
    ) throws(DeviceError) {
        precondition(blocks.count == slots.count)
        assigned.reserveCapacity(slots.count)
        let batch = min(256, slots.count)
        let buffer = AlignedBuffer(count: batch << blockShift, zeroed: false)
        var first = 0
        while first < slots.count {
            // Runs of neighbouring blocks go out in one write.
            var count = 1
            while count < batch, first + count < slots.count,
                blocks[first + count].value == blocks[first].value + UInt64(count)
            { count += 1 }
            for index in 0..<count {
                let slot = slots[first + index]
                let page = buffer.bytes.slice(index << blockShift, blockSize)
                page.copy(tree.cache.page(slot))
                resolveReferences(page)
                let crc = NodeLayout.seal(page, address: blocks[first + index], birth: birth)
                assigned[slot.index] = ChildReference(address: blocks[first + index], birth: birth, crc: crc)
            }
            try output(blocks[first], buffer.bytes.slice(0, count << blockShift))
            first += count
        }
    }

    /// Turns references to frozen slots into addresses; those to slots of later epochs stay.
    func resolveReferences(_ page: RawBytes) {
        guard NodeLayout.level(page) > 0 else { return }
        for index in 0..<NodeLayout.count(page) {
            let value = NodeLayout.value(page, index)
            let reference = ChildReference(value)
            if Tree.isVirtual(reference), let address = assigned[Tree.slot(reference).index] { address.store(value) }
        }
    }
}

extension Tree {
    /// Ends the epoch: what is dirty now is frozen until `finish`. One checkpoint at a time.
    public func freeze() -> FrozenTree {
        var slots: [PageSlot] = []
        slots.reserveCapacity(dirtyCount)
        collect(root, into: &slots)
        let frozen = FrozenTree(root: root, level: level, epoch: epoch, slots: slots, deadNodes: deadNodes)
        deadNodes = []
        dirtyCount = 0
        epoch += 1
        return frozen
    }

    private func collect(_ reference: ChildReference, into slots: inout [PageSlot]) {
        guard Self.isVirtual(reference) else { return }
        let slot = Self.slot(reference)
        let page = cache.page(slot)
        if NodeLayout.level(page) > 0 {
            for index in 0..<NodeLayout.count(page) { collect(ChildReference(NodeLayout.value(page, index)), into: &slots) }
        }
        slots.append(slot)
    }

    /// The frozen nodes are on disk, and the checkpoint that names them is durable.
    public func finish(_ frozen: FrozenTree) {
        if Self.isVirtual(root), let address = frozen.assigned[Self.slot(root).index] { root = address }
        // Live dirty nodes may still refer to frozen ones by slot.
        for index in 0..<cache.high {
            let slot = PageSlot(UInt32(index))
            if cache.isUsed(slot), cache.tag(slot) == epoch, cache.block(slot) == nil { frozen.resolveReferences(cache.page(slot)) }
        }
        for slot in frozen.slots {
            let reference = frozen.assigned[slot.index]!
            if cache.tag(slot) & Self.supersededFlag != 0 {
                deadNodes.append(reference)
                cache.release(slot)
            } else {
                let page = cache.page(slot)
                frozen.resolveReferences(page)
                page.set(u64: reference.address.value, at: 8)
                page.set(u64: reference.birth.value, at: 16)
                page.set(u32: reference.crc, at: NodeLayout.crc)
                cache.setTag(slot, 0)
                // A look-up that came late may have brought in (`adopt`) what the block held in a former life.
                let former = cache.lookup(reference.address.value)
                if !former.isNone { cache.release(former) }
                cache.bind(slot, to: reference.address.value)
                cache.setEvictable(slot, true)
            }
        }
    }
}
